"""Runs that are killed, meet full disks and lose checkpoints, again and again; none may lose or
change a bit.

    python benchmarks/faults.py --kills 200 --disks 20 --corruptions 100 [--minutes 30] [--seed 0]

An undisturbed run keeps a checkpoint every few steps. After each fault the newest valid checkpoint
must be that run's at the same step, bit for bit, and no older than the last one seen; every run
that reaches its end must end alike. Prints a table and exits with 1 on any loss. Full disks need a
Linux that lets this user mount a tmpfs."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chuk_lib.errors import ModelError
from chuk_lib.events import read_events
from chuk_lib.models import create_model
from chuk_lib.training import SFTConfig, resume, train_sft
from chuk_lib.training.checkpoints import list_checkpoints, newest_valid, verify_checkpoint

STEPS, INTERVAL = 180, 3
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Tally:
    """What one kind of fault came to. `losses` are sentences."""

    name: str
    faults: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> str:
        """A line of the table."""
        notes = ", ".join(f"{count} {what}" for what, count in sorted(self.notes.items()))
        return (
            f"{self.name:<12} {self.faults:>6} {len(self.losses):>7} {self.seconds:>8.0f}  {notes}"
        )


class Bench:
    """A folder with a model, data and the undisturbed run, and how to compare with it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.model = create_model("nano", folder / "model")
        self.data = folder / "train.jsonl"
        rows = [
            {"prompt": f"{n} plus {n + 1} is ", "completion": f"{2 * n + 1}."} for n in range(61)
        ]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.whole = train_sft(self.config(folder / "whole")).run_dir

    def config(self, output: Path) -> SFTConfig:
        """The settings of all runs."""
        return SFTConfig(
            model=str(self.model),
            data=str(self.data),
            output=str(output),
            max_steps=STEPS,
            batch_size=4,
            learning_rate=3e-3,
            log_interval=1,
            checkpoint_interval=INTERVAL,
        )

    def start(self, run: Path) -> subprocess.Popen[bytes]:
        """Begin or go on with a run in a process of its own; it writes to `run.out` beside the
        run."""
        if (run / "config.yaml").exists():
            words = ["resume", str(run)]
        else:
            config = self.config(run)
            named = {
                "model": config.model,
                "data": config.data,
                "output": config.output,
                "max_steps": STEPS,
                "batch_size": config.batch_size,
                "learning_rate": config.learning_rate,
                "log_interval": 1,
                "checkpoint_interval": INTERVAL,
                "keep_checkpoints": 4,
            }
            words = [
                "sft",
                *(f"--set={name}={value}" for name, value in named.items()),
                "--overwrite",
            ]
        with self.output_of(run).open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "chuk_cli", "train", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )

    def output_of(self, run: Path) -> Path:
        """Where the process of a run writes."""
        return self.folder / f"{run.name}.out"

    def check(self, run: Path, at_least: int, tally: Tally, what: str) -> int:
        """The step of the newest valid checkpoint, 0 without one; notes what is lost, changed or
        said badly."""
        try:
            found = newest_valid(
                run, lambda text: tally.notes.update(["damaged checkpoints passed over"])
            )
        except ModelError:
            found = None
        step = found.step if found else 0
        if step < at_least:
            tally.losses.append(f"{what}: step {step} left of {at_least}")
        if found and self.files(found.folder) != self.files(
            self.whole / "checkpoints" / found.folder.name
        ):
            tally.losses.append(
                f"{what}: the checkpoint of step {step} is not that of the undisturbed run"
            )
        told = self.output_of(run)
        if told.exists() and b"Traceback" in told.read_bytes():
            tally.losses.append(f"{what}: a traceback in {told}")
        return step

    def files(self, checkpoint: Path) -> dict[str, bytes]:
        """The weights and moments of a checkpoint."""
        return {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}

    def check_end(self, run: Path, tally: Tally, what: str) -> None:
        """A run that says it is done must be at its last step, and its log must name every step
        once."""
        self.check(run, STEPS, tally, what)
        logged = [event.step for event in read_events(run / "events.jsonl") if event.kind == "step"]
        if logged != list(range(1, STEPS + 1)):
            tally.losses.append(f"{what}: the log does not hold every step once")
        tally.notes["runs to the end"] += 1


def kill(bench: Bench, faults: int, deadline: float) -> Tally:
    """Kill -9 at a random moment, most of them while steps and checkpoints are made, and go on."""
    tally, run, reached = Tally("kill -9"), bench.folder / "killed", 0
    while tally.faults < faults and time.monotonic() < deadline:
        process = bench.start(run)
        if bench.random.random() < 0.9:
            wait_for_steps(run, process)
            delay = bench.random.uniform(0, 1.0)
        else:
            delay = bench.random.uniform(0, 1.5)
        try:
            code = process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            tally.faults += 1
            tally.notes["while writing a checkpoint"] += any(
                (run / "checkpoints").glob(".partial-*")
            )
            reached = bench.check(run, reached, tally, f"kill {tally.faults}")
            tally.notes["before the first checkpoint"] += not reached
            continue
        if code:
            tally.losses.append(f"exit code {code}: {bench.output_of(run).read_text()[-300:]}")
            break
        bench.check_end(run, tally, f"after kill {tally.faults}")
        shutil.rmtree(run)
        reached = 0
    return tally


