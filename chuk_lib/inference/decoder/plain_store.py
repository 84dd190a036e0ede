"""Keys and values of a batch in buffers that are made once and written in place, for models whose
layers all keep every key."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.inference.decoder.prefill import Memory, extend_plain, layer_caches, prefill_plain

COLUMNS = 256
"""Buffers have a multiple of this many columns; on a GPU the fast attention for long caches needs
it."""


class FixedCache:
    """Keys and values of one layer (B, K, C, D) in a buffer of C columns, written in place. All
    layers share their store's place to write."""

    def __init__(self, store: PlainStore) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        # A circle would keep the buffers until Python looks for circles.
        self._store: PlainStore = weakref.proxy(store)

    @property
    def offset(self) -> int | mx.array:
        """Position of the next token: one number, or one a row (B,)."""
        return self._store.offset

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None]:
        """The buffers."""
        return self.keys, self.values

    @property
    def buffers(self) -> tuple[mx.array, mx.array]:
        """The buffers when something is written."""
        if self.keys is None or self.values is None:
            raise ValueError("nothing is written yet")
        return self.keys, self.values

    def written(self, end: int) -> tuple[mx.array, mx.array]:
        """Keys and values (B, K, end, D) of the first columns."""
        keys, values = self.buffers
        return keys[:, :, :end], values[:, :, :end]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write one column and return all that are written."""
        # Every layer writes at the store's column; the store moves it once, when all layers have
        # written.
        begin, end = self._store.column, self._store.column + keys.shape[2]
        if self.keys is None or self.values is None:
            self.keys = mx.zeros((*keys.shape[:2], self._store.capacity, keys.shape[3]), keys.dtype)
            self.values = mx.zeros(
                (*values.shape[:2], self._store.capacity, values.shape[3]), values.dtype
            )
        self.keys[..., begin:end, :] = keys
        self.values[..., begin:end, :] = values
        return self.keys[..., :end, :], self.values[..., :end, :]

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Any:
        """None while all rows have as many columns and see them all."""
        return self._store.mask(length, return_array, window_size)


class PlainStore:
    """Buffers for models whose layers all keep every key. Rows end in the same column: what is
    shorter begins later (`pads`). Where all begin in column 0 attention needs no mask."""

    mix: Literal["any", "group", "row"] = "any"

    def __init__(self, model: nn.Module, max_tokens: int) -> None:
        self.model, self._max_tokens = model, max_tokens
        self.pads = np.zeros(0, np.int64)
        self.column = 0
        self.capacity = 0
        self._offset: mx.array | None = None  # of this column, as `_mask`
        self._mask: mx.array | None = None
        self.caches = [FixedCache(self) for _ in layer_caches(model)]

    @property
    def equal(self) -> bool:
        """Whether all rows are as long as each other."""
        return not self.pads.any()

    @property
    def offset(self) -> int | mx.array:
        """Position of the next token of all rows, or of each."""
        if self.equal:
            return self.column
        if self._offset is None:
            self._offset = mx.array(self.column - self.pads)
        return self._offset

    @property
    def runs(self) -> list[tuple[int, int, int]]:
        """(first row, last row + 1, first column) of neighbours that begin in the same column."""
        edges = [0, *(np.flatnonzero(np.diff(self.pads)) + 1).tolist(), len(self.pads)]
        return [(a, b, int(self.pads[a])) for a, b in pairwise(edges)]

    def twin(self) -> PlainStore:
        """An empty store of this kind."""
        return PlainStore(self.model, self._max_tokens)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Memory]:
        """See `prefill_plain`."""
        return prefill_plain(self.model, prompts)

    def admit(self, memories: Sequence[Memory], rows: Sequence[int]) -> None:
        """Copy prompts to their rows."""
        parts = [
            (memory, count, memory[0][0].shape[2])
            for memory, count in zip(memories, rows, strict=True)
        ]
        # Padding on the left: all rows write their next token in the same column, which is one
        # slice for the whole batch. A row that is shorter begins at `pads` > 0; positions are
        # column − pad.
        self.column = max(length for _, _, length in parts)
        self.pads = np.concatenate(
            [np.full(count, self.column - length) for _, count, length in parts]
        )
        self._make_room()
        if self.column == 0:
            self.caches = [FixedCache(self) for _ in self.caches]
            return
        for index, cache in enumerate(self.caches):
            cache.keys = self._stack([(memory[index][0], count) for memory, count, _ in parts])
            cache.values = self._stack([(memory[index][1], count) for memory, count, _ in parts])
        mx.eval([cache.state for cache in self.caches])

    def advance(self) -> None:
        """One column was written by all layers."""
        self.column += 1
        self._offset = self._mask = None
        if self.column == self.capacity:
            self._place(np.arange(len(self.pads)))

    def join(self, other: PlainStore) -> None:
        """Add rows, ending in the same column."""
        # Both sides are moved right to the larger column; the new pads say how far each row was
        # moved.
        ours, theirs = self.column, other.column
        self.column = max(ours, theirs)
        self.pads = np.concatenate(
            [self.pads + self.column - ours, other.pads + self.column - theirs]
        )
        self._make_room()
        for cache, arrived in zip(self.caches, other.caches, strict=True):
            (keys, values), (other_keys, other_values) = (
                cache.written(ours),
                arrived.written(theirs),
            )
            cache.keys, cache.values = (
                self._stack([(keys, 1), (other_keys, 1)]),
                self._stack([(values, 1), (other_values, 1)]),
            )
        self._place(np.arange(len(self.pads)))

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only."""
        self._place(rows)

    def memory(self, row: int, spare: int) -> Memory:
        """A copy of a row's columns but the last `spare`."""
        begin, end = int(self.pads[row]), self.column - spare
        held: Memory = []
        for cache in self.caches:
            keys, values = (
                mx.contiguous(part[row : row + 1, :, begin:end]) for part in cache.buffers
            )
            held.append((keys, values))
        mx.eval(held)
        return held

    def extend(self, memory: Memory, ids: Sequence[int]) -> Memory:
        """Through the model."""
        return extend_plain(self.model, memory, ids)

    def cut(self, memory: Memory, spare: int) -> Memory:
        """The first columns."""
        end = memory[0][0].shape[2] - spare
        return [(keys[:, :, :end], values[:, :, :end]) for keys, values in memory]

    def mask(self, length: int, return_array: bool, window_size: int | None) -> Any:
        """Bool (B, 1, T, columns), or None when every row sees every column."""
        from mlx_lm.models.base import create_causal_mask

        if self.equal and length == 1 and window_size is None and not return_array:
            return None
        plain = length == 1 and window_size is None
        if plain and self._mask is not None:
            return self._mask
        pads = None if self.equal else mx.array(self.pads)
        mask = create_causal_mask(
            length, offset=self.column, window_size=window_size, left_padding=pads
        )
        if plain:
            self._mask = mask
        return mask

    def _place(self, rows: np.ndarray) -> None:
        """Rows in new buffers, without the columns that none of them uses."""
        # When the longest row has left, the columns before the others' first are in nobody's sight.
        first, end = int(self.pads[rows].min(initial=self.column)), self.column
        self.pads, self.column = self.pads[rows] - first, end - first
        self._make_room()
        index = mx.array(rows.astype(np.int32))
        for cache in self.caches:
            keys, values = cache.written(end)
            cache.keys = self._stack([(keys[:, :, first:][index], 1)])
            cache.values = self._stack([(values[:, :, first:][index], 1)])
        mx.eval([cache.state for cache in self.caches])

    def _make_room(self) -> None:
        """Columns for the longest row and as many tokens as were said to come. A row that may get
        more fills them, and `advance` makes new ones: the fewer copies the more are made at once.
        """
        self._offset = self._mask = None
        # Rounded up (−(−a // b) is the ceiling). Its length is part of a compiled graph's shape:
        # multiples of 256 keep the number of graphs small.
        self.capacity = -(-(self.column + self._max_tokens + 1) // COLUMNS) * COLUMNS

    def _stack(self, parts: Sequence[tuple[mx.array, int]]) -> mx.array:
        """(B, K, C, D): each part (b, K, P, D) as often as wanted, ending in the current column."""
        padded = []
        for part, count in parts:
            edges = (self.column - part.shape[2], self.capacity - self.column)
            wide = mx.pad(part, [(0, 0), (0, 0), edges, (0, 0)])
            padded.append(mx.repeat(wide, count, axis=0) if count > 1 else wide)
        # Contiguous, or the lazy graph would keep the prompts' own arrays alive beside the buffer.
        return mx.contiguous(mx.concatenate(padded) if len(padded) > 1 else padded[0])
