"""Exact packing: documents that share a row must not see each other.

mlx-lm's models ask their cache for the attention mask. `SegmentCache` answers with a block-diagonal
causal mask and keeps nothing, so every architecture that attends through that protocol packs
exactly, without patching it. Rotary positions need no restart: attention depends on their
differences only."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.errors import ConfigError


class SegmentCache:
    """Looks like an empty KV cache; masks by document. `segment_ids` int32 (B, T), 0 on padding."""

    offset = 0

    def __init__(self, segment_ids: mx.array) -> None:
        self._segment_ids = segment_ids
        self._masks: dict[int | None, mx.array] = {}

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """Boolean mask (B, 1, T, T): same document, not later, and inside the window if there is
        one."""
        if window_size not in self._masks:
            ids = self._segment_ids
            rows, columns = mx.arange(length)[:, None], mx.arange(length)[None]
            causal = columns <= rows
            if window_size is not None:
                causal = causal & (rows < columns + window_size)
            same = ids[:, None, :, None] == ids[:, None, None, :]
            self._masks[window_size] = same & causal
        return self._masks[window_size]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Nothing is kept between calls: keys and values of this row only."""
        return keys, values


def segment_caches(model: nn.Module, segment_ids: mx.array) -> list[SegmentCache]:
    """One cache for each block of `model`, sharing their masks."""
    return [SegmentCache(segment_ids)] * len(model.layers)


def check_packable(model: nn.Module) -> None:
    """Raise ConfigError when packing would not be exact: recurrent layers, or learned absolute
    positions."""
    absolute = {"gpt2", "gpt_bigcode"}
    kinds = (
        {type(cache).__name__ for cache in model.make_cache()}
        if hasattr(model, "make_cache")
        else set()
    )
    recurrent = kinds - {"KVCache", "RotatingKVCache", "ChunkedKVCache"}
    kind = getattr(model, "model_type", "")
    if recurrent or kind in absolute:
        why = "keeps a state along the row" if recurrent else "has absolute positions"
        raise ConfigError(
            f"packing is not exact for `{kind}`: it {why}",
            "leave packing off: rows of similar length share batches, which also saves padding",
        )
