"""Attention on a CPU, block by block in NumPy, forward and backward, after FlashAttention (Dao et
al. 2022).

MLX's CPU attention makes the whole T × T weights with a scalar exp and keeps them for the backward
pass. Here a block of queries meets only the keys it may see (causal, same document), exp is
NumPy's, which is 20 times faster, and the backward pass makes the weights again from their row's
maximum and sum: memory grows with T, not with T². (From the log of the sum alone, as on a GPU,
large scores would lose the digits that matter.)

Shapes: q (B, H, T, D), k and v (B, K, T, D) with H a multiple of K (grouped queries), float32, all
contiguous."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Weights of one block: three quarters of a MiB, which stays in a core's cache.
_BLOCK_FLOATS = 3 << 16
_MASKED = np.float32(-1e30)  # finite, so that a row without any key gives numbers, not nan


class _Block(NamedTuple):
    """Row `row`, queries `first:last`, and the keys `begin:end` that any of them may see; `hidden`
    marks those in that range that a query may not see, (queries, keys) bool, or None."""

    row: int
    first: int
    last: int
    begin: int
    end: int
    hidden: np.ndarray | None


class CPUAttention:
    """One attention call: `forward` once, then `backward` at most once.

    `mask` is None (every key), "causal", or bool (B or 1, 1, T, T), True where a query sees a key.
    """

    def __init__(self, scale: float, mask: str | np.ndarray | None) -> None:
        self._scale = np.float32(scale)
        self._mask = mask
        self._blocks: list[_Block] = []

    def forward(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The output (B, H, T, D), and each row's maximum and sum of exponentials (2, B, K, H/K, T,
        1)."""
        queries = self._grouped(q, k.shape[1])
        output = np.empty((*queries.shape[:-1], v.shape[-1]), np.float32)
        totals = np.empty((2, *queries.shape[:-1], 1), np.float32)
        self._blocks = list(self._cut(queries.shape, k.shape[2]))
        for block in self._blocks:
            rows, keys = slice(block.first, block.last), slice(block.begin, block.end)
            weights = self._scores(queries, k, block)
            highest = weights.max(axis=-1, keepdims=True)
            weights -= highest
            np.exp(weights, out=weights)
            sums = weights.sum(axis=-1, keepdims=True)
            part = np.matmul(weights, v[block.row, :, None, keys])
            part /= sums
            output[block.row, :, :, rows] = part
            totals[0, block.row, :, :, rows] = highest
            totals[1, block.row, :, :, rows] = sums
        return output.reshape(*q.shape[:-1], v.shape[-1]), totals

    def backward(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        output: np.ndarray,
        totals: np.ndarray,
        slope: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gradients of q, k and v for the output's gradient `slope` (B, H, T, D)."""
        heads = k.shape[1]
        queries = self._grouped(q, heads)
        slopes, outputs = (
            slope.reshape(*queries.shape[:-1], -1),
            output.reshape(*queries.shape[:-1], -1),
        )
        delta = np.einsum("bkgtd,bkgtd->bkgt", slopes, outputs)[..., None]
        to_q, to_k, to_v = np.empty_like(queries), np.zeros_like(k), np.zeros_like(v)
        for block in self._blocks:
            rows, keys = slice(block.first, block.last), slice(block.begin, block.end)
            weights = self._scores(queries, k, block)
            weights -= totals[0, block.row, :, :, rows]
            np.exp(weights, out=weights)
            weights /= totals[1, block.row, :, :, rows]
            above = slopes[block.row, :, :, rows]
            to_v[block.row, :, keys] += np.matmul(weights.swapaxes(-1, -2), above).sum(axis=1)
            inner = np.matmul(above, v[block.row, :, None, keys].swapaxes(-1, -2))
            inner -= delta[block.row, :, :, rows]
            inner *= weights
            to_q[block.row, :, :, rows] = np.matmul(inner, k[block.row, :, None, keys])
            to_k[block.row, :, keys] += np.matmul(
                inner.swapaxes(-1, -2), queries[block.row, :, :, rows]
            ).sum(axis=1)
        to_q *= self._scale
        return to_q.reshape(q.shape), to_k, to_v

    def _grouped(self, q: np.ndarray, heads: int) -> np.ndarray:
        """Scaled queries as (B, K, H/K, T, D)."""
        rows, all_heads, length, width = q.shape
        return q.reshape(rows, heads, all_heads // heads, length, width) * self._scale

    def _scores(self, queries: np.ndarray, k: np.ndarray, block: _Block) -> np.ndarray:
        keys = k[block.row, :, None, block.begin : block.end].swapaxes(-1, -2)
        scores: np.ndarray = np.matmul(queries[block.row, :, :, block.first : block.last], keys)
        if block.hidden is not None:
            np.copyto(scores, _MASKED, where=block.hidden)
        return scores

    def _cut(self, shape: tuple[int, ...], length: int) -> Iterator[_Block]:
        rows, heads, groups, queries, _ = shape
        size = max(16, min(queries, _BLOCK_FLOATS // (heads * groups * length) or 16))
        for row in range(rows):
            for first in range(0, queries, size):
                last = min(first + size, queries)
                yield _Block(row, first, last, *self._seen(row, first, last, length))

    def _seen(
        self, row: int, first: int, last: int, length: int
    ) -> tuple[int, int, np.ndarray | None]:
        if self._mask is None:
            return 0, length, None
        if isinstance(self._mask, str):
            return 0, last, np.arange(last)[None, :] > np.arange(first, last)[:, None]
        seen = self._mask[row if self._mask.shape[0] > 1 else 0, 0, first:last]
        columns = np.flatnonzero(seen.any(axis=0))
        begin, end = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1)
        return begin, end, ~seen[:, begin:end]
