"""Speed and memory of `chuk batch build`, beside `tokenizers` alone and beside Hugging Face
`datasets`, in one run.

    python benchmarks/batch.py [--mb 32] [--flat 8] [--text FILE.jsonl …] [--tokenizer DIR] [--datasets PYTHON]

The data is JSONL with a `text` column, log-normal lengths (median 1,200 characters), made of
sentences of the files given with `--text` (any JSONL; every string of their rows counts), of
`--text auto`: those in `real/data` of the temporary folder when there are any, else of chuk's own
math problems. Sentences come again, which favours whoever remembers words: give much text to see
less of that. Contestants, each a process of its own on the same cores:

  tokenizers   `encode_batch` on all cores, 1,000 texts at once, timed without reading and parsing
  chuk         `chuk batch build --kind pretrain --packing bfd_split`, everything from start to manifest
  datasets     `load_dataset`, `map` with 2 processes to token ids, `map` with 2 processes to packed rows, saved

`datasets` runs in the Python of `--datasets`, a virtual environment with `datasets` and
`transformers` (made with pip in /tmp when not given; `--datasets none` leaves it out). Memory is
the summed resident size of all processes of a build, seen 20 times a second. Limits: chuk at
least 0.8 times `tokenizers`, at least 1.5 times `datasets`, under 1 GB, and no more than 1.25
times the memory with `--mb` than with `--flat`. The CPU column tells work from waiting on a busy
machine; that of `tokenizers` counts encoding alone."""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(tempfile.gettempdir()) / "real"
LEAST_OF_TOKENIZERS, LEAST_OF_DATASETS, MOST_BYTES, MOST_GROWTH = 0.8, 1.5, 1 << 30, 1.25
MAX_LENGTH = 1024


