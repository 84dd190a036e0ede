"""Several processes that train together, and what is done to them.

    python benchmarks/ranks.py [--times 20] [--only kill,first,launcher,hang,stop,port,data,disk]
    python benchmarks/ranks.py --exact [--ranks 2,3,4] [--steps 60]

Each fault hits a run of `chuk train sft --nproc 3` at a random moment. Within 15 s (after a hang:
of the watchdog) all its processes must be gone, the exit code must not be 0, one line must say who
failed, and the run must then be resumed to the weights of the undisturbed one, bit for bit.
`--exact` compares N processes with one for every algorithm: losses relatively, weights absolutely.
Prints tables and exits with 1 when anything is not so. Linux; full disks need a user who may mount
a tmpfs."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from chuk_lib.events import read_events
from chuk_lib.models import create_model
from chuk_lib.runtime.launcher import free_ports

ROOT = Path(__file__).resolve().parent.parent
STEPS, INTERVAL, RANKS, PATIENCE, WATCHDOG = 60, 5, 3, 15.0, 10.0
STOPPED = 128 + signal.SIGTERM
REWARD = """
def digits(completions, **kwargs):
    return [sum(c.isdigit() for c in text) + 0.1 * len(set(text)) for text in completions]
"""
ONLINE = ["--set", "max_completion_length=6", "--reward", "mine.py:digits"]
CASES = {
    "sft": ["sft", "--batch-size", "8"],
    "sft, accumulated": ["sft", "--batch-size", "5", "--gradient-accumulation-steps", "2"],
    "sft, LoRA, packed": ["sft", "--batch-size", "2", "--lora", "--packing", "--max-length", "64"],
    "dpo": ["dpo", "--batch-size", "5"],
    "kto": ["kto", "--batch-size", "5"],
    "orpo": ["orpo", "--batch-size", "5"],
    "cpo": ["cpo", "--batch-size", "5"],
    "reward": ["reward", "--batch-size", "3"],
    "grpo": ["grpo", "--batch-size", "8", "--num-generations", "4", *ONLINE],
    "ppo": ["ppo", "--batch-size", "6", "--set", "num_mini_batches=2", *ONLINE],
}


@dataclass
class Tally:
    """What one kind of fault came to; `wrong` are sentences."""

    name: str
    times: int = 0
    slowest: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Bench:
    """A folder with a model and rows for every algorithm."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.model = create_model("nano", folder / "model")
        sums = [(f"{n}+{n * 7 % 10}=", str(n + n * 7 % 10)) for n in range(61)]
        rows = {
            "sft": [{"prompt": a, "completion": b} for a, b in sums],
            "dpo": [{"prompt": a, "chosen": b, "rejected": f"{b} no"} for a, b in sums],
            "kto": [{"prompt": a, "completion": b, "label": len(b) > 1} for a, b in sums],
            "grpo": [{"prompt": a, "answer": b} for a, b in sums],
        }
        rows |= dict.fromkeys(("orpo", "cpo", "reward"), rows["dpo"]) | {"ppo": rows["grpo"]}
        for name, lines in rows.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{name}.jsonl").write_text(text)
        (folder / "mine.py").write_text(REWARD)

    def words(self, run: Path, algorithm: str, steps: int, *more: str) -> list[str]:
        """A training command."""
        data = self.folder / f"{algorithm}.jsonl"
        named = {"log_interval": 1, "checkpoint_interval": INTERVAL, "learning_rate": 1e-3}
        sets = [word for name, value in named.items() for word in ("--set", f"{name}={value}")]
        words = ["train", algorithm, "--model", str(self.model), "--data", str(data), *sets]
        return [*words, "--max-steps", str(steps), "--output", str(run), "--quiet", *more]

    def start(self, words: Sequence[str], **variables: str) -> subprocess.Popen[str]:
        """Begin a command in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "chuk_cli", *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables,
        )

    def run(self, words: Sequence[str]) -> None:
        """A command that must succeed."""
        process = self.start(words)
        said = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"chuk {' '.join(words)}\n{said}")


def members(session: int) -> list[int]:
    """The living processes of a session, without zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return sorted(found)


