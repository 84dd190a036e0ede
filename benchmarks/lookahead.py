"""CPU seconds of one answer with and without `--speculate auto`, by how much it repeats the prompt.

    python benchmarks/lookahead.py MODEL [--tokens 200] [--temperature 0]

Each answer is written twice by `stream` in one process, prompts left out; the tokens are
compared."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CODE = """def load_rows(path, limit=None):
    rows = []
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream):
            if limit is not None and number >= limit:
                break
            line = line.strip()
            if not line:
                continue
            name, value = line.split("=", 1)
            rows.append((name.strip(), value.strip()))
    return rows


def save_rows(path, rows):
    with open(path, "w", encoding="utf-8") as stream:
        for name, value in rows:
            stream.write(f"{name}={value}\\n")
"""
TEXT = (
    "The river rises in the northern hills and runs for eighty miles through farmland before it"
    " reaches the sea. In the spring it floods the meadows near the old mill, and the farmers move"
    " their cattle to higher ground. The town of Ashby was built where the river could be crossed,"
    " and its market has been held every Thursday since the thirteenth century. Today the mill is a"
    " museum, and the meadows are kept as a home for wading birds."
)
ANSWERS = {
    "text written again": (
        f"Write this text again, with every full stop replaced by an exclamation mark:\n{TEXT}",
        "The river rises in the northern hills",
    ),
    "code edited": (
        f"Rename `rows` to `pairs` in this code:\n```python\n{CODE}```",
        "```python\ndef load_pairs(path, limit=None):\n    pairs = []\n    with open(path,",
    ),
    "code documented": (
        f"Add a docstring to each function:\n```python\n{CODE}```",
        '```python\ndef load_rows(path, limit=None):\n    """Read the rows of a file."""\n    rows',
    ),
    "a list": ("List twenty animals, one a line, with a fact about each.", ""),
    "a story": ("Tell me a story about a dragon and a baker.", ""),
    "an explanation": ("Explain how photosynthesis works, step by step.", ""),
    "a letter": ("Write a letter to a friend about your holiday.", ""),
}
"""By name what is asked, and how the answer begins."""


def written(model: Any, tokenizer: Any, ids: list[int], config: Any, ahead: bool) -> Any:
    """The tokens of an answer, and CPU seconds after the first of them."""
    from chuk_lib.inference import stream

    chunks = stream(model, tokenizer, ids, config, speculate=ahead)
    tokens = [next(chunks).token]
    began = time.process_time()
    tokens += [chunk.token for chunk in chunks]
    return tokens, time.process_time() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    from chuk_lib.inference import SamplingConfig
    from chuk_lib.inference.prompts import encode_prompt
    from chuk_lib.models import load_model

    model, tokenizer = load_model(given.model)
    config = SamplingConfig(given.temperature, max_tokens=given.tokens, seed=given.seed)
    print(f"{'answer':20} {'tokens':>6} {'off':>8} {'auto':>8}  times  same")
    for name, (question, start) in ANSWERS.items():
        asked = [{"role": "user", "content": question}]
        if start:
            asked.append({"role": "assistant", "content": start})
        ids = encode_prompt(tokenizer, asked)
        (plain, off), (guessed, auto) = (
            written(model, tokenizer, ids, config, ahead) for ahead in (False, True)
        )
        print(
            f"{name:20} {len(plain):6} {len(plain) / off:8.1f} {len(plain) / auto:8.1f}"
            f"  {off / auto:5.2f}  {'yes' if plain == guessed else 'NO'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
