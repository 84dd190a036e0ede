"""Packing: which pieces of which documents share a row, so that little of a batch is padding.

`bfd` cuts documents at the capacity and fits them whole, best fit decreasing (Ding et al. 2024);
`bfd_split` cuts long ones into pieces first; `wrapped` joins everything and cuts every `capacity`
tokens. Rows equal TRL's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from chuk_lib.errors import ConfigError


class Piece(NamedTuple):
    """Tokens start..end of one document."""

    document: int
    start: int
    end: int


PackedRow = list[Piece]


def pack(lengths: Sequence[int], capacity: int, strategy: str = "bfd") -> list[PackedRow]:
    """Rows of pieces for documents of these lengths. Empty documents are left out."""
    if capacity < 1:
        raise ConfigError(
            f"packing needs rows of at least one token, not {capacity}", "set max_length"
        )
    if strategy not in STRATEGIES:
        raise ConfigError(
            f"there is no packing strategy `{strategy}`", f"strategies: {', '.join(STRATEGIES)}"
        )
    return STRATEGIES[strategy](lengths, capacity)


def _bfd(lengths: Sequence[int], capacity: int) -> list[PackedRow]:
    return _best_fit(
        [Piece(i, 0, min(size, capacity)) for i, size in enumerate(lengths) if size], capacity
    )


def _bfd_split(lengths: Sequence[int], capacity: int) -> list[PackedRow]:
    pieces = [
        Piece(i, start, min(start + capacity, size))
        for i, size in enumerate(lengths)
        for start in range(0, size, capacity)
    ]
    return _best_fit(pieces, capacity)


def _wrapped(lengths: Sequence[int], capacity: int) -> list[PackedRow]:
    rows: list[PackedRow] = [[]]
    space = capacity
    for document, size in enumerate(lengths):
        start = 0
        while start < size:
            taken = min(space, size - start)
            rows[-1].append(Piece(document, start, start + taken))
            start, space = start + taken, space - taken
            if space == 0:
                rows.append([])
                space = capacity
    return rows if rows[-1] else rows[:-1]


STRATEGIES: dict[str, Callable[[Sequence[int], int], list[PackedRow]]] = {
    "bfd": _bfd,
    "bfd_split": _bfd_split,
    "wrapped": _wrapped,
}


def _best_fit(pieces: Sequence[Piece], capacity: int) -> list[PackedRow]:
    """Longest piece first, into the row with the least space that holds it; of several, the one
    that got to that space first; else into a new row. O(n log capacity)."""
    sizes = np.array([piece.end - piece.start for piece in pieces], dtype=np.int64)
    rows: list[PackedRow] = []
    by_space: list[deque[PackedRow]] = [deque() for _ in range(capacity)]
    spaces = _Spaces(capacity)
    # Stable, and rows of equal space are taken in the order they got it: TRL's rows come out, row
    # for row.
    for index in np.argsort(-sizes, kind="stable"):
        size = int(sizes[index])
        space = spaces.at_least(size)
        if space < capacity:
            row = by_space[space].popleft()
            if not by_space[space]:
                spaces.remove(space)
        else:
            row = []
            rows.append(row)
        row.append(pieces[index])
        left = space - size
        if left:
            by_space[left].append(row)
            spaces.add(left)
    return rows


class _Spaces:
    """A set of numbers 1..capacity-1 that finds its smallest member of at least n in O(log
    capacity): a tree of bit words, of which Python's integers hold any number of bits."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._words = [0] * (capacity // 64 + 1)
        self._filled = 0  # bit w: word w has a member

    def add(self, value: int) -> None:
        self._words[value >> 6] |= 1 << (value & 63)
        self._filled |= 1 << (value >> 6)

    def remove(self, value: int) -> None:
        self._words[value >> 6] &= ~(1 << (value & 63))
        if not self._words[value >> 6]:
            self._filled &= ~(1 << (value >> 6))

    def at_least(self, value: int) -> int:
        """The smallest member >= value, or the capacity."""
        # First the members of value's own word at or above it; then, in one shift, the next word
        # that has any.
        word = value >> 6
        bits = self._words[word] >> (value & 63)
        if bits:
            return value + _lowest(bits)
        later = self._filled >> (word + 1)
        if not later:
            return self._capacity
        word += 1 + _lowest(later)
        return (word << 6) + _lowest(self._words[word])


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