def children(pid: int) -> list[int]:
    """The ranks of a launcher, in their order."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_step(run: Path, process: subprocess.Popen[str], step: int) -> None:
    """Until the run has logged a step, or is over."""
    log, mark = run / "events.jsonl", f'"kind": "step", "step": {step},'
    while process.poll() is None and not (log.exists() and mark in log.read_text()):
        time.sleep(0.02)


def newest(run: Path) -> dict[str, bytes]:
    """The files of arrays of the newest checkpoint."""
    folder = max((run / "checkpoints").glob("step_*"))
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A folder that is soon full."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "chuk", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def ended(process: subprocess.Popen[str], patience: float, tally: Tally) -> str:
    """What a run that was hit says; everything about its end that is not as it must be is wrong."""
    began = time.monotonic()
    while members(process.pid) and time.monotonic() - began < patience:
        process.poll()
        time.sleep(0.02)
    tally.slowest = max(tally.slowest, time.monotonic() - began)
    if left := members(process.pid):
        tally.wrong.append(f"{len(left)} processes left after {patience:g} s")
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    said = process.communicate()[1]
    lines = [line for line in said.splitlines() if "error:" in line or "Timeout (" in line]
    if process.returncode == 0:
        tally.wrong.append("exit code 0")
    if "Traceback" in said or "\n[ring]" in f"\n{said}":
        tally.wrong.append(f"noise: {said[-200:]}")
    if len(lines) != 1 and process.returncode not in (-signal.SIGKILL, STOPPED):
        tally.wrong.append(f"{len(lines)} lines of error: {lines}")
    return said


def hit(bench: Bench, tally: Tally, whole: dict[str, bytes], strike: Callable[..., None]) -> None:
    """One fault at a random moment of a run, its end, and the way on."""
    run = bench.folder / "hit"
    shutil.rmtree(run, ignore_errors=True)
    more = ["--nproc", str(RANKS), "--comm-timeout", str(WATCHDOG)]
    process = bench.start(bench.words(run, "sft", STEPS, *more))
    wait_for_step(run, process, bench.random.randrange(1, STEPS - 10))
    if process.poll() is None:
        strike(process.pid, children(process.pid))
    ended(process, PATIENCE + WATCHDOG, tally)
    if not (run / "config.yaml").exists():
        raise SystemExit(f"it never began: {tally.wrong}")
    bench.run(["train", "resume", str(run), "--nproc", str(RANKS), "--quiet"])
    if newest(run) != whole:
        tally.wrong.append("resumed to other weights")


def strikes(bench: Bench) -> dict[str, Callable[[int, list[int]], None]]:
    """What is done to a launcher and its ranks."""
    return {
        "kill": lambda pid, ranks: os.kill(bench.random.choice(ranks[1:]), signal.SIGKILL),
        "first": lambda pid, ranks: os.kill(ranks[0], signal.SIGKILL),
        "launcher": lambda pid, ranks: os.kill(pid, signal.SIGKILL),
        "hang": lambda pid, ranks: os.kill(bench.random.choice(ranks), signal.SIGSTOP),
        "stop": lambda pid, ranks: os.kill(pid, signal.SIGTERM),
    }


def by_hand(
    bench: Bench, words: Sequence[Sequence[str]], ports: Sequence[int], tally: Tally
) -> None:
    """Ranks started one by one, as another launcher does: all must fail, and say why."""
    hosts = bench.folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    ranks = [
        bench.start(
            [*mine, "--comm-timeout", str(WATCHDOG)], MLX_RANK=str(rank), MLX_HOSTFILE=str(hosts)
        )
        for rank, mine in enumerate(words)
    ]
    began = time.monotonic()
    for process in ranks:
        ended(process, 60, tally)
    tally.slowest = max(tally.slowest, time.monotonic() - began)


def port_in_use(bench: Bench, tally: Tally) -> None:
    """Somebody listens where rank 1 wants to."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [*free_ports(1), taken.getsockname()[1]]
        words = bench.words(bench.folder / "port", "sft", 5)
        by_hand(bench, [words, words], ports, tally)


def other_data(bench: Bench, tally: Tally) -> None:
    """Rank 1 has rows, or a setting, of its own."""
    run = bench.folder / "data"
    shutil.rmtree(run, ignore_errors=True)
    words = bench.words(run, "sft", 5)
    other = list(words)
    if bench.random.random() < 0.5:
        other[other.index("--data") + 1] = str(bench.folder / "grpo.jsonl")
    else:
        other += ["--seed", "7"]
    by_hand(bench, [words, other], free_ports(2), tally)


