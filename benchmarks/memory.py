"""Memory and time that `--dry-run` foretells against what the same run then needs: `python
benchmarks/memory.py`.

Each case is two processes on one data file: `chuk train sft … --dry-run --json`, then the run
itself. The estimate is compared with MLX's own peak (`peak_memory_bytes` of the run's events); the
difference of the process's resident peak to it is what libraries, the tokenizer and NumPy take.
Options: presets to measure, such as `tiny mini`."""

from __future__ import annotations

import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CHUK = [sys.executable, "-m", "chuk_cli"]
SHAPES = {
    "tiny": [(8, 64), (8, 256), (2, 1000)],
    "mini": [(8, 64), (8, 256), (2, 1000)],
    "small": [(8, 64), (4, 256)],
}
MODES = {
    "full": [],
    "full, checkpointing": ["--set", "gradient_checkpointing=true"],
    "full, accumulation 3": ["--gradient-accumulation-steps", "3"],
    "LoRA": ["--lora", "--lora-targets", "all-linear"],
    "LoRA, checkpointing": [
        "--lora",
        "--lora-targets",
        "all-linear",
        "--set",
        "gradient_checkpointing=true",
    ],
    "full, packing": ["--packing"],
}
WINDOWS = 6  # micro-batches of an epoch: all of them are run, the largest too


def main(presets: Sequence[str]) -> None:
    """Measure and print one line a case, then the largest error."""
    print(
        "| model | rows × tokens | mode | estimate MiB | measured MiB | ratio | s/step said |"
        " s/step | resident MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    ratios = [ratio for preset in presets for ratio in _measure(preset)]
    print(f"\n{len(ratios)} cases, estimate / measured from {min(ratios):.3f} to {max(ratios):.3f}")


def _measure(preset: str) -> Iterator[float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            [*CHUK, "model", "create", "--preset", preset, "-o", str(folder / "model"), "-q"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for rows, tokens in SHAPES[preset]:
            data = _data(folder / "train.jsonl", rows * WINDOWS, tokens)
            for mode, options in MODES.items():
                yield _case(folder, preset, rows, tokens, mode, [*options, "-d", str(data)])


def _case(
    folder: Path, preset: str, rows: int, tokens: int, mode: str, options: list[str]
) -> float:
    args = [
        *CHUK,
        "train",
        "sft",
        "-m",
        str(folder / "model"),
        "-o",
        str(folder / "run"),
        "--batch-size",
        str(rows),
        "--max-length",
        str(tokens),
        "--num-epochs",
        "1",
        "--set",
        "log_interval=1",
        "--overwrite",
        "--json",
        *options,
    ]
    said = json.loads(_run([*args, "--dry-run"])[0])
    text, resident = _run(args)
    steps = [
        event["data"] for event in map(json.loads, text.splitlines()) if event["kind"] == "step"
    ]
    measured = max(step["peak_memory_bytes"] for step in steps)
    seconds = statistics.median(step["seconds_per_step"] for step in steps[1:] or steps)
    estimate = said["memory"]["mlx_peak"]
    numbers = [
        estimate / 2**20,
        measured / 2**20,
        estimate / measured,
        said["seconds_per_step"],
        seconds,
        resident,
    ]
    cells = [f"{number:.3g}" if number < 10 else f"{number:.0f}" for number in numbers]
    print(f"| {preset} | {rows} × {tokens} | {mode} | {' | '.join(cells)} |", flush=True)
    return float(estimate / measured)


def _run(command: list[str]) -> tuple[str, float]:
    """Standard output, and the largest resident size of any child so far in MiB."""
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return done.stdout, peak / (2**20 if sys.platform == "darwin" else 2**10)


def _data(path: Path, count: int, tokens: int) -> Path:
    """Rows of text, the longest with more than `tokens` characters, most shorter."""
    draw = random.Random(0)
    lengths = [tokens + 8, *(int(tokens * draw.uniform(0.3, 1.0)) for _ in range(count - 1))]
    rows: list[dict[str, Any]] = [
        {"text": "".join(draw.choices("abcdefgh ", k=length))} for length in lengths
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    main(sys.argv[1:] or list(SHAPES))
