"""Do GRPO, PPO and DPO teach? Three models that get a third of small sums right, before and after 60 steps of each.

    python benchmarks/learning.py [--seeds 3] [--steps 60] [--only grpo,dpo]

Each seed makes its own problems (sums of 3-digit numbers, last digit first) and a model of 100 thousand parameters,
which learns from worked examples until it gets a third of 250 problems right, and there it stops. From that one model
GRPO and PPO go on with nothing but the reward exact_match, DPO with pairs of the right answer and a wrong one that the
model itself wrote. What is measured is held out from all of it: 1,000 problems answered greedily, and for DPO the share
of pairs, made of those problems, of which the right answer is the likelier one. Intervals are paired bootstraps over
the problems. Fails when one reaches below a gain of 10 points, for DPO of 5.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chuk_lib.data import PairDataset, PromptDataset, SFTDataset
from chuk_lib.data.generators import MathProblemGenerator
from chuk_lib.data.generators.rows import to_row
from chuk_lib.inference import SamplingConfig
from chuk_lib.inference.rollouts import rollouts
from chuk_lib.models import create_model, load_model
from chuk_lib.training import (
    DPOConfig,
    GRPOConfig,
    GRPOTrainer,
    PPOConfig,
    PPOTrainer,
    PreferenceTrainer,
    SFTConfig,
    SFTTrainer,
)
from chuk_lib.training.measuring.bootstrap import Difference, paired_difference
from chuk_lib.training.measuring.exact_match import exact_match
from chuk_lib.training.utils.completion_log_probs import Shapes, row_stats

GAINS = {"grpo": 0.1, "ppo": 0.1, "dpo": 0.05}
"""What the lower end of the interval must reach; for DPO there is less above the beginning."""
PAIRED = 6_000
"""Problems that DPO's pairs are made of."""
GOAL = 1 / 3
HELD_OUT, WATCHED = 1_000, 250
ROLLOUTS: dict[str, Any] = {
    "rewards": ("exact_match",), "batch_size": 256, "gradient_accumulation_steps": 1, "max_completion_length": 6,
    "temperature": 1.0,
}  # fmt: skip
UPDATES: dict[str, Any] = {
    "learning_rate": 2e-3, "lr_scheduler_type": "cosine", "warmup_steps": 5, "adam_beta2": 0.99,
    "checkpoint_interval": 10_000,
}  # fmt: skip


Rows = list[dict[str, Any]]


class Problems(NamedTuple):
    """Rows with prompt and completion, the held-out ones apart."""

    train: Rows
    test: Rows


class Gain(NamedTuple):
    """What an algorithm made of a model, and in how many seconds."""

    before: float
    after: float
    difference: Difference
    seconds: float


def make_problems(seed: int) -> Problems:
    """17,000 sums, of which the last 1,000 are held out."""
    samples = MathProblemGenerator(seed).generate_batch(17_000, (3, 3), ["addition"])
    rows = [to_row(sample, "completion", "numbers") for sample in samples]
    return Problems(rows[:-HELD_OUT], rows[-HELD_OUT:])


def make_pairs(model: nn.Module, tokenizer: Any, rows: Rows) -> Rows:
    """The right answer beside the first wrong one of four samples; nothing for a problem without a wrong one."""
    prompts = [row.ids for row in PromptDataset(rows, tokenizer)]
    config = SamplingConfig(temperature=1.0, max_tokens=ROLLOUTS["max_completion_length"], seed=1)
    wrong: dict[int, str] = {}
    for sample in rollouts(model, tokenizer, prompts, config, group_size=4):
        if sample.reason == "eos" and sample.text != rows[sample.prompt]["completion"]:
            wrong.setdefault(sample.prompt, sample.text)
    return [
        {"prompt": rows[index]["prompt"], "chosen": rows[index]["completion"], "rejected": text}
        for index, text in sorted(wrong.items())
    ]


def accuracy(model: nn.Module, tokenizer: Any, rows: Rows) -> np.ndarray:
    """1 where the greedy answer is right, float64 (rows,)."""
    answers = exact_match(model, tokenizer, SFTDataset(rows, tokenizer).examples)
    return np.array([answer.correct for answer in answers], np.float64)