def wait_for_steps(run: Path, process: subprocess.Popen[bytes]) -> None:
    """Until this process has written its first event."""
    log = run / "events.jsonl"
    size = log.stat().st_size if log.exists() else 0
    while process.poll() is None and (not log.exists() or log.stat().st_size == size):
        time.sleep(0.002)


def fill_disk(bench: Bench, faults: int, deadline: float) -> Tally:
    """A disk that is full at a random moment; then there is room again."""
    tally = Tally("full disk")
    one = sum(path.stat().st_size for path in list_checkpoints(bench.whole)[-1].iterdir()) // 1024
    for number in range(1, faults + 1):
        if time.monotonic() > deadline:
            break
        disk = bench.folder / "disk"
        disk.mkdir()
        size = int(one * bench.random.uniform(0.05, 4.5))
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k", "chuk", str(disk)], check=False
        ).returncode:
            tally.notes["skipped: no tmpfs can be mounted here"] += 1
            disk.rmdir()
            break
        try:
            process = bench.start(disk / "run")
            code = process.wait(timeout=300)
            tally.faults += 1
            what = f"disk {number} of {size} KiB"
            if code != 1:
                tally.losses.append(f"{what}: exit code {code}")
            reached = bench.check(disk / "run", 0, tally, what)
            tally.notes["before the first checkpoint" if not reached else "later"] += 1
            subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
            if reached:
                resume(disk / "run")
                bench.check_end(disk / "run", tally, what)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
            disk.rmdir()
    return tally


def corrupt(bench: Bench, faults: int, deadline: float) -> Tally:
    """One or two of the newest checkpoints damaged in a random way."""
    tally = Tally("corruption")
    source = bench.folder / "last"
    shutil.copytree(bench.whole, source)
    for folder in list_checkpoints(source)[:-4]:
        shutil.rmtree(folder)
    for number in range(1, faults + 1):
        if time.monotonic() > deadline:
            break
        run = bench.folder / "corrupted"
        shutil.copytree(source, run)
        victims = list_checkpoints(run)[-bench.random.choice([1, 1, 2]) :]
        for victim in victims:
            name, damage = bench.random.choice(list(DAMAGES.items()))
            damage(victim, bench.random)
            tally.notes[name] += 1
        tally.faults += 1
        if resume(run).steps != STEPS:
            tally.losses.append(f"corruption {number}: did not reach the end")
        bench.check_end(run, tally, f"corruption {number}")
        bench_ok = [verify_checkpoint(folder).step for folder in list_checkpoints(run)][-1]
        if bench_ok != STEPS:
            tally.losses.append(f"corruption {number}: the last checkpoint is not whole")
        shutil.rmtree(run)
    return tally


def _pick(folder: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(path for path in folder.iterdir() if path.stat().st_size))


def _truncate(folder: Path, draw: random.Random) -> None:
    path = _pick(folder, draw)
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def _flip(folder: Path, draw: random.Random) -> None:
    path = _pick(folder, draw)
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _zero(folder: Path, draw: random.Random) -> None:
    """A block of zeros, what a file system leaves after a power cut."""
    path = _pick(folder, draw)
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content))
    block = content[start : start + 4096]
    content[start : start + 4096] = b"\0" * len(block) if any(block) else b"\1" * len(block)
    path.write_bytes(content)


def _half_copied(folder: Path, draw: random.Random) -> None:
    files = sorted(folder.iterdir())
    for path in files[draw.randrange(len(files)) :]:
        path.unlink()


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "truncated": _truncate,
    "bit flipped": _flip,
    "block zeroed": _zero,
    "file missing": lambda folder, draw: _pick(folder, draw).unlink(),
    "half copied": _half_copied,
    "folder empty": lambda folder, draw: [path.unlink() for path in folder.iterdir()],
}


def main() -> int:
    """Run all three kinds and print the table; 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--corruptions", type=int, default=100)
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="stop after this long, with what was done"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    deadline = time.monotonic() + 60 * given.minutes
    tallies = []
    with tempfile.TemporaryDirectory(prefix="chuk-faults-") as scratch:
        bench = Bench(Path(scratch).resolve(), given.seed)
        for inflict, faults in (
            (corrupt, given.corruptions),
            (fill_disk, given.disks),
            (kill, given.kills),
        ):
            began = time.monotonic()
            tallies.append(inflict(bench, faults, deadline))
            tallies[-1].seconds = time.monotonic() - began
    print(f"{'fault':<12} {'times':>6} {'losses':>7} {'seconds':>8}")
    for tally in tallies:
        print(tally.row())
    losses = [loss for tally in tallies for loss in tally.losses]
    print("\n".join(losses) if losses else "nothing lost, nothing changed")
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
