"""Training steps on a CPU: chuk beside PyTorch with a Hugging Face model, in pairs.

    python benchmarks/pytorch.py [--model FOLDER] [--lora] [--rows 8] [--tokens 128] [--steps 8] [--rounds 3]

The same model, rows of one length, AdamW, float32, both cores. PyTorch runs the bare loop
(scaled-dot-product attention, fused AdamW): no trainer around it. Without --model: a Llama of 7
million parameters."""

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

LEAST_RATIO = 0.8

TORCH = """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM
folder, rows, tokens, steps, lora = sys.argv[1], *map(int, sys.argv[2:6])
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").train()
if lora:
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
vocabulary = model.config.vocab_size
seconds = []
for _ in range(steps + 2):
    ids = torch.randint(4, min(vocabulary, 60), (rows, tokens))
    began = time.perf_counter()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds.append(time.perf_counter() - began)
print(json.dumps(seconds[2:]))
"""


def main() -> int:
    """Alternate the two, print a table; 1 when chuk is below the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(chuk(options)))
        return 0
    from benchmarks.peers import python_of
    from chuk_lib.models import create_model

    peer = python_of("trl")
    with tempfile.TemporaryDirectory() as name:
        options.model = options.model or str(create_model("mini", Path(name) / "model"))
        shape = [
            options.model,
            str(options.rows),
            str(options.tokens),
            str(options.steps),
            str(int(options.lora)),
        ]
        theirs, ours = [], []
        for _ in range(options.rounds):
            theirs.append(_seconds([peer, "-c", TORCH, *shape]))
            ours.append(_seconds([sys.executable, __file__, "--only", *_flags(options)]))
    return _report(options, ours, theirs)


def chuk(options: argparse.Namespace) -> list[float]:
    """Seconds of each step after the first two."""
    from chuk_lib.training import SFTConfig, train_sft

    random, seconds = np.random.default_rng(0), []

    def note(event: Any) -> None:
        if event.kind == "step":
            seconds.append(event.data["seconds_per_step"])

    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            {"input_ids": random.integers(4, 60, options.tokens).tolist()}
            for _ in range(options.rows * (options.steps + 2))
        ]
        data = Path(scratch) / "train.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings: dict[str, Any] = (
            {"use_lora": True, "lora_target_modules": ("all-linear",)} if options.lora else {}
        )
        config = SFTConfig(
            model=options.model,
            data=str(data),
            output=f"{scratch}/run",
            batch_size=options.rows,
            log_interval=1,
            max_steps=options.steps + 2,
            max_length=options.tokens,
            learning_rate=1e-5,
            **settings,
        )
        train_sft(config, sinks=[note])
    return seconds[2:]


def _flags(options: argparse.Namespace) -> list[str]:
    flags = ["--model", options.model, "--rows", str(options.rows), "--tokens", str(options.tokens)]
    return [*flags, "--steps", str(options.steps), *(["--lora"] if options.lora else [])]


def _seconds(command: list[str]) -> float:
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


def _report(options: argparse.Namespace, ours: list[float], theirs: list[float]) -> int:
    tokens = options.rows * options.tokens
    print("| round | PyTorch tokens/s | chuk tokens/s | ratio |\n| --- | --- | --- | --- |")
    for number, (our, their) in enumerate(zip(ours, theirs, strict=True), 1):
        print(f"| {number} | {tokens / their:,.0f} | {tokens / our:,.0f} | {their / our:.2f} |")
    ratio = statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
    print(f"\nmedian {ratio:.2f} of PyTorch (limit {LEAST_RATIO})")
    return int(ratio < LEAST_RATIO)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    sys.exit(main())