def preference(model: nn.Module, tokenizer: Any, rows: Rows) -> np.ndarray:
    """1 where the chosen answer is likelier than the rejected one, float64 (rows,)."""
    pairs = PairDataset(rows, tokenizer).examples
    prompts = [pair.prompt.tolist() for pair in pairs]
    sides = ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    logps = [row_stats(model, prompts, side, 1.0, Shapes(256)).logps for side in sides]
    totals = [np.array([row.sum() for row in side]) for side in logps]
    return np.asarray(totals[0] > totals[1], np.float64)


def learn_a_third(folder: Path, problems: Problems, seed: int) -> tuple[Path, int]:
    """A model that gets about a third of the problems right, and the steps that it took."""
    model, tokenizer = load_model(create_model("micro", folder / "model", seed=seed))
    steps = 0

    def enough() -> bool:
        nonlocal steps
        steps += 1
        return steps % 5 == 0 and accuracy(model, tokenizer, problems.train[:WATCHED]).mean() >= GOAL

    config = SFTConfig(
        output=str(folder / "sft"), max_steps=2_000, batch_size=64, learning_rate=3e-3, adam_beta2=0.99,
        lr_scheduler_type="constant_with_warmup", warmup_steps=50, log_interval=1, checkpoint_interval=10_000,
        seed=seed,
    )  # fmt: skip
    result = SFTTrainer(model, tokenizer, config).train(
        SFTDataset(problems.train[WATCHED:], tokenizer), should_stop=enough
    )
    return result.run_dir, result.steps


def train(algorithm: str, model: nn.Module, tokenizer: Any, rows: Rows, shared: dict[str, Any]) -> None:
    """Train the model as it lies in memory: 512 answers a step for GRPO and PPO, 128 pairs for DPO."""
    if algorithm == "dpo":
        config = DPOConfig(**shared, batch_size=128, num_epochs=10, beta=0.5)
        pairs = make_pairs(model, tokenizer, rows[:PAIRED])
        PreferenceTrainer(model, tokenizer, config).train(PairDataset(pairs, tokenizer))
        return
    prompts = PromptDataset(rows, tokenizer)
    if algorithm == "grpo":
        grpo = GRPOConfig(**shared, **ROLLOUTS, num_generations=4, steps_per_generation=2)
        GRPOTrainer(model, tokenizer, grpo).train(prompts)
    else:
        halves = ROLLOUTS | {"gradient_accumulation_steps": 2}
        ppo = PPOConfig(**shared, **halves, num_mini_batches=2, num_ppo_epochs=2, kl_coef=0.01)
        PPOTrainer(model, tokenizer, ppo).train(prompts)


def gain(algorithm: str, folder: Path, start: Path, problems: Problems, seed: int, steps: int) -> Gain:
    """Held-out accuracy before and after an algorithm."""
    model, tokenizer = load_model(start)
    measure, rows = accuracy, problems.test
    if algorithm == "dpo":
        measure, rows = preference, make_pairs(model, tokenizer, problems.test)
    before = measure(model, tokenizer, rows)
    began = time.perf_counter()
    run = {"output": str(folder / algorithm), "max_steps": steps, "seed": seed}
    train(algorithm, model, tokenizer, problems.train, UPDATES | run)
    seconds = time.perf_counter() - began
    after = measure(model, tokenizer, rows)
    difference = paired_difference(after, before)
    assert difference is not None
    return Gain(float(before.mean()), float(after.mean()), difference, seconds)


def main() -> int:
    """Print the table; 1 when something did not learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", default=",".join(GAINS), help="grpo, ppo, dpo, with commas between")
    options = parser.parse_args()
    failed = 0
    print("| seed | algorithm | held-out before | after | difference, 95 % interval | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            problems = make_problems(seed)
            start, taken = learn_a_third(Path(scratch), problems, seed)
            print(f"seed {seed}: {taken} steps of supervised learning", file=sys.stderr)
            for algorithm in options.only.split(","):
                found = gain(algorithm, Path(scratch), start, problems, seed, options.steps)
                interval = found.difference
                failed += interval.low < GAINS[algorithm]
                print(
                    f"| {seed} | {algorithm} | {found.before:.1%} | {found.after:.1%} | {interval.difference:+.1%} "
                    f"({interval.low:+.1%} to {interval.high:+.1%}) | {found.seconds:.0f} |",
                    flush=True,
                )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
