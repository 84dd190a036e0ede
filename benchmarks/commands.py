"""Training commands as a user types them, first step included, beside TRL with PEFT on the same
model and rows.

    python benchmarks/commands.py [--model billion|mini|FOLDER] [--only sft,dpo,grpo,ppo] [--full] [--steps 8]
                                  [--cards 1,2 [--grow]] [--trl PYTHON] [--json FILE]

For each command: seconds from its start to the first finished step, with `--cold` also with an
empty kernel cache (a CPU has none); then the median of the later steps, tokens a second of what
is trained, and MLX's peak. `--trl` names an interpreter that has TRL and PEFT (ppo has no peer
here); figures of both are taken one after the other on one machine. `billion` is a Llama of 1.2
billion random bfloat16 weights, `mini` one of 7 million. `--full` trains all weights instead of
adapters of rank 8 on all projections. `--cards` runs each command on so many GPUs (of a CPU: as so
many processes): all have the same rows in an update, as many as fill the largest number of cards,
and fewer cards accumulate more; the losses must then be the same, and are compared. With `--grow`
the update grows with the cards instead, and the losses are others."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
GIB = 1 << 30
WORDS = [
    "small",
    "robot",
    "counts",
    "green",
    "doors",
    "teacher",
    "paper",
    "boats",
    "river",
    "seven",
    "lamp",
    "stone",
    "over",
    "under",
    "again",
    "never",
]
REWARD = """
def even(completion_ids, **_):
    return [sum(token % 2 == 0 for token in ids) / max(1, len(ids)) for ids in completion_ids]
"""


@dataclass(frozen=True)
class Case:
    """Rows at once and how often, and tokens of a row or of a prompt and its completion."""

    rows: int
    accumulation: int
    prompt: int
    completion: int

    @property
    def tokens(self) -> int:
        """Of a row, prompt and completion."""
        return self.prompt + self.completion


BIG = {
    "sft": Case(8, 1, 0, 2048),
    "dpo": Case(8, 1, 512, 512),
    "grpo": Case(8, 8, 128, 256),
    "ppo": Case(8, 8, 128, 256),
}
SMALL = {
    "sft": Case(8, 1, 0, 128),
    "dpo": Case(4, 1, 64, 64),
    "grpo": Case(8, 4, 48, 32),
    "ppo": Case(8, 4, 48, 32),
}


def text(tokens: int, random: Any) -> str:
    """Words of about so many characters, which are tokens here."""
    found = ""
    while len(found) < tokens:
        found += str(random.choice(WORDS)) + " "
    return found[:tokens]


def write_data(folder: Path, algorithm: str, case: Case, steps: int) -> Path:
    """Rows of equal length, enough for all steps."""
    random, rows = np.random.default_rng(0), []
    for _ in range(case.rows * case.accumulation * steps):
        prompt, one, other = (
            text(n, random) for n in (case.prompt, case.completion, case.completion)
        )
        rows.append(
            {"sft": {"text": one}, "dpo": {"prompt": prompt, "chosen": one, "rejected": other}}.get(
                algorithm, {"prompt": prompt}
            )
        )
    path = folder / f"{algorithm}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(
    algorithm: str,
    case: Case,
    model: str,
    data: Path,
    output: Path,
    steps: int,
    full: bool,
    cards: int = 1,
) -> list[str]:
    """What a user would type."""
    words = [
        "train",
        algorithm,
        "--model",
        model,
        "--data",
        str(data),
        "--output",
        str(output),
        "--max-steps",
        str(steps),
        "--batch-size",
        str(case.rows),
        "--set",
        f"gradient_accumulation_steps={case.accumulation}",
        "--quiet",
        "--overwrite",
        "--set",
        "log_interval=1",
        "--set",
        "checkpoint_interval=100000",
    ]
    words += ["--nproc", str(cards)] if cards > 1 else []
    words += ["--max-length", str(case.tokens)] if algorithm == "sft" else []
    words += [] if full else ["--lora", "--set", "lora_target_modules=all-linear"]
    if algorithm in ("grpo", "ppo"):
        reward = data.parent / "reward.py"
        reward.write_text(REWARD)
        words += ["--reward", f"{reward}:even", "--set", f"max_completion_length={case.completion}"]
        words += ["--set", "num_generations=8"] if algorithm == "grpo" else []
    return words


def run_chuk(words: Sequence[str], output: Path, cache: Path) -> dict[str, float]:
    """Run it; seconds to the first finished step, a step, and the peak in GiB."""
    env = os.environ | {
        "CHUK_CACHE": str(cache),
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "chuk_cli", *words],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"chuk {' '.join(words)}\n{done.stderr[-3000:]}")
    events = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["kind"] == "step"]
    started = next(event["t"] for event in events if event["kind"] == "started")
    later = [event["data"]["seconds_per_step"] for event in steps[2:]]
    for event in events:
        if event["kind"] == "note":
            print("  note:", event["data"]["text"], flush=True)
    last = steps[-1]["data"]
    ready = max((path.stat().st_mtime for path in cache.glob("kernels/*/rehearsed-*")), default=0.0)
    missed = [path for path in cache.glob("kernels/*/**/*.ptx") if path.stat().st_mtime > ready]
    for path in missed:
        print("  met by the run first:", path.relative_to(cache), flush=True)
    return {
        "missed": len(missed),
        "rehearsed": max(0.0, ready - began),
        "loaded": started - began,
        "first": steps[0]["t"] - began,
        "second": steps[1]["data"]["seconds_per_step"],
        "step": statistics.median(later),
        "slowest": max(later),
        "loss": last["loss"],
        "peak": max(event["data"]["peak_memory_bytes"] for event in steps) / GIB,
        **{
            name: float(last[name])
            for name in ("rollout_seconds", "rollout_tokens_per_second", "communication_share")
            if name in last
        },
    }


TRL = """
import json, os, sys, tempfile, time
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
algorithm, model, data, rows, accumulation, tokens, completion, full, steps = json.loads(sys.argv[1])
cuda = torch.cuda.is_available()
sync = torch.cuda.synchronize if cuda else (lambda: None)
class Times(TrainerCallback):
    first, all = None, []
    def on_step_begin(self, *a, **k): sync(); self.began = time.time()
    def on_step_end(self, *a, **k):
        sync()
        self.all.append(time.time() - self.began)
        self.first = self.first or time.time()
