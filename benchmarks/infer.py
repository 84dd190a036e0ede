"""CPU seconds of many prompts: `chuk infer --input` beside one prompt at a time and mlx-lm's
`batch_generate`.

    python benchmarks/infer.py MODEL [--rows 100] [--tokens 24]

Greedy, the same prompts through the chat template, the same limit, on a CPU with the same BLAS.
Each way has a process of its own; loading the model is left out. The texts are compared with those
of one prompt at a time."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WAYS = ("rows of a file", "one at a time", "mlx_lm.batch_generate")
_SUBJECTS = (
    "rain",
    "bread",
    "the moon",
    "a bicycle",
    "salt",
    "music",
    "glass",
    "a river",
    "sleep",
    "paper",
)
_ASKS = (
    "What is {}?",
    "Write a sentence about {}.",
    "Why do people like {}?",
    "Name three facts about {}.",
    "Explain {} to a child.",
    "Where does {} come from?",
    "Tell me a very short story about {}.",
    "What is the opposite of {}, if anything?",
    "How would you draw {}?",
    "Give me a riddle about {}.",
)


def prompts(count: int) -> list[str]:
    """Different questions of different lengths."""
    return [
        _ASKS[n % 10].format(_SUBJECTS[n // 10 % 10]) + " Please." * (n // 100)
        for n in range(count)
    ]


def write(way: str, model: Any, tokenizer: Any, asked: list[str], tokens: int) -> list[str]:
    """The texts, made in one way."""
    from chuk_lib.inference import SamplingConfig, generate
    from chuk_lib.inference.batch import BatchSettings, answer_rows, read_rows
    from chuk_lib.inference.prompts import encode_prompt

    config = SamplingConfig(max_tokens=tokens)
    if way == "one at a time":
        return [generate(model, tokenizer, prompt, config).text for prompt in asked]
    if way == "rows of a file":
        found: list[str] = []
        lines = [json.dumps({"prompt": prompt}).encode() for prompt in asked]
        settings = BatchSettings(config)
        answer_rows(
            model, tokenizer, read_rows(lines), settings, lambda row: found.append(row["text"])
        )
        return found
    from mlx_lm import batch_generate

    ids = [encode_prompt(tokenizer, prompt) for prompt in asked]
    texts: list[str] = batch_generate(model, tokenizer, ids, max_tokens=tokens).texts
    return texts


def measured(way: str, source: str, rows: int, tokens: int) -> dict[str, Any]:
    """Seconds and texts of one way, in this process."""
    from chuk_lib.models import load_model
    from chuk_lib.runtime import prepare

    prepare()
    model, tokenizer = load_model(source, local_only=True)
    write(way, model, tokenizer, prompts(2), 2)
    began = time.process_time()
    texts = write(way, model, tokenizer, prompts(rows), tokens)
    return {"seconds": time.process_time() - began, "texts": texts}


def main() -> None:
    """Measure the ways and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measured(args.way, args.model, args.rows, args.tokens)))
        return
    found = {}
    for way in WAYS:
        command = [
            sys.executable,
            __file__,
            args.model,
            f"--rows={args.rows}",
            f"--tokens={args.tokens}",
        ]
        done = subprocess.run([*command, "--way", way], capture_output=True, text=True, check=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    alone, ours = found["one at a time"], found["rows of a file"]["seconds"]
    for way, result in found.items():
        same = sum(a == b for a, b in zip(result["texts"], alone["texts"], strict=True))
        by = f"{result['seconds'] / ours:.2f} × rows of a file"
        print(
            f"{way:<24} {result['seconds']:8.1f} CPU seconds, {by}, {same} of {args.rows} texts the"
            " same"
        )


if __name__ == "__main__":
    main()
