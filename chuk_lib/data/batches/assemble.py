"""Documents to batches, in a stream: windows of rows are shuffled and packed, rows wait in buckets
by length, and a bucket that is full becomes a file. What waits is bounded, and can be saved and
taken up again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from chuk_lib.data.batches.documents import Documents
from chuk_lib.data.batches.layouts import FileBatch
from chuk_lib.data.batches.spec import WINDOW_TOKENS, BatchSpec
from chuk_lib.data.packing import Piece, pack

_NEAR = 0.75
"""What is left of a bucket may join a longer one whose rows are padded to at most a third more."""


class StoredRow(NamedTuple):
    """One row of a batch to be: ids (T,), mask (T,), and the length and record of each document in
    it."""

    ids: np.ndarray
    mask: np.ndarray
    sizes: tuple[int, ...]
    records: tuple[int, ...]


Entry = tuple[StoredRow, ...]
"""Rows that belong together: one, or the two of a preference pair."""


class Assembler:
    """Takes documents, gives batches to `emit`. Which rows meet in a batch depends on the
    documents, the settings and the seed, and on nothing else."""

    def __init__(self, spec: BatchSpec, pad_id: int, emit: Callable[[FileBatch], None]) -> None:
        self._spec = spec
        self._pad = pad_id
        self._emit = emit
        self._edges = np.array(
            spec.edges if isinstance(spec.edges, tuple) else (spec.max_length,), dtype=np.int64
        )
        self._buckets: list[list[Entry]] = [[] for _ in self._edges]
        self._window: list[Documents] = []
        self._count = self._tokens = 0
        self._windows = 0
        self._carried: list[StoredRow] = []

    def take(self, documents: Documents, start: int) -> tuple[int, bool]:
        """Take documents from `start` on until the window is full. Returns where it stopped, and
        whether the window was full and is done with: then nothing waits but rows in buckets."""
        group = self._spec.group
        sizes = np.cumsum(documents.lengths[start:])
        most = (self._spec.window - self._count) * group
        until = int(np.searchsorted(sizes, WINDOW_TOKENS - self._tokens)) + 1
        count = min(most, -(-until // group) * group, len(sizes))
        if count <= 0:
            return start, False
        self._window.append(documents.part(start, start + count))
        self._count += count // group
        self._tokens += int(sizes[count - 1])
        full = self._count >= self._spec.window or self._tokens >= WINDOW_TOKENS
        if full:
            self._process()
        return start + count, full

    def finish(self) -> None:
        """Everything that still waits, the bucket of the longest rows first. Rows of shorter
        buckets fill its last batch up where that costs little, so that few batches are small."""
        self._process()
        if self._carried:
            self._place(_joined(self._carried))
            self._carried = []
        buckets = zip(self._edges.tolist(), self._buckets, strict=True)
        waiting = [(width, entry) for width, bucket in buckets for entry in bucket]
        waiting.sort(key=lambda pair: -pair[0])
        self._buckets = [[] for _ in self._edges]
        while waiting:
            width = waiting[0][0]
            near = [
                entry
                for edge, entry in waiting[: self._spec.rows_of(width)]
                if edge >= _NEAR * width
            ]
            self._flush(near, width)
            waiting = waiting[len(near) :]

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What waits between windows, as JSON and arrays."""
        rows = [
            row for bucket in self._buckets for entry in bucket for row in entry
        ] + self._carried
        counts = {"windows": self._windows, "buckets": [len(bucket) for bucket in self._buckets]}
        arrays = {
            "ids": np.concatenate([np.zeros(0, np.int32), *(row.ids for row in rows)]),
            "mask": np.concatenate([np.zeros(0, bool), *(row.mask for row in rows)]).astype(
                np.uint8
            ),
            "documents": np.array([len(row.sizes) for row in rows], dtype=np.int64),
            "sizes": np.array([size for row in rows for size in row.sizes], dtype=np.int64),
            "records": np.array([record for row in rows for record in row.records], dtype=np.int64),
        }
        return counts, arrays

    def restore(self, counts: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Take up what `state` gave."""
        rows, token, at = [], 0, 0
        for documents in arrays["documents"].tolist():
            sizes = tuple(arrays["sizes"][at : at + documents].tolist())
            records = tuple(arrays["records"][at : at + documents].tolist())
            end = token + sum(sizes)
            rows.append(
                StoredRow(
                    arrays["ids"][token:end], arrays["mask"][token:end].astype(bool), sizes, records
                )
            )
            token, at = end, at + documents
        group, start = self._spec.group, 0
        self._windows = counts["windows"]
        for number, count in enumerate(counts["buckets"]):
            part = rows[start : start + count * group]
            self._buckets[number] = [tuple(part[k : k + group]) for k in range(0, len(part), group)]
            start += count * group
        self._carried = rows[start:]

    def _process(self) -> None:
        """The window's rows, in the window's order, into buckets."""
        if not self._window:
            return
        documents = _concatenated(self._window)
        count, group = self._count, self._spec.group
        order = np.arange(count)
        if self._spec.shuffle:
            order = np.random.Generator(
                np.random.PCG64(np.random.SeedSequence([self._spec.seed, self._windows]))
            ).permutation(count)
        self._window, self._count, self._tokens = [], 0, 0
        self._windows += 1
        if self._spec.packing:
            self._pack([_row(documents, at, start) for at, start in _ordered(documents, order)])
            return
        starts = documents.starts
        for number in order.tolist():
            members = range(number * group, number * group + group)
            self._place(tuple(_row(documents, at, int(starts[at])) for at in members))

    def _pack(self, rows: list[StoredRow]) -> None:
        rows = [*self._carried, *rows]
        self._carried = []
        limit, strategy = self._spec.max_length, str(self._spec.packing)
        packed = pack([len(row.ids) for row in rows], limit, strategy)
        for pieces in packed:
            parts = [_piece(rows, piece) for piece in pieces]
            if strategy == "wrapped" and sum(len(part.ids) for part in parts) < limit:
                self._carried = parts  # what is left over begins the next window
            else:
                self._place(_joined(parts))

    def _place(self, entry: Entry) -> None:
        number = self._bucket(entry)
        bucket, width = self._buckets[number], int(self._edges[number])
        bucket.append(entry)
        if len(bucket) >= self._spec.rows_of(width):
            self._buckets[number] = []
            self._flush(bucket, width)

    def _bucket(self, entry: Entry) -> int:
        return int(np.searchsorted(self._edges, _length(entry)))

    def _flush(self, entries: Sequence[Entry], width: int) -> None:
        if not isinstance(self._spec.edges, tuple):
            longest, multiple = max(map(_length, entries)), self._spec.multiple
            width = min(self._spec.max_length, -(-longest // multiple) * multiple)
        rows = [entry[member] for member in range(self._spec.group) for entry in entries]
        shape = (len(rows), width)
        ids, mask = np.full(shape, self._pad, dtype=np.int32), np.zeros(shape, dtype=bool)
        apart = self._spec.packing in ("bfd", "bfd_split")
        segments = np.zeros(shape, dtype=np.int32) if apart else None
        for at, row in enumerate(rows):
            ids[at, : len(row.ids)], mask[at, : len(row.ids)] = row.ids, row.mask
            if segments is not None:
                segments[at, : len(row.ids)] = np.repeat(
                    np.arange(1, len(row.sizes) + 1), row.sizes
                )
                mask[at, np.cumsum((0, *row.sizes[:-1]))] = False
        mask[:, 0] = False
        lengths = np.array([len(row.ids) for row in rows], dtype=np.int32)
        records = None
        if self._spec.packing != "wrapped":
            records = np.array([record for row in rows for record in row.records], dtype=np.int64)
        self._emit(FileBatch(ids, mask, lengths, segments, records))


def _length(entry: Entry) -> int:
    return max(len(row.ids) for row in entry)


def _ordered(documents: Documents, order: np.ndarray) -> list[tuple[int, int]]:
    starts = documents.starts
    return [(at, int(starts[at])) for at in order.tolist()]


def _row(documents: Documents, at: int, start: int) -> StoredRow:
    """One document as a row of its own memory: a view would keep its whole window."""
    size = int(documents.lengths[at])
    ids = documents.ids[start : start + size].copy()
    mask = (
        np.ones(size, dtype=bool)
        if documents.mask is None
        else documents.mask[start : start + size].copy()
    )
    return StoredRow(ids, mask, (size,), (int(documents.records[at]),))


def _piece(rows: Sequence[StoredRow], piece: Piece) -> StoredRow:
    row = rows[piece.document]
    if piece.end - piece.start == len(row.ids):
        return row
    ids, mask = row.ids[piece.start : piece.end], row.mask[piece.start : piece.end]
    return StoredRow(ids, mask, (len(ids),), row.records[:1])


def _joined(parts: Sequence[StoredRow]) -> Entry:
    if len(parts) == 1:
        return (parts[0],)
    sizes = tuple(size for part in parts for size in part.sizes)
    records = tuple(record for part in parts for record in part.records)
    return (
        StoredRow(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.mask for part in parts]),
            sizes,
            records,
        ),
    )


def _concatenated(parts: Sequence[Documents]) -> Documents:
    if len(parts) == 1:
        return parts[0]
    masks = [
        part.mask if part.mask is not None else np.ones(len(part.ids), dtype=bool) for part in parts
    ]
    mask = None if all(part.mask is None for part in parts) else np.concatenate(masks)
    return Documents(
        np.concatenate([part.ids for part in parts]),
        mask,
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.records for part in parts]),
    )
