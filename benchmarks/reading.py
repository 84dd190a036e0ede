"""Megabytes a second and peak memory of `chuk data stats`, and of reading alone, for each kind of
file.

    python benchmarks/reading.py [--megabytes 200]

Rows are chats of 90 random words. Seconds are those of the processor; memory is the peak of the
process. Megabytes are those of the rows as JSON lines, whatever the file has, so that kinds can be
compared."""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_MEASURE = """
import sys, time
sys.path.insert(0, {root!r})
began = time.process_time()
{work}
spent = time.process_time() - began
peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0] if sys.platform == "linux" else 0
print(spent, int(peak) / 1024)
"""
_READ = "from chuk_lib.data import read_records\nfor _ in read_records({path!r}): pass"
_STATS = """
from chuk_cli.__main__ import main
sys.argv = ["chuk", "data", "stats", {path!r}, "--quiet"]
try:
    main()
except SystemExit:
    pass
"""


def rows(megabytes: int) -> list[dict[str, Any]]:
    """Chats that are as many megabytes of JSON lines; every tenth has an emoji."""
    dice, known = random.Random(0), [f"word{number}" for number in range(20_000)]
    made, size = [], 0
    while size < megabytes * 1e6:
        ask, answer = " ".join(dice.choices(known, k=30)), " ".join(dice.choices(known, k=60))
        answer += " 👋" if len(made) % 10 == 0 else ""
        made.append(
            {
                "messages": [
                    {"role": "user", "content": ask},
                    {"role": "assistant", "content": answer},
                ]
            }
        )
        size += len(ask) + len(answer) + 90
    return made


def write_files(folder: Path, made: list[dict[str, Any]]) -> None:
    """The rows as every kind of file."""
    import csv

    import pyarrow as pa
    import pyarrow.parquet

    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    with gzip.open(folder / "rows.jsonl.gz", "wt", compresslevel=1, encoding="utf-8") as file:
        file.write(lines)
    (folder / "array.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    (folder / "pretty.json").write_text(
        json.dumps(made, ensure_ascii=False, indent=2), encoding="utf-8"
    )
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completion"])
        writer.writerows(
            [row["messages"][0]["content"], row["messages"][1]["content"]] for row in made
        )
    table = pa.Table.from_pylist(made).combine_chunks()
    pyarrow.parquet.write_table(table, folder / "rows.parquet", row_group_size=2**20)
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as stream,
    ):
        stream.write_table(table)


def measure(work: str) -> tuple[float, float]:
    """Processor seconds and MiB of some Python in a process of its own."""
    code = _MEASURE.format(root=str(ROOT), work=work)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=200)
    size = parser.parse_args().megabytes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, rows(size))
        print(
            f"{'file':<14} {'read MB/s':>9} {'s':>5} {'MiB':>5}   {'stats MB/s':>10} {'s':>5}"
            f" {'MiB':>5}"
        )
        for path in sorted(folder.iterdir()):
            figures = []
            for work in (_READ, _STATS):
                seconds, peak = measure(work.format(path=str(path)))
                figures += [size / seconds, seconds, peak]
            read, stats = (
                "{:>9.0f} {:>5.1f} {:>5.0f}".format(*part) for part in (figures[:3], figures[3:])
            )
            print(f"{path.name:<14} {read}    {stats}", flush=True)


if __name__ == "__main__":
    main()
