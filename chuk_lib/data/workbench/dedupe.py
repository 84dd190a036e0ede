"""Rows without those that repeat an earlier one, exactly or nearly. The first of its kind stays,
order is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from chuk_lib.data.types import Record
from chuk_lib.data.workbench.index import RowIndex
from chuk_lib.data.workbench.near import NearRows
from chuk_lib.data.workbench.replay import Replay, check_unchanged

Removed = Callable[[dict[str, Any]], None]


@dataclass
class DedupeCounts:
    """What became of the rows, and which columns decided that."""

    rows: int = 0
    kept: int = 0
    exact: int = 0
    near: int = 0
    compared: tuple[str, ...] = ()


def deduped(
    replay: Replay,
    counts: DedupeCounts,
    *,
    near: bool = True,
    threshold: float = 0.9,
    by: Sequence[str] = (),
    removed: Removed | None = None,
) -> Iterator[Record]:
    """The rows that stay. Two passes: nothing comes before the source was read once. `removed` gets
    the others, with the place of the row that they repeat in the column `duplicate_of`."""
    with ExitStack() as stack:
        index = RowIndex(by, stack.enter_context(NearRows(threshold)) if near else None)
        for record in replay.read():
            index.add(record)
        found = index.duplicates()
        counts.rows, counts.compared = len(index), tuple(index.compared)
        counts.near = int(found.near.sum())
        counts.exact = int((found.of >= 0).sum()) - counts.near
        read = 0
        for row, record in enumerate(replay.read()):
            read = row + 1
            if row >= counts.rows:
                break
            if found.of[row] < 0:
                counts.kept += 1
                yield record
            elif removed is not None:
                removed({**record.columns, "duplicate_of": str(index.place(int(found.of[row])))})
        check_unchanged(counts.rows, read)