times = Times()
peft = None if full else LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
common = dict(output_dir=tempfile.mkdtemp(), max_steps=steps, report_to=[], logging_steps=1, save_strategy="no",
              learning_rate=1e-5, bf16=cuda, use_cpu=not cuda, per_device_train_batch_size=rows,
              gradient_accumulation_steps=accumulation, gradient_checkpointing=False)
kind = torch.bfloat16 if cuda and not full else torch.float32
net = AutoModelForCausalLM.from_pretrained(model, dtype=kind, attn_implementation="sdpa")
tokenizer = AutoTokenizer.from_pretrained(model)
rows_of = load_dataset("json", data_files=data, split="train")
def even(completion_ids, **_): return [sum(t % 2 == 0 for t in ids) / max(1, len(ids)) for ids in completion_ids]
if algorithm == "grpo":
    from trl import GRPOConfig, GRPOTrainer
    args = GRPOConfig(num_generations=8, max_completion_length=completion, beta=0.0, **common)
    trainer = GRPOTrainer(model=net, reward_funcs=even, args=args, train_dataset=rows_of, processing_class=tokenizer,
                          peft_config=peft, callbacks=[times])
elif algorithm == "dpo":
    from trl import DPOConfig, DPOTrainer
    trainer = DPOTrainer(model=net, args=DPOConfig(max_length=tokens, **common), train_dataset=rows_of,
                         processing_class=tokenizer, peft_config=peft, callbacks=[times])
else:
    from trl import SFTConfig, SFTTrainer
    trainer = SFTTrainer(model=net, args=SFTConfig(max_length=tokens, **common), train_dataset=rows_of,
                         processing_class=tokenizer, peft_config=peft, callbacks=[times])
