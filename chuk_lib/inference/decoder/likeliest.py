"""The likeliest tokens at the place of one that is drawn, of the same step: what OpenAI calls
`top_logprobs`. Log-probs are those of softmax(logits / temperature), before any filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

MOST = 20
"""So many are kept of each row as soon as one row wants any."""


class Likeliest(NamedTuple):
    """`ids` and `logps` (B, MOST), or as many as the vocabulary has, likeliest first; NumPy or
    MLX. What rows that want none have in them is anything."""

    ids: Any
    logps: Any

    def keep(self, rows: Any) -> Likeliest:
        """Those of these rows."""
        return Likeliest(self.ids[rows], self.logps[rows])

    def read(self) -> Likeliest:
        """In NumPy."""
        return Likeliest(np.array(self.ids), np.array(self.logps))


def likeliest(logits: Any, temperatures: np.ndarray, wanted: np.ndarray) -> Likeliest:
    """Of logits (B, V), which stay as they are, for rows of these `temperatures` (B,), where one is
    `wanted` (B,) bool; by the library that the logits belong to."""
    if isinstance(logits, mx.array):
        return _lazily(logits, temperatures)
    count = min(MOST, logits.shape[-1])
    ids = np.zeros((len(logits), count), np.int32)
    logps = np.zeros((len(logits), count), np.float32)
    rows = np.flatnonzero(wanted)
    scaled = logits[rows] / temperatures[rows, None].astype(np.float32)
    scaled -= scaled.max(axis=-1, keepdims=True)
    some = np.argpartition(-scaled, count - 1, axis=-1)[:, :count]
    values = np.take_along_axis(scaled, some, axis=-1)
    order = np.lexsort((some, -values), axis=-1)
    ids[rows] = np.take_along_axis(some, order, axis=-1)
    total = np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    logps[rows] = np.take_along_axis(values, order, axis=-1) - total
    return Likeliest(ids, logps)


def _lazily(logits: mx.array, temperatures: np.ndarray) -> Likeliest:
    count = min(MOST, logits.shape[-1])
    scaled = logits.astype(mx.float32) / mx.array(temperatures[:, None].astype(np.float32))
    some = mx.argpartition(-scaled, count - 1, axis=-1)[:, :count]
    values = mx.take_along_axis(scaled, some, axis=-1)
    order = mx.argsort(-values, axis=-1)
    logps = values - mx.logsumexp(scaled, axis=-1, keepdims=True)
    ids = mx.take_along_axis(some, order, axis=-1)
    return Likeliest(ids, mx.take_along_axis(logps, order, axis=-1))


def joined(
    one: Likeliest | None, rows: int, other: Likeliest | None, others: int
) -> Likeliest | None:
    """Those of two batches of so many rows, one behind the other; None when neither has any."""
    known = one if one is not None else other
    if known is None:
        return None
    xp: Any = mx if isinstance(known.ids, mx.array) else np
    parts: Sequence[Likeliest] = [
        Likeliest(
            xp.zeros((count, known.ids.shape[1]), known.ids.dtype),
            xp.zeros((count, known.ids.shape[1]), known.logps.dtype),
        )
        if part is None
        else part
        for part, count in ((one, rows), (other, others))
    ]
    return Likeliest(*(xp.concatenate(list(pair)) for pair in zip(*parts, strict=True)))
