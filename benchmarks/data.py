"""Rows a second and peak memory of every `chuk data` command that reads rows.

    python benchmarks/data.py --rows 10000 100000 200000 [--words 60] [--only dedupe]

Rows are chats of random words, one in twenty equal and one in twenty nearly equal to an earlier
one. Each command runs in a process of its own; its time includes starting Python. Seconds are those
of the processor, user and system together, so that a busy machine changes little; wall seconds
stand beside. Memory is the peak of the process."""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "stats": ["stats", "{}"],
    "convert": ["convert", "{}", "--to", "sharegpt", "-o", "out.jsonl"],
    "convert to Parquet": ["convert", "{}", "-o", "out.parquet"],
    "filter": ["filter", "{}", "--min-turns", "1", "--min-characters", "50", "-o", "out.jsonl"],
    "mix": ["mix", "{}", "-o", "out.jsonl"],
    "dedupe --exact": ["dedupe", "{}", "--exact", "-o", "out.jsonl"],
    "dedupe": ["dedupe", "{}", "-o", "out.jsonl"],
    "split": ["split", "{}", "-o", "parts"],
    "check --exact": ["check", "{}", "--exact", "--limit", "1"],
    "check": ["check", "{}", "--limit", "1"],
}


def write_rows(path: Path, count: int, words: int) -> None:
    """`count` chats of `words` words in two messages."""
    known = [f"word{number}" for number in range(20_000)]
    dice = random.Random(0)
    text: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            if number % 20 == 9:
                text = [*text[:-1], "other"]
            elif number % 20 != 19:
                text = dice.choices(known, k=words)
            ask, answer = " ".join(text[: words // 2]), " ".join(text[words // 2 :])
            turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns, "id": number}) + "\n")


def measure(words: list[str], folder: Path) -> tuple[float, float, float]:
    """Processor seconds, wall seconds and MiB of one command."""
    writes = words[0] not in ("stats", "check")
    command = [
        sys.executable,
        "-m",
        "chuk_cli",
        "data",
        *words,
        "--quiet",
        *(["--overwrite"] if writes else []),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    child = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (0, 1):
        raise SystemExit(f"chuk data {' '.join(words)} ended with {child.returncode}")
    return usage.ru_utime + usage.ru_stime, wall, _mebibytes(usage)


def _mebibytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 200_000])
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--only", default="", help="commands whose name begins like this")
    options = parser.parse_args()
    print(
        f"{'command':<20} {'rows':>9} {'CPU s':>7} {'wall s':>7} {'rows/CPU s':>10} {'peak MiB':>9}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in options.rows:
            write_rows(folder / f"{count}.jsonl", count, options.words)
        for label, words in COMMANDS.items():
            if not label.startswith(options.only):
                continue
            for count in options.rows:
                command = [word.replace("{}", f"{count}.jsonl") for word in words]
                cpu, wall, peak = measure(command, folder)
                figures = f"{cpu:>7.1f} {wall:>7.1f} {count / cpu:>10,.0f} {peak:>9.0f}"
                print(f"{label:<20} {count:>9,} {figures}", flush=True)


if __name__ == "__main__":
    main()
