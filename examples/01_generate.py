"""Write text with a model: one answer as it comes, then several prompts at once.

    python examples/01_generate.py [MODEL]

MODEL is a folder, a run or a hub id such as Qwen/Qwen3-0.6B. Without it a tiny model with random
weights is made, and what it writes is noise."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from chuk_lib.inference import SamplingConfig, generate_many, stream
from chuk_lib.models import create_model, load_model

PROMPTS = ["What is the capital of Japan?", "Write one line about the sea.", "What is 2 + 3?"]


def main(source: str | Path) -> None:
    """Answer the first prompt as a stream, and all of them together."""
    model, tokenizer = load_model(source)
    greedy = SamplingConfig(max_tokens=40)
    for chunk in stream(model, tokenizer, PROMPTS[0], greedy):
        print(chunk.text, end="", flush=True)
    print("\n")

    # The same seed, the same answers.
    drawn = SamplingConfig(temperature=0.7, top_p=0.9, max_tokens=40, seed=1)
    for prompt, answer in zip(
        PROMPTS, generate_many(model, tokenizer, PROMPTS, drawn), strict=True
    ):
        print(
            f"{prompt} -> {answer.text!r} ({answer.generation_tokens} tokens, ended by"
            f" {answer.finish_reason})"
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else create_model("nano", Path(scratch) / "model"))
