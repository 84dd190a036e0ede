"""Whether a change moved a number: short runs of every algorithm here and at another commit,
compared bit for bit.

    python benchmarks/same_curves.py REV [ALGORITHM …]

Checks `REV` out beside, makes one tiny model and its data, runs the same commands with both trees,
and compares the weights of the last checkpoint and the losses in the log. Exits 1 and names what
differs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = {
    "sft": [{"prompt": f"{n} + {n} = ", "completion": str(2 * n)} for n in range(40)],
    "dpo": [
        {"prompt": f"Is {n} even?", "chosen": f" {n} is.", "rejected": " No, it is odd."}
        for n in range(0, 80, 2)
    ],
    "kto": [
        {"prompt": f"{n} + 1 = ", "completion": str(n + n % 2), "label": n % 2 == 1}
        for n in range(40)
    ],
    "grpo": [{"prompt": f"{n} + {n} = ", "answer": str(2 * n)} for n in range(40)],
}
ONLINE = [
    "--reward",
    "accuracy_or_length.py:score",
    "--max-completion-length",
    "8",
    "--set",
    "num_generations=4",
]
COMMANDS = {
    "sft": ["sft", "--set", "packing=true", "--max-length", "48"],
    "lora": [
        "sft",
        "--lora",
        "--set",
        "lora_dropout=0.1",
        "--set",
        "gradient_accumulation_steps=2",
    ],
    "dpo": ["dpo", "--lora"],
    "kto": ["kto"],
    "orpo": ["orpo"],
    "cpo": ["cpo"],
    "reward": ["reward"],
    "grpo": ["grpo", *ONLINE, "--set", "num_iterations=2", "--set", "beta=0.04"],
    "rloo": ["grpo", *ONLINE, "--lora", "--set", "advantage_estimator=rloo", "--set", "beta=0.04"],
    "ppo": ["ppo", *ONLINE, "--set", "num_mini_batches=2"],
}
DATA = {"lora": "sft", "orpo": "dpo", "cpo": "dpo", "reward": "dpo", "rloo": "grpo", "ppo": "grpo"}
REWARD = """def score(completions, **columns):
    return [len(set(text)) / 8 + ("1" in text) for text in completions]
"""


def chuk(tree: Path, scratch: Path, *words: str) -> None:
    """Run `chuk` of a tree in `scratch`."""
    environment = os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "chuk_cli", *words],
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"chuk {' '.join(words)} ({tree}):\n{done.stderr}")


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of each tensor of a safetensors file: the order in which they lie there
    is no number."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    found = {}
    for name, about in json.loads(content[8:begin]).items():
        if name != "__metadata__":
            start, end = about["data_offsets"]
            found[f"{path.name}: {name}"] = (
                about["dtype"],
                tuple(about["shape"]),
                content[begin + start : begin + end],
            )
    return found


def results(run: Path) -> tuple[dict[str, tuple[str, tuple[int, ...], bytes]], list[float]]:
    """The tensors of the last checkpoint, its optimizer's too, and the losses of the log."""
    last = sorted((run / "checkpoints").glob("step_*"))[-1]
    files = {
        name: one
        for path in sorted(last.glob("*.safetensors"))
        for name, one in tensors(path).items()
    }
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [event for event in map(json.loads, lines) if event["kind"] == "step"]
    return files, [event.get("data", event)["loss"] for event in steps]


def compare(name: str, trees: dict[str, Path], scratch: Path) -> bool:
    """Run one algorithm with both trees; whether all is equal."""
    found = {}
    for label, tree in trees.items():
        words = [
            *COMMANDS[name],
            "-m",
            "model",
            "-d",
            f"{DATA.get(name, name)}.jsonl",
            "-o",
            f"{label}-{name}",
            "-q",
        ]
        chuk(
            tree,
            scratch,
            "train",
            *words,
            "--batch-size",
            "8",
            "--max-steps",
            "4",
            "--set",
            "learning_rate=1e-3",
            "--set",
            "log_interval=1",
        )
        found[label] = results(scratch / f"{label}-{name}")
    (ours, losses), (theirs, before) = found["here"], found["there"]
    odd = [file for file in sorted(set(ours) | set(theirs)) if ours.get(file) != theirs.get(file)]
    same = losses == before and not odd
    print(
        f"{name:<8}{'same' if same else f'DIFFERS: {odd[:4]}, losses {losses} against {before}'}",
        flush=True,
    )
    return same


def main() -> None:
    """Compare the tree with a commit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rev")
    parser.add_argument("algorithms", nargs="*", default=list(COMMANDS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch, other = Path(folder), Path(folder) / "other"
        subprocess.run(
            ["git", "worktree", "add", "-q", "--detach", str(other), given.rev],
            cwd=ROOT,
            check=True,
        )
        try:
            for name, rows in ROWS.items():
                (scratch / f"{name}.jsonl").write_text(
                    "".join(json.dumps(row) + "\n" for row in rows)
                )
            (scratch / "accuracy_or_length.py").write_text(REWARD)
            chuk(ROOT, scratch, "model", "create", "--preset", "nano", "-o", "model")
            trees = {"here": ROOT, "there": other}
            same = [compare(name, trees, scratch) for name in given.algorithms]
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", str(other)], cwd=ROOT, check=False
            )
    sys.exit(not all(same))


if __name__ == "__main__":
    main()
