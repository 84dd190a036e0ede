"""Useful tokens a second of LoRA training on documents of mixed lengths: chuk beside mlx-lm, in
pairs.

    python benchmarks/sft.py [--steps 20] [--rounds 2] [--equal] [--stock]

Useful means not padding. 2,000 documents with log-normal lengths (median 150 tokens, at most
1,024), batch 8, rank 8 on all projections, a Llama of 7 million parameters, float32 on a CPU.
mlx-lm runs with the same fast BLAS as chuk, or with `--stock` as pip installs it; `--equal` makes
all documents 256 tokens long, where nothing is to be gained from order."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [
    "the",
    "small",
    "robot",
    "counts",
    "green",
    "doors",
    "while",
    "a",
    "teacher",
    "remembers",
    "paper",
    "boats",
]


def write_documents(folder: Path, equal: bool) -> None:
    """2,000 documents of words; a token is a character."""
    random = np.random.default_rng(0)
    lengths = (
        np.full(2000, 255)
        if equal
        else np.clip(random.lognormal(5.0, 1.0, 2000), 8, 1020).astype(int)
    )
    rows = []
    for length in lengths:
        text = " ".join(random.choice(WORDS, length // 2 + 1))[:length]
        rows.append(json.dumps({"text": text}) + "\n")
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(rows))
    (folder / "valid.jsonl").write_text("".join(rows[:8]))


def chuk(model: str, data: str, steps: int) -> dict[str, float]:
    """Useful tokens and seconds of `steps` steps after the first two."""
    from chuk_lib.training import SFTConfig, train_sft

    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            model=model,
            data=f"{data}/train.jsonl",
            output=f"{scratch}/run",
            max_steps=steps + 2,
            batch_size=8,
            use_lora=True,
            lora_target_modules=("all-linear",),
            learning_rate=1e-4,
            log_interval=1,
        )
        train_sft(
            config,
            sinks=[lambda event: records.append(event.data) if event.kind == "step" else None],
        )
    timed = records[2:]
    seconds = sum(record["seconds_per_step"] for record in timed)
    tokens = timed[-1]["num_tokens"] - records[1]["num_tokens"]
    return {
        "tokens": tokens,
        "seconds": seconds,
        "padding": statistics.mean(r["padding"] for r in timed),
    }


def mlx_lm(model: str, data: str, steps: int, stock: bool) -> dict[str, float]:
    """The same with mlx-lm's own trainer. Its count of tokens has one padding token a row too
    many."""
    if not stock:
        from chuk_lib.runtime import prepare

        prepare()
    import mlx.core as mx
    from mlx_lm import load, lora
    from mlx_lm.tuner.datasets import load_dataset

    mx.enable_compile()  # as mlx-lm runs
    reports: list[dict[str, Any]] = []

    class Callback:
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            reports.append(dict(info))

        def on_val_loss_report(self, info: dict[str, Any]) -> None:
            pass

    with tempfile.TemporaryDirectory() as scratch:
        options = lora.CONFIG_DEFAULTS | {
            "model": model,
            "train": True,
            "data": data,
            "iters": steps + 2,
            "batch_size": 8,
            "max_seq_length": 1024,
            "num_layers": -1,
            "steps_per_report": 1,
            "steps_per_eval": 10_000,
            "val_batches": 0,
            "adapter_path": scratch,
            "lora_parameters": {"rank": 8, "dropout": 0.0, "scale": 2.0},
            "learning_rate": 1e-4,
        }
        arguments = argparse.Namespace(**options)
        loaded, tokenizer = load(model)
        train_set, valid_set, _ = load_dataset(arguments, tokenizer)
        lora.train_model(arguments, loaded, train_set, valid_set, Callback())
    timed = reports[2:]
    seconds = sum(1 / report["iterations_per_second"] for report in timed)
    tokens = timed[-1]["trained_tokens"] - reports[1]["trained_tokens"] - 8 * len(timed)
    # + each row's first token, which is input only.
    return {
        "tokens": tokens + 8 * len(timed),
        "seconds": seconds,
    }


def run_apart(tool: str, model: Path, data: Path, options: argparse.Namespace) -> float:
    """One tool in a process of its own; useful tokens a second."""
    command = [sys.executable, __file__, "--tool", tool, "--model", str(model), "--data", str(data)]
    command += ["--steps", str(options.steps)] + ["--stock"] * options.stock
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return float(result["tokens"] / result["seconds"])


def main() -> None:
    """Run the pairs and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--equal", action="store_true")
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tool:
        work = chuk if options.tool == "chuk" else lambda *a: mlx_lm(*a, options.stock)
        print(json.dumps(work(options.model, options.data, options.steps)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        from chuk_lib.models import create_model

        model, data = create_model(options.preset, Path(scratch) / "model"), Path(scratch) / "data"
        write_documents(data, options.equal)
        ratios = []
        for _ in range(options.rounds):
            ours, theirs = (run_apart(tool, model, data, options) for tool in ("chuk", "mlx-lm"))
            ratios.append(ours / theirs)
            print(
                f"chuk {ours:8,.0f}   mlx-lm {theirs:8,.0f} useful tokens/s   ratio"
                f" {ratios[-1]:.2f}",
                flush=True,
            )
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
