"""Do GRPO, PPO and DPO teach as they come? Small models that get a third of a task right, before
and after each.

    python benchmarks/learning.py [--tasks reversal,extremes] [--seeds 3] [--steps 200] [--only grpo,ppo,dpo]

Each task and seed has rows of its own and a model of 100 thousand parameters, which learns from
worked examples until it gets a third of 250 of them right when it samples, and there it stops. From
that one model each algorithm goes on by the command that a user types, with nothing set but what it
has to be told: the reward, the length of an answer and the number of steps. DPO learns from what
`chuk data sample` finds: pairs of a right and a wrong answer that the model wrote itself.

Measured on 1,000 rows that are held out from all of it: greedy answers that are right, and for
DPO also the share of pairs, sampled from the same rows, of which the right answer is the
likelier one. Intervals are paired bootstraps over the rows. Fails when GRPO or PPO gains less
than 5 points at the lower end of its interval, and when DPO loses answers: a better order of
pairs can come with worse answers, which preference accuracy alone does not show."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chuk_lib.data import PairDataset, PromptDataset, SFTDataset
from chuk_lib.inference import SamplingConfig
from chuk_lib.inference.rollouts import rollouts
from chuk_lib.models import create_model, load_model
from chuk_lib.training import SFTConfig, SFTTrainer
from chuk_lib.training.measuring.bootstrap import Difference, paired_difference
from chuk_lib.training.utils.completion_log_probs import Shapes, row_stats

ROWS, HELD_OUT, WATCHED = 12_000, 1_000, 250
GOAL = 1 / 3
LENGTH = 10
"""Tokens of the longest answer."""
LEAST = {"grpo": 0.05, "ppo": 0.05, "dpo": -0.02}
"""What the lower end of the interval of exact match must reach."""
Rows = list[dict[str, str]]


def backwards(number: int) -> str:
    """A number with its last digit first, the order in which one adds by hand."""
    return str(number)[::-1]


def addition(random: Random) -> tuple[str, str]:
    """Sums of 3-digit numbers."""
    one, other = random.randrange(100, 1000), random.randrange(100, 1000)
    return f"{backwards(one)}+{backwards(other)}=", backwards(one + other)


def subtraction(random: Random) -> tuple[str, str]:
    """Differences of 3-digit numbers."""
    less, more = sorted(random.randrange(100, 1000) for _ in range(2))
    return f"{backwards(more)}-{backwards(less)}=", backwards(more - less)


def multiplication(random: Random) -> tuple[str, str]:
    """A digit times a number of 3 or 4 digits."""
    one, other = random.randrange(100, 10_000), random.randrange(2, 10)
    return f"{other}*{backwards(one)}=", backwards(one * other)


def sorting(random: Random) -> tuple[str, str]:
    """Six digits in order."""
    digits = [str(random.randrange(10)) for _ in range(6)]
    return "".join(digits) + ">", "".join(sorted(digits))


def reversal(random: Random) -> tuple[str, str]:
    """Six to nine letters from the last to the first."""
    letters = "".join(random.choice("abcdefgh") for _ in range(random.randrange(6, 10)))
    return f"{letters}|", letters[::-1]


def extremes(random: Random) -> tuple[str, str]:
    """The largest and the smallest of four numbers."""
    numbers = [random.randrange(10, 100) for _ in range(4)]
    return f"{','.join(map(str, numbers))}>", f"{max(numbers)}-{min(numbers)}"


TASKS: dict[str, Callable[[Random], tuple[str, str]]] = {
    made.__name__: made
    for made in (reversal, addition, extremes, subtraction, multiplication, sorting)
}
TUNED_ON = ("subtraction", "multiplication", "sorting")
"""Tasks that the defaults were chosen on; not among those that run unless they are named."""


class Gain(NamedTuple):
    """What became of a share."""

    before: float
    after: float
    difference: Difference

    def __str__(self) -> str:
        low, high = 100 * self.difference.low, 100 * self.difference.high
        return f"{self.before:.1%} to {self.after:.1%} ({low:+.1f} to {high:+.1f})"


def chuk(*words: str | Path) -> str:
    """Run a command of chuk as a user would; its standard output. Raises RuntimeError with what it
    said."""
    command = [sys.executable, "-m", "chuk_cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def write_rows(folder: Path, task: str, seed: int) -> Rows:
    """Rows of a task, no prompt twice, as train.jsonl, valid.jsonl and test.jsonl; returns those of
    training."""
    random, found = Random(f"{task} {seed}"), dict[str, str]()
    for _ in range(20 * ROWS):
        if len(found) == ROWS:
            break
        prompt, answer = TASKS[task](random)
        found.setdefault(prompt, answer)
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in found.items()]
    random.shuffle(rows)
    test, valid, train = (
        rows[:HELD_OUT],
        rows[HELD_OUT : HELD_OUT + WATCHED],
        rows[HELD_OUT + WATCHED :],
    )
    folder.mkdir()
    for name, part in (("train", train), ("valid", valid), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return train


def learn_a_third(folder: Path, rows: Rows, seed: int) -> Path:
    """A model that gets about a third of the validation rows right when it samples, as it will when
    it practises: its greedy answers are right much earlier, when nearly everything that it samples
    is still wrong."""
    model, tokenizer = load_model(create_model("micro", folder / "model", seed=seed))
    watched = [
        json.loads(line) for line in (folder / "data" / "valid.jsonl").read_text().splitlines()
    ]
    prompts = [row.ids for row in PromptDataset(watched, tokenizer)]
    sampling, steps = SamplingConfig(temperature=1.0, max_tokens=LENGTH, seed=1), 0

    def enough() -> bool:
        nonlocal steps
        steps += 1
        if steps % 10:
            return False
        written = rollouts(model, tokenizer, prompts, sampling, group_size=1)
        return sum(one.text == watched[one.prompt]["completion"] for one in written) >= GOAL * len(
            watched
        )

    config = SFTConfig(
        output=str(folder / "lesson"),
        max_steps=3_000,
        batch_size=64,
        learning_rate=1e-3,
        adam_beta2=0.99,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=50,
        checkpoint_interval=10_000,
        seed=seed,
    )
    result = SFTTrainer(model, tokenizer, config).train(
        SFTDataset(rows, tokenizer), should_stop=enough
    )
    if result.reason != "stopped":
        raise RuntimeError(f"a third was not reached in {result.steps} steps")
    return result.run_dir


def right(model: Path, data: Path) -> np.ndarray:
    """1 where the greedy answer of `chuk eval` is right, float64 (rows,)."""
    answers = model.with_name(f"{model.name}-answers.jsonl")
    chuk(
        "eval",
        "--model",
        model,
        "--data",
        data / "test.jsonl",
        "--output",
        answers,
        "--overwrite",
        "--quiet",
    )
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    return np.array([line["correct"] for line in lines], np.float64)


def preferred(path: Path, pairs: Path) -> np.ndarray:
    """1 where the chosen answer is likelier than the rejected one, float64 (pairs,)."""
    model, tokenizer = load_model(path)
    found = PairDataset(str(pairs), tokenizer).examples
    prompts = [pair.prompt.tolist() for pair in found]
    sides = ([pair.chosen for pair in found], [pair.rejected for pair in found])
    logps = [row_stats(model, prompts, side, 1.0, Shapes(256)).logps for side in sides]
    totals = [np.array([row.sum() for row in side]) for side in logps]
    return np.asarray(totals[0] > totals[1], np.float64)


def sample_pairs(start: Path, data: Path, split: str, rows: int) -> Path:
    """A right and a wrong answer of the model to each prompt that has both."""
    pairs = start.with_name(f"pairs-{split}.jsonl")
    if not pairs.exists():
        asked = [
            "--reward",
            "exact_match",
            "--max-tokens",
            str(LENGTH),
            "--rows",
            str(rows),
            "--batch",
            "256",
        ]
        wanted = ["--to", "preference", "--margin", "0.5", "--output", pairs, "--quiet"]
        chuk("data", "sample", data / f"{split}.jsonl", "--model", start, *asked, *wanted)
    return pairs


def train(algorithm: str, start: Path, data: Path, seed: int, steps: int) -> Path:
    """The run of the command, with nothing set that has a default."""
    run = start.with_name(algorithm)
    words = [
        "train",
        algorithm,
        "--model",
        start,
        "--max-steps",
        str(steps),
        "--seed",
        str(seed),
        "--output",
        run,
    ]
    if algorithm == "dpo":
        chuk(*words, "--data", sample_pairs(start, data, "train", 2_000), "--quiet")
    else:
        rewards = ["--reward", "exact_match", "--max-completion-length", str(LENGTH)]
        chuk(*words, *rewards, "--data", data / "train.jsonl", "--quiet")
    return run


def gain_of(before: np.ndarray, after: np.ndarray) -> Gain:
    """Means and the interval of their difference, row by row."""
    difference = paired_difference(after, before)
    assert difference is not None
    return Gain(float(before.mean()), float(after.mean()), difference)


def measure(task: str, seed: int, algorithms: list[str], steps: int) -> bool:
    """Print the lines of a task and seed; whether all reached what they must."""
    fine = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        start = learn_a_third(folder, write_rows(folder / "data", task, seed), seed)
        before = right(start, folder / "data")
        for algorithm in algorithms:
            began = time.perf_counter()
            run = train(algorithm, start, folder / "data", seed, steps)
            seconds = time.perf_counter() - began
            exact = gain_of(before, right(run, folder / "data"))
            order = "|"
            if algorithm == "dpo":
                pairs = sample_pairs(start, folder / "data", "test", HELD_OUT)
                order = f"{gain_of(preferred(start, pairs), preferred(run, pairs))} |"
            fine = fine and exact.difference.low >= LEAST[algorithm]
            print(
                f"| {task} | {seed} | {algorithm} | {exact} | {order} {seconds:.0f} |", flush=True
            )
    return fine


def main() -> int:
    """Print the table; 1 when something did not learn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = ",".join(name for name in TASKS if name not in TUNED_ON)
    parser.add_argument("--tasks", default=usual, help=f"of {', '.join(TASKS)}; default: {usual}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--only", default=",".join(LEAST), help="grpo, ppo, dpo, with commas between"
    )
    options = parser.parse_args()
    print("| task | seed | algorithm | exact match (95 %) | preference accuracy | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    cases: list[tuple[str, int]] = [
        (task, seed) for seed in range(options.seeds) for task in options.tasks.split(",")
    ]
    results: list[Any] = [
        measure(task, seed, options.only.split(","), options.steps) for task, seed in cases
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
