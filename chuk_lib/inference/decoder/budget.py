"""How many rows decode together: rows × columns of cache stay within a budget of tokens.

The default budget takes half of the memory that is free for the cache of keys and values: what a
token costs is measured on the model itself. On a GPU some of what is free is left alone, for what
else a step needs and, on a Mac, for others who share it. A batch has `MOST_ROWS` rows at most; more
gain nothing there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.inference.decoder.unpacked import unpacks
from chuk_lib.runtime.device import current_backend, on_cpu
from chuk_lib.runtime.memory_use import device_memory, set_memory_limit

MOST_ROWS = {"cpu": 64, "metal": 128, "cuda": 512}
MEMORY_SHARE = 0.5
_KEPT_BACK = 0.1
_STATE_TOKENS = 64
_LEAST_MEMORY = 1 << 28
_BESIDE_CACHE = 2 << 30
"""Bytes for prompts while they run, logits and joined weights."""


class Budget:
    """`tokens`: rows × columns at most. `most_rows`: rows at most, beside what the device can
    use."""

    def __init__(self, tokens: int, most_rows: int | None = None) -> None:
        self.tokens = tokens
        self._most_rows = min(MOST_ROWS[current_backend()], most_rows or 1 << 30)

    def fits(self, rows: int, columns: int) -> bool:
        """Whether so many rows may run, the longest of which may have so many columns. One row
        always may."""
        return rows == 1 or (rows <= self._most_rows and rows * columns <= self.tokens)


def default_token_budget(model: nn.Module) -> int:
    """Tokens of cache that `MEMORY_SHARE` of the free memory holds, beside unpacked weights."""
    free = max(_LEAST_MEMORY, _free_bytes() - unpacks(model))
    return max(1, int(MEMORY_SHARE * free) // token_bytes(model))


@contextmanager
def limited(bytes_each: Callable[[], int], tokens: int) -> Iterator[None]:
    """On CUDA MLX's memory limit becomes what rollouts with so many tokens of cache, of
    `bytes_each()`, need, unless it is less already: the evaluator would run ahead of prompts into
    all the memory there is. The cache is there up to three times, while rows join or leave."""
    if current_backend() != "cuda":
        yield
        return
    before = set_memory_limit(1 << 40)
    set_memory_limit(
        min(before, int(mx.get_active_memory()) + 3 * tokens * bytes_each() + _BESIDE_CACHE)
    )
    try:
        yield
    finally:
        set_memory_limit(before)


def token_bytes(model: nn.Module) -> int:
    """Bytes that one more token takes in the model's caches, at least 1. A layer whose state has a
    fixed size counts with a 64th of it. Nothing is computed: the shapes are enough."""
    from mlx_lm.models.cache import make_prompt_cache

    caches = make_prompt_cache(model)
    model(mx.array([[1]]), cache=caches)
    return max(1, sum(_bytes(cache) for cache in caches))


def _bytes(cache: Any) -> int:
    inner = getattr(cache, "caches", None)  # a list of caches
    if inner is not None:
        return sum(_bytes(part) for part in inner)
    keys, values = getattr(cache, "keys", None), getattr(cache, "values", None)
    if isinstance(keys, mx.array) and isinstance(values, mx.array):
        return int(keys.nbytes // keys.shape[2] + values.nbytes // values.shape[2])
    return int(cache.nbytes) // _STATE_TOKENS


def _free_bytes() -> int:
    memory = device_memory()
    kept_back = 0.0 if on_cpu() else _KEPT_BACK * memory.total
    return max(_LEAST_MEMORY, int(memory.free - kept_back))