trainer.train()
later = sorted(times.all[2:])
peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
print("RESULT", json.dumps({"first": times.first, "step": later[len(later) // 2], "peak": peak}))
"""


def run_trl(
    python: str, algorithm: str, case: Case, model: str, data: Path, steps: int, full: bool
) -> dict[str, Any]:
    """The same with TRL."""
    values = [
        algorithm,
        model,
        str(data),
        case.rows,
        case.accumulation,
        case.tokens,
        case.completion,
        full,
        steps,
    ]
    began = time.time()
    done = subprocess.run(
        [python, "-c", TRL, json.dumps(values)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    if line is None:
        print(f"  TRL failed: {done.stderr[-600:]}", flush=True)
        return {}
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT"))
    return found | {"first": found["first"] - began}


def make_model(name: str, folder: Path) -> str:
    """A folder of a named size, or the one that was named."""
    from chuk_lib.models import create_model

    if name == "billion":
        from benchmarks.fit import make_model as make

        folder.mkdir()
        return str(make(folder))
    return str(create_model(name, folder)) if name in ("mini", "small", "base") else name


def on_cards(case: Case, cards: int, times: int) -> Case:
    """The case for so many cards, that run its rows `times` times before an update."""
    return replace(case, rows=case.rows * cards, accumulation=case.accumulation * times)


def measure_cards(
    algorithm: str, case: Case, model: str, scratch: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """The command on each number of cards; prints their lines and what more cards bring."""
    counts = [int(word) for word in options.cards.split(",")]
    most, kind = max(counts), "full" if options.full else "LoRA"
    data = write_data(scratch, algorithm, on_cards(case, 1, most), options.steps)
    cache = options.cache or scratch / f"cache-{algorithm}"
    found: dict[str, Any] = {}
    for cards in counts:
        mine, run = on_cards(case, cards, 1 if options.grow else most // cards), scratch / "run"
        words = command(algorithm, mine, model, data, run, options.steps, options.full, cards)
        name = f"{algorithm} {kind} x {cards}"
        found[name] = run_chuk(words, run, cache)
        show(name, found[name], mine)
        pace = found[name]["step"] / (mine.rows * mine.accumulation)
        first = found.setdefault("first", {"pace": pace, "loss": found[name]["loss"]})
        loss = abs(found[name]["loss"] - first["loss"])
        print(f"  {first['pace'] / pace:.2f} times {counts[0]}; loss {loss:.1e} off", flush=True)
    return {name: figures for name, figures in found.items() if name != "first"}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="billion")
    parser.add_argument("--only", default="sft,dpo,grpo,ppo")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--trl", metavar="PYTHON")
    parser.add_argument("--trl-steps", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="also with an empty kernel cache")
    parser.add_argument("--cache", type=Path, help="the kernel cache of the warm runs")
    parser.add_argument("--cards", metavar="N,N", help="numbers of GPUs to compare")
    parser.add_argument("--grow", action="store_true", help="more cards take more rows")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = make_model(options.model, scratch / "model")
        weights = sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))
        cases = BIG if weights > GIB else SMALL
        for algorithm in options.only.split(","):
            if options.cards:
                found |= measure_cards(algorithm, cases[algorithm], model, scratch, options)
                continue
            case, cache = cases[algorithm], options.cache or scratch / f"cache-{algorithm}"
            data = write_data(scratch, algorithm, case, max(options.steps, options.trl_steps))
            words = command(
                algorithm, case, model, data, scratch / "run", options.steps, options.full
            )
            if options.cold:
                few = command(algorithm, case, model, data, scratch / "run", 3, options.full)
                found[f"{algorithm} cold"] = run_chuk(few, scratch / "run", cache)
                show(f"chuk train {algorithm}, cold", found[f"{algorithm} cold"], case)
            found[algorithm] = run_chuk(words, scratch / "run", cache)
            show(f"chuk train {algorithm}", found[algorithm], case)
            if options.trl and algorithm != "ppo":
                found[f"{algorithm} TRL"] = run_trl(
                    options.trl, algorithm, case, model, data, options.trl_steps, options.full
                )
                show(f"TRL {algorithm}", found[f"{algorithm} TRL"], case)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def show(name: str, figures: dict[str, Any], case: Case) -> None:
    """One line."""
    if not figures:
        return
    rows = case.rows * case.accumulation
    tokens = rows * case.tokens * (2 if "dpo" in name else 1) / figures["step"]
    more = "  ".join(
        f"{key} {figures[key]:.4g}" for key in figures if key not in ("first", "step", "peak")
    )
    print(
        f"{name:26s} first step after {figures['first']:6.1f} s  {figures['step']:.3f} s a step  "
        f"{tokens:9,.0f} tokens/s  peak {figures['peak']:5.1f} GiB  {more}",
        flush=True,
    )


if __name__ == "__main__":
    main()
