"""CPU seconds to the first token of a long prompt: run whole, and gone on from `--cache FILE`.

    python benchmarks/prompt_cache.py MODEL [--tokens 1024] [--times 5]

All in one process; loading the model is left out. With the file: the fingerprint of the model, the
file, and the first token, each on its own."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    """Measure and print."""
    from chuk_cli.commands.infer import _cache
    from chuk_lib.inference import SamplingConfig, stream
    from chuk_lib.models import load_model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    text = Path(__file__).resolve().parent.parent.joinpath("README.md").read_text()
    ids = tokenizer.encode(text)[: options.tokens]
    config = SamplingConfig(max_tokens=2)

    def first(cache: Any = None) -> tuple[float, int]:
        """CPU seconds to the first token, and the token."""
        began = time.process_time()
        chunks = stream(model, tokenizer, ids, config, cache=cache)
        token = next(chunks).token
        seconds = time.process_time() - began
        chunks.close()
        return seconds, token

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompt.cache"
        made_with = (options.model, None, "auto")
        first(_cache(file, made_with, model))
        for _ in range(options.times):
            whole, token = first()
            began = time.process_time()
            cache = _cache(file, made_with, model)
            opening = time.process_time() - began
            answering, same = first(cache)
            assert (token, cache.reused) == (same, len(ids) - 1)
            rows.append((whole, opening, answering, (opening + answering) / whole))
        size = file.stat().st_size
    print(f"{len(ids)} tokens, a file of {size / 1e6:.0f} MB, medians of {options.times}")
    names = ("run whole", "open the file", "first token from it", "share")
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        print(f"{name:>20} {statistics.median(values):.4f} ({min(values):.4f}-{max(values):.4f})")


if __name__ == "__main__":
    main()
