"""Experts as the command trains them: 100,000 steps, several seeds, two cores.

    python benchmarks/experts.py [TASK …] [--seeds 0,1,2,3,4] [--folder FOLDER]

A row for each task: over the seeds, the mean return of the last 50 episodes of training, that of
100 greedy episodes of the best and of the final checkpoint, and steps in a second of CPU time, all
of the command's from its first import to its last checkpoint, with 20 evaluations, included."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CART, MASKED = ["--env", "gym:CartPole-v1"], ["--env", "gym:CartPole-v1", "--observe", "0,2"]
TASKS = {
    "mlp, CartPole-v1": ["--expert", "mlp", *CART],
    "mlp, without velocities": ["--expert", "mlp", *MASKED],
    "gru, without velocities": ["--expert", "gru", *MASKED],
    "lstm, without velocities": ["--expert", "lstm", *MASKED],
    "mlp, Pendulum-v1": [
        "--expert",
        "mlp",
        "--env",
        "gym:Pendulum-v1",
        "--gamma",
        "0.95",
        "--num-steps",
        "64",
        "--num-epochs",
        "10",
        "--set",
        "lam=0.95",
        "--set",
        "num_mini_batches=4",
    ],
}
CHUK = [sys.executable, "-m", "chuk_cli"]


def main() -> None:
    """Train, play and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", default=list(TASKS), help="; ".join(TASKS))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chuk-experts-"))
    for task in given.tasks:
        rows = []
        for seed in given.seeds.split(","):
            rows.append(measure(task, seed, folder))
            print(json.dumps({"task": task, "seed": int(seed)} | rows[-1]), flush=True)
        print(
            f"| {task} | "
            + " | ".join(spread([row[name] for row in rows]) for name in rows[0])
            + " |",
            flush=True,
        )


def measure(task: str, seed: str, folder: Path) -> dict[str, float]:
    """One run of the command, and its checkpoints played."""
    run = folder / f"{task.replace(', ', '-').replace(' ', '-')}-{seed}"
    before = cpu_seconds()
    command = [
        *CHUK,
        "train",
        "ppo",
        *TASKS[task],
        "--seed",
        seed,
        "-o",
        str(run),
        "--overwrite",
        "-q",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = cpu_seconds() - before
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    last = [event["data"] for event in events if event["kind"] == "step"][-1]
    return {
        "last 50": round(last["reward"], 2),
        "best, greedy": greedy(run),
        "final, greedy": greedy(run / "checkpoints" / (run / "latest").read_text().strip()),
        "steps a CPU second": round(last["num_env_steps"] / seconds),
    }


def greedy(path: Path) -> float:
    """The mean of 100 greedy episodes with seeds that no evaluation had."""
    command = [*CHUK, "experts", "run", str(path), "--episodes", "100", "--seed", "12345", "--json"]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return round(float(json.loads(found.stdout)["mean"]), 2)


def cpu_seconds() -> float:
    """Of the processes that have ended."""
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


def spread(values: list[float]) -> str:
    """Every value, and the mean."""
    return f"{', '.join(f'{value:g}' for value in values)} (mean {np.mean(values):.4g})"


if __name__ == "__main__":
    main()