def main() -> int:
    """Run all and print a table; 1 when a limit is broken."""
    options = _options()
    if options.only == "tokenizers":
        print(json.dumps(tokenizers_alone(options.data, options.tokenizer)))
        return 0
    if options.only == "datasets":
        print(json.dumps(with_datasets(options.data, options.tokenizer, options.scratch)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = options.tokenizer or str(_tokenizer(folder))
        data, small = folder / "data.jsonl", folder / "small.jsonl"
        write_data(data, options.mb, options.text)
        write_data(small, options.flat, options.text)
        rows = [
            {"name": "tokenizers", **_run(sys.executable, "tokenizers", data, tokenizer, scratch)}
        ]
        rows.append({"name": "chuk", **chuk(data, tokenizer, folder / "out")})
        flat = chuk(small, tokenizer, folder / "small")
        python = _datasets_python(options.datasets)
        if python:
            rows.append({"name": "datasets", **_run(python, "datasets", data, tokenizer, scratch)})
        return _report(rows, flat, data.stat().st_size, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=32, help="megabytes of JSONL")
    parser.add_argument(
        "--flat", type=int, default=8, help="megabytes of the run that memory is compared with"
    )
    parser.add_argument(
        "--text", nargs="*", default=["auto"], help="JSONL files to take sentences from"
    )
    parser.add_argument(
        "--tokenizer", help="folder with tokenizer.json; default: a real one, or one trained here"
    )
    parser.add_argument(
        "--datasets", default="auto", help="python with datasets and transformers, or none"
    )
    parser.add_argument("--only", choices=("tokenizers", "datasets"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_data(path: Path, megabytes: int, text: list[str]) -> None:
    """Documents of sentences in random order, with log-normal lengths. The same arguments make the
    same file."""
    sentences = list(_sentences(text))
    source = random.Random(0)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1_000_000:
            wanted, parts = min(40_000.0, source.lognormvariate(7.1, 1.0)), []
            while wanted > 0:
                parts.append(source.choice(sentences))
                wanted -= len(parts[-1])
            written += file.write(json.dumps({"text": " ".join(parts)}, ensure_ascii=False) + "\n")


def _sentences(text: list[str]) -> Iterator[str]:
    files = [Path(name) for name in text if name != "auto"]
    if "auto" in text:
        files += sorted((REAL / "data").glob("*.jsonl"))
    if not files:
        sys.path.insert(0, str(ROOT))
        from chuk_lib.data.generators import MathProblemGenerator

        for sample in MathProblemGenerator(0).generate_batch(20_000):
            yield f"{sample.problem.prompt} {sample.correct_response}"
    for file in files:
        for line in file.open(encoding="utf-8"):
            yield from (part for part in _strings(json.loads(line)) if len(part) > 20)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _tokenizer(folder: Path) -> Path:
    found = REAL / "smollm2-135m-instruct"
    if (found / "tokenizer.json").is_file():
        return found
    from chuk_lib.models import create_model

    return Path(create_model("nano", folder / "model", seed=0))


def tokenizers_alone(data: Path, tokenizer: str) -> dict[str, float]:
    """Seconds that the Rust tokenizer needs for all texts, on all cores."""
    from tokenizers import Tokenizer

    pipeline = Tokenizer.from_file(str(Path(tokenizer) / "tokenizer.json"))
    texts: list[str] = []
    spent = _Spent()
    with data.open(encoding="utf-8") as file:
        for line in file:
            texts.append(json.loads(line)["text"])
            if len(texts) == 1000:
                spent.encode(pipeline, texts)
                texts = []
    spent.encode(pipeline, texts)
    return {"seconds": spent.seconds, "cpu": spent.cpu, "tokens": spent.tokens}


class _Spent:
    """Time that went into encoding."""

    seconds = cpu = tokens = 0.0

    def encode(self, pipeline: Any, texts: list[str]) -> None:
        """Encode texts and add up."""
        began, began_cpu = time.perf_counter(), time.process_time()
        found = pipeline.encode_batch(texts)
        self.seconds += time.perf_counter() - began
        self.cpu += time.process_time() - began_cpu
        self.tokens += sum(map(len, found))


def with_datasets(data: Path, tokenizer: str, scratch: Path) -> dict[str, float]:
    """Seconds from the JSONL file to packed rows on disk, with two processes, as its documentation
    shows it."""
    os.environ.update(
        TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=str(scratch / "cache")
    )
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    began = time.perf_counter()
    made = AutoTokenizer.from_pretrained(tokenizer)
    loaded = datasets.load_dataset("json", data_files=str(data), split="train")
    end = made.eos_token or ""
    encoded = loaded.map(
        lambda rows: {
            "input_ids": (
                made([text + end for text in rows["text"]], return_attention_mask=False).input_ids
            )
        },
        batched=True,
        num_proc=2,
        remove_columns=["text"],
    )
    packed = encoded.map(_grouped, batched=True, num_proc=2)
    packed.save_to_disk(str(scratch / "packed"))
    seconds, cpu = (
        time.perf_counter() - began,
        _cpu(resource.RUSAGE_SELF) + _cpu(resource.RUSAGE_CHILDREN),
    )
    return {
        "seconds": seconds,
        "cpu": cpu,
        "tokens": float(sum(len(ids) for ids in packed["input_ids"])),
    }


def _cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _grouped(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """All ids of a thousand rows joined and cut every `MAX_LENGTH` tokens."""
    joined = [token for ids in rows["input_ids"] for token in ids]
    return {
        "input_ids": [
            joined[start : start + MAX_LENGTH] for start in range(0, len(joined), MAX_LENGTH)
        ]
    }


def chuk(data: Path, tokenizer: str, output: Path) -> dict[str, float]:
    """Seconds and peak memory of the command, start-up included."""
    command = [
        sys.executable,
        "-m",
        "chuk_cli",
        "batch",
        "build",
        "--data",
        str(data),
        "--model",
        tokenizer,
        "--output",
        str(output),
        "--kind",
        "pretrain",
        "--packing",
        "bfd_split",
        "--max-length",
        str(MAX_LENGTH),
        "--json",
    ]
    began, began_cpu = time.perf_counter(), _cpu(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    watch = _Memory(process.pid)
    answer, _ = process.communicate()
    seconds = time.perf_counter() - began
    found, cpu = json.loads(answer), _cpu(resource.RUSAGE_CHILDREN) - began_cpu
    shares = {"tokens": found["tokens"], "padding": found["padding"]}
    return {"seconds": seconds, "cpu": cpu, "memory": watch.stop(), **shares}


class _Memory(threading.Thread):
    """The largest resident size of a process and its children together, shared pages counted once a
    process."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._peak, self._running = pid, 0, True
        self.start()

    def run(self) -> None:
        """Look 20 times a second."""
        while self._running:
            self._peak = max(
                self._peak, sum(_resident(pid) for pid in [self._pid, *_children(self._pid)])
            )
            time.sleep(0.05)

    def stop(self) -> int:
        """The peak in bytes."""
        self._running = False
        self.join()
        return self._peak


def _children(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, listed) for found in (child, *_children(child))]


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _datasets_python(given: str) -> str | None:
    if given == "none":
        return None
    if given != "auto":
        return given
    home = Path(tempfile.gettempdir()) / "chuk-benchmark-datasets"
    python = home / "bin" / "python"
    if not python.is_file():
        print("installing datasets and transformers in", home, file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "datasets", "transformers"], check=True
        )
    return str(python)


def _run(python: str, name: str, data: Path, tokenizer: str, scratch: str) -> dict[str, float]:
    done = subprocess.run(
        [
            python,
            __file__,
            "--only",
            name,
            "--data",
            data,
            "--tokenizer",
            tokenizer,
            "--scratch",
            scratch,
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _report(
    rows: list[dict[str, Any]], flat: dict[str, float], size: int, options: argparse.Namespace
) -> int:
    by_name = {row["name"]: row for row in rows}
    ours = by_name["chuk"]
    print(f"{size / 1e6:,.0f} MB, {os.cpu_count()} cores\n")
    print(
        "| | seconds | CPU seconds | MB/s | tokens | chuk is |\n| --- | --- | --- | --- | --- |"
        " --- |"
    )
    for row in rows:
        seconds, times = row["seconds"], row["seconds"] / ours["seconds"]
        numbers = (
            f"{seconds:.1f} | {row['cpu']:.1f} | {size / 1e6 / seconds:.2f} | {row['tokens']:,.0f}"
        )
        print(f"| {row['name']} | {numbers} | {times:.2f} times as fast |")
    growth = ours["memory"] / flat["memory"]
    checks = [
        (
            "of tokenizers' speed",
            by_name["tokenizers"]["seconds"] / ours["seconds"],
            LEAST_OF_TOKENIZERS,
            True,
        ),
        ("peak memory, bytes", ours["memory"], MOST_BYTES, False),
        (f"peak memory, {options.mb} MB against {options.flat} MB", growth, MOST_GROWTH, False),
    ]
    if "datasets" in by_name:
        speed = by_name["datasets"]["seconds"] / ours["seconds"]
        checks.insert(1, ("of datasets' speed", speed, LEAST_OF_DATASETS, True))
    print(f"\npadding {100 * ours['padding']:.2f} %")
    failed = 0
    for name, value, limit, is_least in checks:
        good = value >= limit if is_least else value <= limit
        failed += not good
        shown = f"{value:,.0f}" if value > 1000 else f"{value:.2f}"
        print(
            f"{'ok  ' if good else 'MISS'}  {name}: {shown}"
            f" ({'at least' if is_least else 'at most'} {limit:,})"
        )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
