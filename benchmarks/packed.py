"""Rollouts of a 4-bit Llama on a CPU, three ways: `python benchmarks/packed.py [--shape 135M]
[--rounds 3]`.

    plain      the model is called and MLX multiplies packed weights
    by layer   the model is called and weights are unpacked for each product, as where memory is short
    unpacked   what `chuk` does: unpacked once for the call, then NumPy

8 rows of one prompt of 64 tokens, 16 new ones each, temperature 0, random weights in groups of 64,
each run in a process of its own and rounds alternate. A figure is new tokens by the seconds of the
whole call, unpacking and prefill included; all ways must write the same tokens. The peak is MLX's,
of the call."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SHAPES = {
    "28M": (512, 1792, 8, 8, 4, 1024),
    "135M": (576, 1536, 30, 9, 3, 49152),
    "1B": (2048, 8192, 16, 32, 8, 128_256),
}
WAYS = ("plain", "by layer", "unpacked")
ROWS, PROMPT = 8, 64


def packed_model(shape: str) -> Any:
    """A Llama of 4 bits whose likeliest token depends on what it has read."""
    import mlx.core as mx
    import mlx.nn as nn

    from benchmarks.rollouts import make_model

    model = make_model(SHAPES[shape])
    model.apply(lambda leaf: 2 * leaf if leaf.ndim > 1 else leaf)
    nn.quantize(model, group_size=64, bits=4)
    model.freeze()
    mx.eval(model.parameters())
    mx.clear_cache()
    mx.reset_peak_memory()
    return model


def run(way: str, shape: str, tokens: int) -> dict[str, Any]:
    """One call: tokens a second, the peak in GiB and what was written."""
    import mlx.core as mx

    from benchmarks.rollouts import Endless, make_prompts
    from chuk_lib.inference.config import SamplingConfig
    from chuk_lib.inference.decoder import unpacked
    from chuk_lib.inference.rollouts import rollouts
    from chuk_lib.runtime import cpu_packed, prepare

    prepare()
    model = packed_model(shape)
    if way == "plain":
        cpu_packed.LEAST_ROWS = 1 << 40
    if way != "unpacked":
        unpacked.MEMORY_SHARE = 0.0
    sampling = SamplingConfig(temperature=0.0, max_tokens=tokens, seed=0)
    prompts = make_prompts(1, PROMPT, SHAPES[shape][-1])
    began = time.perf_counter()
    rows = rollouts(model, Endless(), prompts, sampling, group_size=ROWS)
    seconds = time.perf_counter() - began
    ids = [row.ids.tolist() for row in rows]
    return {
        "speed": ROWS * tokens / seconds,
        "peak": mx.get_peak_memory() / 2**30,
        "ids": ids,
    }


def run_apart(way: str, shape: str, tokens: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--shape", shape, "--tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="135M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run(options.way, options.shape, options.tokens)))
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            found[way].append(run_apart(way, options.shape, options.tokens))
    print("| way | tokens/s | by plain | peak GiB |\n| --- | --- | --- | --- |")
    for way, runs in found.items():
        speeds = [one["speed"] for one in runs]
        ratios = [a / b["speed"] for a, b in zip(speeds, found["plain"], strict=True)]
        print(
            f"| {way} | {min(speeds):.1f} to {max(speeds):.1f} | {statistics.median(ratios):.1f}"
            f" ({min(ratios):.1f} to {max(ratios):.1f}) | {runs[0]['peak']:.2f} |"
        )
    texts = {json.dumps(one["ids"]) for runs in found.values() for one in runs}
    distinct = len({token for row in json.loads(min(texts)) for token in row})
    print(f"tokens: {'equal' if len(texts) == 1 else 'DIFFERENT'}, {distinct} distinct")


if __name__ == "__main__":
    main()
