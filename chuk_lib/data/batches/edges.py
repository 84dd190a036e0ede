"""Bucket edges: padded lengths that waste least, and what any edges waste."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_MOST_CANDIDATES = 1024


class Suggestion(NamedTuple):
    """Edges, and the share of positions that they leave as padding for the lengths they were made
    for."""

    edges: tuple[int, ...]
    padding: float


class Cut(NamedTuple):
    """What a `max_length` costs: rows cut, tokens lost, both as shares."""

    max_length: int
    rows_cut: float
    tokens_lost: float


def suggest(
    lengths: Sequence[int] | np.ndarray, count: int, max_length: int, multiple: int = 8
) -> Suggestion:
    """The `count` edges (or fewer) with the least padding for rows of these lengths; the last is
    `max_length`.

    Exact by dynamic programming over multiples of `multiple`: best[k][j] = min over i < j of
    best[k-1][i] + edge_j · rows between edge_i and edge_j. Beyond 1,024 candidates the multiple is
    raised."""
    sizes = np.clip(np.asarray(lengths, dtype=np.int64), 1, max_length)
    step = max(multiple, -(-max_length // _MOST_CANDIDATES))
    candidates = np.unique(np.append(np.arange(step, max_length, step), max_length))
    below = np.searchsorted(np.sort(sizes), candidates, side="right").astype(np.float64)
    best, back = candidates * below, []
    for _ in range(min(count, len(candidates)) - 1):
        # (i, j): last edge i, then j.
        table = best[:, None] + candidates[None] * (below[None] - below[:, None])
        table[np.tril_indices(len(candidates), 0)] = np.inf
        chosen = np.argmin(table, axis=0)
        found = table[chosen, np.arange(len(candidates))]
        keeps = best <= found  # no edge more helps
        back.append(np.where(keeps, -1, chosen))
        best = np.where(keeps, best, found)
    edges = _walk(candidates, back)
    return Suggestion(edges, padding_of(sizes, edges))


def _walk(candidates: np.ndarray, back: list[np.ndarray]) -> tuple[int, ...]:
    at = len(candidates) - 1
    edges = [int(candidates[at])]
    for chosen in reversed(back):
        if chosen[at] >= 0:
            at = int(chosen[at])
            edges.append(int(candidates[at]))
    return tuple(reversed(edges))


def padding_of(lengths: Sequence[int] | np.ndarray, edges: Sequence[int]) -> float:
    """The share of positions that is padding when each row is as long as the smallest edge that
    holds it."""
    sizes = np.minimum(np.asarray(lengths, dtype=np.int64), edges[-1])
    slots = np.asarray(edges)[np.searchsorted(edges, sizes)].sum()
    return 1.0 - float(sizes.sum()) / max(1.0, float(slots))


def cuts(lengths: Sequence[int] | np.ndarray) -> list[Cut]:
    """What common limits cost, from 64 up to one that cuts nothing."""
    sizes = np.asarray(lengths, dtype=np.int64)
    limits = [
        2**power for power in range(6, 31) if 2**power < 2 * max(64, int(sizes.max(initial=1)))
    ]
    return [cut_at(sizes, limit) for limit in limits]


def cut_at(sizes: np.ndarray, limit: int) -> Cut:
    """What one limit costs."""
    lost = np.maximum(sizes - limit, 0)
    return Cut(limit, float((lost > 0).mean()), float(lost.sum()) / max(1.0, float(sizes.sum())))


def best_length(
    lengths: Sequence[int] | np.ndarray, keep: float = 0.995, multiple: int = 64
) -> int:
    """The least multiple of `multiple` that keeps this share of all tokens, and this share of rows
    whole."""
    sizes = np.sort(np.asarray(lengths, dtype=np.int64))
    kept_rows = int(sizes[min(len(sizes) - 1, int(np.ceil(keep * len(sizes))) - 1)])
    low, high = 1, -(-int(sizes[-1]) // multiple)
    while low < high:
        middle = (low + high) // 2
        fits = (
            cut_at(sizes, middle * multiple).tokens_lost <= 1 - keep
            and middle * multiple >= kept_rows
        )
        low, high = (low, middle) if fits else (middle + 1, high)
    return low * multiple