def full_disk(bench: Bench, tally: Tally) -> None:
    """Rank 0 has no room for a checkpoint."""
    size = bench.random.randrange(300, 1500)
    with small_disk(bench.folder / "disk", f"{size}k") as disk:
        words = bench.words(disk / "run", "sft", STEPS, "--nproc", str(RANKS))
        ended(bench.start(words), 60, tally)


OTHERS = {"port": port_in_use, "data": other_data, "disk": full_disk}


def faults(bench: Bench, names: Sequence[str], times: int, minutes: float) -> list[Tally]:
    """Every kind so many times, or as often as fits its part of the minutes."""
    part = 60 * minutes / len(names)
    bench.run(bench.words(bench.folder / "whole", "sft", STEPS, "--nproc", str(RANKS)))
    whole, tallies = newest(bench.folder / "whole"), []
    for name in names:
        tallies.append(tally := Tally(name))
        until = time.monotonic() + part
        while tally.times < times and time.monotonic() < until:
            tally.times += 1
            if name in OTHERS:
                OTHERS[name](bench, tally)
            else:
                hit(bench, tally, whole, strikes(bench)[name])
        print(
            f"{name:<10} {tally.times:>4} times, {len(tally.wrong):>3} wrong, gone after at most"
            f" {tally.slowest:4.1f} s",
            *tally.wrong[:3],
            flush=True,
            sep="\n  " if tally.wrong else " ",
        )
    return tallies


def losses(run: Path) -> list[float]:
    """The loss of every step."""
    return [
        float(event.data["loss"])
        for event in read_events(run / "events.jsonl")
        if event.kind == "step"
    ]


def exact(bench: Bench, ranks: Sequence[int], steps: int, only: Sequence[str]) -> list[str]:
    """Every case with N processes beside one, and N again; returns what is wrong."""
    wrong = []
    for name, (algorithm, *more) in CASES.items():
        if only and algorithm not in only:
            continue
        runs = {count: bench.folder / f"{name}-{count}" for count in (1, *ranks, 0)}
        for count, run in runs.items():
            words = bench.words(run, algorithm, steps, *more)
            bench.run([*words, "--nproc", str(count or ranks[0])])
        alone, held = losses(runs[1]), arrays(runs[1])
        scale = max(map(abs, alone))
        for count in ranks:
            far = max(abs(a - b) for a, b in zip(alone, losses(runs[count]), strict=True)) / scale
            theirs = arrays(runs[count])
            weights = max(float(mx.abs(held[key] - theirs[key]).max()) for key in held)
            print(f"{name:<20} {count} to 1: losses {far:.1e}, weights {weights:.1e}", flush=True)
            if far > 1e-6:
                wrong.append(f"{name}: losses of {count} are {far:.1e} off")
        if newest(runs[0]) != newest(runs[ranks[0]]):
            wrong.append(f"{name}: two runs of {ranks[0]} differ")
    return wrong


def arrays(run: Path) -> dict[str, mx.array]:
    """The trained weights of the newest checkpoint."""
    folder = max((run / "checkpoints").glob("step_*"))
    held = {}
    for path in folder.glob("*.safetensors"):
        if not path.name.startswith("optimizer"):
            held |= mx.load(str(path))
    return held


def main() -> int:
    """Run what was asked for; 1 when anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=60.0, help="no longer than about this")
    parser.add_argument("--only", default="")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--ranks", default="2,3,4")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    only = [word for word in given.only.split(",") if word]
    with tempfile.TemporaryDirectory(prefix="chuk-ranks-") as scratch:
        bench = Bench(Path(scratch).resolve(), given.seed)
        if given.exact:
            ranks = [int(word) for word in given.ranks.split(",")]
            wrong = exact(bench, ranks, given.steps, only)
        else:
            names = only or [*strikes(bench), *OTHERS]
            wrong = [
                f"{t.name}: {w}"
                for t in faults(bench, names, given.times, given.minutes)
                for w in t.wrong
            ]
    print("\n".join(wrong) if wrong else "nothing wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
