"""How fast a model writes: prefill and decoding at given numbers of rows and lengths, beside what
reading its weights and caches from memory allows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.budget import token_bytes
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.rows import Request
from chuk_lib.inference.prompts import context_length
from chuk_lib.models.heads import embedding_rows
from chuk_lib.runtime import on_cpu
from chuk_lib.runtime.measure import read_bandwidth
from chuk_lib.runtime.memory_use import memory, reset_peak


@dataclass(frozen=True)
class DecodeSpeed:
    """Of `batch` rows after prompts of `context` tokens, all of unlike tokens. `prefill` and
    `decode`: tokens a second of all rows together. `limit`: what `decode` cannot exceed, because a
    step reads all weights and caches once. `together`: rows that did run
    at once. `memory_bytes`: the most that MLX held, on a CPU what the process had."""

    batch: int
    context: int
    prefill: float
    decode: float
    limit: float
    together: int
    memory_bytes: int

    @property
    def share(self) -> float:
        """`decode` by `limit`."""
        return self.decode / self.limit


class _Endless:
    """A tokenizer whose model never ends by itself."""

    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: LoadedTokenizer) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def measure(
    model: nn.Module,
    tokenizer: LoadedTokenizer,
    batches: Sequence[int],
    contexts: Sequence[int],
    tokens: int,
) -> Iterator[DecodeSpeed]:
    """The speed of each number of rows at each length, `tokens` written by each row. Raises
    ConfigError for numbers below 1 and for what does not fit the model's context."""
    _check(model, batches, contexts, tokens)
    bandwidth = read_bandwidth()
    for context in contexts:
        for batch in batches:
            yield _measured(model, tokenizer, batch, context, tokens, bandwidth)


def measure_mlx_lm(
    model: nn.Module, batches: Sequence[int], contexts: Sequence[int], tokens: int
) -> Iterator[tuple[float, float]]:
    """Prefill and decode of the same by MLX-LM's `BatchGenerator`, by its own clock."""
    for context in contexts:
        for batch in batches:
            yield _by_mlx_lm(model, _prompts(model, batch, context), tokens)


def _check(model: nn.Module, batches: Sequence[int], contexts: Sequence[int], tokens: int) -> None:
    for name, values in (("batch", batches), ("context", contexts), ("tokens", [tokens])):
        least = 2 if name == "tokens" else 1
        if not values or min(values) < least:
            raise ConfigError(f"{name} must be {least} or more")
    limit = context_length(model)
    if limit is not None and max(contexts) + tokens > limit:
        raise ConfigError(
            f"{max(contexts):,} tokens and {tokens:,} more do not fit: the model's context holds"
            f" {limit:,}",
            "give a shorter context",
        )


def _measured(
    model: nn.Module,
    tokenizer: LoadedTokenizer,
    batch: int,
    context: int,
    tokens: int,
    bandwidth: float,
) -> DecodeSpeed:
    config = SamplingConfig(max_tokens=tokens)
    with Decoder(model, _Endless(tokenizer), most_rows=batch) as decoder:
        warm = decoder.submit([Request(ids, config) for ids in _prompts(model, batch, 8)])
        for _ in range(3):
            decoder.step()
        for row in warm:
            decoder.cancel(row)
        reset_peak()
        rows = decoder.submit([Request(ids, config) for ids in _prompts(model, batch, context)])
        began = time.perf_counter()
        written = len(decoder.step().rows)
        first, steps = time.perf_counter() - began, 0
        together = written
        began = time.perf_counter()
        while decoder.busy and together == len(decoder.step().rows):
            steps += 1
        seconds = time.perf_counter() - began
        peak = memory()
        for row in rows:
            decoder.cancel(row)
    step = seconds / max(1, steps)
    return DecodeSpeed(
        batch,
        context,
        together * context / max(first - step, 1e-9),
        together / step,
        _limit(model, together, context + tokens // 2, bandwidth),
        together,
        peak.resident if on_cpu() else peak.peak,
    )


def _limit(model: nn.Module, rows: int, columns: int, bandwidth: float) -> float:
    read = _weight_bytes(model) + rows * columns * token_bytes(model)
    return bandwidth * rows / read


def _weight_bytes(model: nn.Module) -> int:
    """Bytes of weights that a step reads: all but an embedding that is not the head as well."""
    tied = not any(name == "lm_head" for name in model)
    return sum(
        leaf.nbytes
        for name, leaf in tree_flatten(model.parameters())
        if tied or "embed_tokens" not in name
    )


def _prompts(model: nn.Module, batch: int, context: int) -> list[list[int]]:
    """Tokens at random, the same each time."""
    ids = np.random.default_rng(0).integers(0, embedding_rows(model) or 256, (batch, context))
    return [row.tolist() for row in ids]


def _by_mlx_lm(model: nn.Module, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
    from mlx_lm.generate import BatchGenerator

    found = (0.0, 0.0)
    for length in (8, len(prompts[0])):  # the first time warms up
        generator = BatchGenerator(
            model, max_tokens=tokens, completion_batch_size=len(prompts), stop_tokens=[]
        )
        generator.insert([prompt[:length] for prompt in prompts], [tokens] * len(prompts))
        with generator.stats() as stats:
            while generator.next_generated():
                pass
        generator.close()
        mx.synchronize()
        found = (float(stats.prompt_tps), float(stats.generation_tps))
    return found
