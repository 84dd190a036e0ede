"""Batches addressed by step: which rows an update sees depends on (examples, settings, seed, step)
and nothing else, so that a resumed run needs no loader state. Every row is seen exactly once an
epoch, the remainder too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from chuk_lib.data.packing import PackedRow, Piece, pack
from chuk_lib.data.types import Batch, Example
from chuk_lib.errors import ConfigError, DataError

GROUPED_WINDOWS = 50
"""At most this many windows, and at most a quarter of all, have their rows sorted together: enough
to find rows of similar length, few enough that windows differ from epoch to epoch."""
WORTH_GROUPING = 0.1
"""Share of padding above which rows are grouped by length unless told otherwise."""


@dataclass(frozen=True)
class Rounding:
    """How padded lengths are rounded up: to a `multiple`, and rows of up to that many tokens to a
    multiple of `short`."""

    multiple: int = 1
    short: int | None = None

    @classmethod
    def of(cls, given: int | Rounding | None) -> Rounding:
        """A number as a rounding; None rounds nothing."""
        return given if isinstance(given, Rounding) else cls(given or 1)

    def __call__(self, longest: int) -> int:
        """The padded length of rows whose longest has so many tokens."""
        step = self.short if self.short and longest <= self.multiple else self.multiple
        return -(-longest // step) * step


GPU_ROUNDING = Rounding(64, short=16)
"""Few lengths, so that a compiled step is compiled a few times; of short rows most would be
padding."""


class _Epoch(NamedTuple):
    """The rows of each window. `packed` holds what a row is made of; without packing a row is an
    example."""

    packed: list[PackedRow] | None
    sizes: np.ndarray
    windows: list[np.ndarray]


class RowPlan:
    """Which rows each step sees, by their lengths alone, for rows of any kind: what `BatchPlan`
    puts arrays to.

    Settings as of `BatchPlan`; `pack` makes packed rows of an epoch's order of documents.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        accumulation: int = 1,
        num_epochs: float = 1,
        max_steps: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        group_by_length: bool | None = None,
        pad_to_multiple_of: int | Rounding | None = None,
        pack: Callable[[np.ndarray], list[PackedRow]] | None = None,
    ) -> None:
        if not len(lengths):
            raise DataError("there are no examples to train on", "give data with at least one row")
        if batch_size < 1 or accumulation < 1:
            raise ConfigError(
                "batch_size and accumulation should be at least 1", "one row a batch is the least"
            )
        self.batch_size = batch_size
        self.window = batch_size * accumulation
        self.seed = seed
        self.shuffle = shuffle
        self.grouped = False
        self._pack = pack
        self._rounding = Rounding.of(pad_to_multiple_of)
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._epoch_plan = lru_cache(maxsize=2)(self._plan_epoch)
        if shuffle and group_by_length is not False:
            self.grouped = bool(group_by_length or pack) or self.padding_share > WORTH_GROUPING
            self._epoch_plan.cache_clear()
        self.rows = len(self._epoch_plan(0).sizes)
        self.steps_per_epoch = -(-self.rows // self.window)
        self.steps = (
            max_steps if max_steps is not None else math.ceil(self.steps_per_epoch * num_epochs)
        )

    def micro_batches(self, step: int) -> list[list[int]]:
        """The rows of each micro-batch of step `step` (0-based); with packing rows are those of
        `packed`."""
        epoch, index = divmod(step, self.steps_per_epoch)
        window = self._epoch_plan(epoch).windows[index]
        return [
            window[start : start + self.batch_size].tolist()
            for start in range(0, len(window), self.batch_size)
        ]

    def row(self, step: int, row: int) -> PackedRow:
        """The pieces that a row of a step's epoch is made of."""
        packed = self._epoch_plan(step // self.steps_per_epoch).packed
        return packed[row] if packed is not None else [Piece(row, 0, int(self._lengths[row]))]

    def epoch(self, step: int) -> float:
        """How many epochs are done after `step` steps."""
        return step / self.steps_per_epoch

    def width(self, longest: int) -> int:
        """The padded length of a batch."""
        return self._rounding(longest)

    @property
    def padding_share(self) -> float:
        """The share of positions in the first epoch's batches that are padding."""
        plan = self._epoch_plan(0)
        padded = 0
        for window in plan.windows:
            for start in range(0, len(window), self.batch_size):
                part = plan.sizes[window[start : start + self.batch_size]]
                padded += self.width(int(part.max())) * len(part)
        return 1.0 - float(plan.sizes.sum()) / padded

    def _plan_epoch(self, epoch: int) -> _Epoch:
        """All rows of an epoch and the order in which windows take them. Packed rows are made anew
        from the epoch's order of documents; their number is always the same."""
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch])))
        order = (
            random.permutation(len(self._lengths))
            if self.shuffle
            else np.arange(len(self._lengths))
        )
        packed, sizes = None, self._lengths
        if self._pack is not None:
            packed = self._pack(order)
            sizes = np.array([_size(row) for row in packed], dtype=np.int64)
            order = random.permutation(len(packed)) if self.shuffle else np.arange(len(packed))
        if self.grouped:
            return _Epoch(packed, sizes, self._by_length(order, sizes, random))
        windows = [
            order[start : start + self.window] for start in range(0, len(order), self.window)
        ]
        return _Epoch(packed, sizes, windows)

    def _by_length(
        self, order: np.ndarray, sizes: np.ndarray, random: np.random.Generator
    ) -> list[np.ndarray]:
        """Windows of rows of similar length in random order; the smaller last one stays last."""
        whole = len(order) - len(order) % self.window
        stretch = self.window * max(1, min(GROUPED_WINDOWS, whole // self.window // 4))
        windows: list[np.ndarray] = []
        for start in range(0, whole, stretch):
            part = order[start : min(start + stretch, whole)]
            ranked = part[np.argsort(-_bands(sizes[part]), kind="stable")]
            windows.extend(
                ranked[at : at + self.window] for at in range(0, len(ranked), self.window)
            )
        shuffled = [windows[index] for index in random.permutation(len(windows))]
        rest = order[whole:]
        return shuffled + ([rest[np.argsort(-sizes[rest], kind="stable")]] if len(rest) else [])


class BatchPlan(RowPlan):
    """The batches of a run. A window is what one update sees: `accumulation` micro-batches of
    `batch_size` rows; the last window of an epoch may be smaller.

    `shuffle` draws a new order each epoch from (seed, epoch); without it rows come in file order,
    ungrouped. `group_by_length` puts rows of about the same length together (within a twelfth) in
    stretches of many windows, then shuffles the windows; None: only where more than a tenth would
    be padding, since batches of one length each are a worse sample of the data. `packing` (bfd,
    bfd_split, wrapped) fills rows of `max_length` tokens. `max_steps` cuts epochs short or goes on
    with more."""

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        accumulation: int = 1,
        num_epochs: float = 1,
        max_steps: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        group_by_length: bool | None = None,
        packing: str | None = None,
        max_length: int | None = None,
        pad_token_id: int = 0,
        pad_to_multiple_of: int | Rounding | None = None,
    ) -> None:
        if packing and max_length is None:
            raise ConfigError("packing needs a max_length", "set max_length, or leave packing off")
        self.examples = examples
        self.packing = packing
        self.max_length = max_length
        self._pad_id = pad_token_id
        lengths = np.array([len(example) for example in examples], dtype=np.int64)
        packed = partial(
            _pack_in_order, lengths=lengths, capacity=max_length or 0, strategy=packing or ""
        )
        super().__init__(
            lengths.tolist(),
            batch_size=batch_size,
            accumulation=accumulation,
            num_epochs=num_epochs,
            max_steps=max_steps,
            seed=seed,
            shuffle=shuffle,
            group_by_length=group_by_length,
            pad_to_multiple_of=pad_to_multiple_of,
            pack=packed if packing else None,
        )

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of step `step` (0-based), each right-padded to its longest row."""
        return [
            self._batch([self.row(step, row) for row in part])
            for part in super().micro_batches(step)
        ]

    def micro_batches(self, step: int) -> list[list[int]]:
        """The documents of each micro-batch of step `step` (0-based); with packing every piece of
        one counts."""
        rows = super().micro_batches(step)
        return [[piece.document for row in part for piece in self.row(step, row)] for part in rows]

    def _batch(self, rows: Sequence[PackedRow]) -> Batch:
        lengths = np.array([_size(row) for row in rows], dtype=np.int32)
        shape = (len(rows), self.width(int(lengths.max())))
        ids = np.full(shape, self._pad_id, dtype=np.int32)
        mask = np.zeros(shape, dtype=bool)
        segments = np.zeros(shape, dtype=np.int32) if self.packing in ("bfd", "bfd_split") else None
        for at, row in enumerate(rows):
            position = 0
            for number, (document, start, end) in enumerate(row, 1):
                example, stop = self.examples[document], position + end - start
                ids[at, position:stop] = example.input_ids[start:end]
                mask[at, position:stop] = example.loss_mask[start:end]
                if segments is not None:
                    segments[at, position:stop] = number
                    mask[at, position] = False
                position = stop
        mask[:, 0] = False
        held = dict.fromkeys(piece.document for row in rows for piece in row)
        return Batch(ids, mask, lengths, segments, tuple(held))


def _bands(sizes: np.ndarray) -> np.ndarray:
    """Lengths as bands, eight to the doubling: rows of a band count as equally long and stay in
    random order."""
    bands: np.ndarray = np.ceil(8 * np.log2(np.maximum(sizes, 1))).astype(np.int64)
    return bands


def _size(row: PackedRow) -> int:
    return sum(piece.end - piece.start for piece in row)


def _pack_in_order(
    order: np.ndarray, lengths: np.ndarray, capacity: int, strategy: str
) -> list[PackedRow]:
    rows = pack(lengths[order].tolist(), capacity, strategy)
    return [[piece._replace(document=int(order[piece.document])) for piece in row] for row in rows]
