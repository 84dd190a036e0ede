"""What is remembered of every row to find it again in others: 24 bytes, and its signature on disk
for near matches."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from chuk_lib.data.types import Record, Source
from chuk_lib.data.workbench.content import (
    ask_of,
    check_columns,
    content_columns,
    content_of,
    key_of,
)
from chuk_lib.data.workbench.near import NearRows

_MOST_NAMES = 1000


class Duplicates(NamedTuple):
    """`of` int64 (rows,): the number of the earlier row that a row repeats, or -1. `near` bool
    (rows,): where the two are alike and not equal."""

    of: np.ndarray
    near: np.ndarray


class RowIndex:
    """Keys of content and of prompt, and the place of every row. `by`: the columns that count
    instead of all."""

    def __init__(self, by: Sequence[str] = (), near: NearRows | None = None) -> None:
        self._by = tuple(by)
        self._near = near
        self._contents = array("Q")
        self._asks = array("Q")
        self._lines = array("Q")
        self._files: list[tuple[int, str, str]] = []
        self.compared: dict[str, None] = dict.fromkeys(self._by)
        """The columns that decided, of all rows."""

    def __len__(self) -> int:
        return len(self._contents)

    def add(self, record: Record, content: str | None = None) -> None:
        """Take the next row; `content` where it is known already. Raises DataError when it lacks a
        column of `by`."""
        check_columns(record.columns, self._by, record.source)
        names = self._by or content_columns(record.columns)
        if len(self.compared) < _MOST_NAMES:
            self.compared.update(dict.fromkeys(names))
        text = content_of(record.columns, names) if content is None else content
        self._contents.append(key_of(text))
        self._asks.append(key_of(ask_of(record.columns, self._by)))
        if self._near is not None:
            self._near.add(text)
        source = record.source
        if not self._files or self._files[-1][1:] != (source.name, source.unit):
            self._files.append((len(self._lines), source.name, source.unit))
        self._lines.append(source.line)

    def place(self, row: int) -> Source:
        """Where a row stood."""
        at = max(index for index, (first, _, _) in enumerate(self._files) if first <= row)
        return Source(self._files[at][1], self._lines[row], self._files[at][2])

    def duplicates(self) -> Duplicates:
        """Rows that repeat an earlier one."""
        first = first_of(self._contents)
        of = np.where(first < np.arange(len(first)), first, -1)
        near = np.zeros(len(first), dtype=bool)
        if self._near is not None:
            like = self._near.matches(of >= 0)
            near = (of < 0) & (like >= 0)
            of = np.where(near, like, of)
        return Duplicates(of, near)

    def same_ask(self) -> np.ndarray:
        """The number of the first row with the same prompt, int64 (rows,)."""
        return first_of(self._asks)


def first_of(keys: array[int]) -> np.ndarray:
    """For each key the index of the first one that is equal, int64 (n,)."""
    values = np.frombuffer(keys, dtype=np.uint64) if len(keys) else np.zeros(0, dtype=np.uint64)
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.int64)
