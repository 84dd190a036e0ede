"""A source in train, valid and test parts that share nothing: rows with one prompt, one group or
nearly the same text stay together."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chuk_lib.data.workbench.content import check_columns, content_of, key_of
from chuk_lib.data.workbench.index import RowIndex, first_of
from chuk_lib.data.workbench.near import NearRows
from chuk_lib.data.workbench.replay import Replay, check_unchanged
from chuk_lib.data.writer import check_target, open_rows
from chuk_lib.errors import ConfigError, DataError
from chuk_lib.utils.paths import check_folder

NAMES = ("train", "valid", "test")


class WrittenParts(NamedTuple):
    """Rows of each part, and in how many of them a number that JSON does not have became null."""

    sizes: dict[str, int]
    nulled: int


def assign(
    replay: Replay,
    *,
    valid: float,
    test: float,
    seed: int = 42,
    group: Sequence[str] = (),
    near: bool = True,
    threshold: float = 0.9,
) -> np.ndarray:
    """The part of every row: 0 train, 1 valid, 2 test, int8 (rows,).

    `valid` and `test` below 1 are shares, from 1 on numbers of rows. Parts come as near to that as
    whole groups allow, and never above. Raises ConfigError when too few rows are left for training.
    """
    with ExitStack() as stack:
        index = RowIndex((), stack.enter_context(NearRows(threshold)) if near else None)
        groups = array("Q")
        for record in replay.read():
            index.add(record)
            if group:
                check_columns(record.columns, group, record.source)
                groups.append(key_of(content_of(record.columns, group)))
        links = [index.same_ask(), index.duplicates().of]
        if group:
            links.append(first_of(groups))
    return _dealt(joined(links), _wanted(len(index), valid, test), seed)


def joined(links: Sequence[np.ndarray]) -> np.ndarray:
    """The lowest row that each row is tied to, over all links together, int64 (rows,). A link below
    0 is none."""
    count = len(links[0])
    parent = array("q", range(count))
    for link in links:
        rows = np.flatnonzero((link >= 0) & (link != np.arange(count)))
        for row, other in zip(rows.tolist(), link[rows].tolist(), strict=True):
            first, second = _root(parent, row), _root(parent, other)
            parent[max(first, second)] = min(first, second)
    return np.array([_root(parent, row) for row in range(count)], dtype=np.int64)


def _root(parent: array[int], row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


def _wanted(rows: int, valid: float, test: float) -> tuple[int, int]:
    sizes = [round(share * rows) if share < 1 else int(share) for share in (valid, test)]
    wanted = [
        max(1, size) if share else 0 for size, share in zip(sizes, (valid, test), strict=True)
    ]
    if min(valid, test) < 0 or sum(wanted) >= rows:
        raise ConfigError(
            f"{valid:g} for valid and {test:g} for test leave nothing of {rows:,} rows to train on",
            "below 1 they are shares, from 1 on numbers of rows",
        )
    return wanted[0], wanted[1]


def _dealt(roots: np.ndarray, wanted: tuple[int, int], seed: int) -> np.ndarray:
    """Groups in a random order go to test, then to valid, while they fit."""
    names, group, sizes = np.unique(roots, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    part = np.zeros(len(names), dtype=np.int8)
    ordered = sizes[order]
    for number, rows in ((2, wanted[1]), (1, wanted[0])):
        left = rows
        for at in np.flatnonzero((part[order] == 0) & (ordered <= rows)).tolist():
            if left == 0:
                break
            if ordered[at] <= left:
                part[order[at]] = number
                left -= int(ordered[at])
        if rows and left == rows:
            raise DataError(
                f"no group is small enough for {rows:,} {NAMES[number]} rows",
                "group by something finer, or ask for a larger share",
            )
    return np.asarray(part[group], dtype=np.int8)


def split_paths(folder: Path, suffix: str) -> dict[str, Path]:
    """Where each part goes."""
    return {name: folder / f"{name}{suffix}" for name in NAMES}


def check_split_paths(folder: Path, suffix: str, overwrite: bool) -> None:
    """Raise ConfigError when a part must not or cannot be written. Changes nothing."""
    check_folder(folder)
    for path in split_paths(folder, suffix).values():
        check_target(path, overwrite)


def write_split(
    replay: Replay, parts: np.ndarray, folder: Path, suffix: str, overwrite: bool = False
) -> WrittenParts:
    """Write the rows by part. All files appear together; a part without rows has none
    afterwards."""
    check_split_paths(folder, suffix, overwrite)
    paths = split_paths(folder, suffix)
    sizes = {name: int((parts == number).sum()) for number, name in enumerate(NAMES)}
    with ExitStack() as stack:
        writers: dict[int, Any] = {}
        for number, name in enumerate(NAMES):
            if sizes[name]:
                writers[number] = stack.enter_context(open_rows(paths[name], overwrite=overwrite))
        read = 0
        for record in replay.read():
            if read < len(parts):
                writers[int(parts[read])].write(record.columns, record.source)
            read += 1
        check_unchanged(len(parts), read)
    for name in NAMES:
        if not sizes[name]:
            paths[name].unlink(missing_ok=True)
    nulled = sum(writer.nulled for writer in writers.values())
    return WrittenParts({name: size for name, size in sizes.items() if size}, nulled)
