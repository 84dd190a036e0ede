"""Preference pairs in batches, as `PairDataset` makes them: the chosen rows of a file first, then
the rejected ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from chuk_lib.data.batches.documents import Documents, RenderedRow
from chuk_lib.data.batches.layouts import FileBatch
from chuk_lib.data.batches.spec import BatchSpec
from chuk_lib.data.preference_dataset import PairDataset, PairExample
from chuk_lib.data.report import DataReport
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.data.types import Record, Source
from chuk_lib.errors import DataError


def check_first(first: Record, tokenizer: Tokenizer) -> DataReport:
    """What is made of such rows. Raises DataError when the first is no pair, or has a margin, which
    batches lack."""
    dataset = PairDataset([first], tokenizer, max_length=None)
    if dataset.has_margins:
        raise DataError(
            f"{first.source} has a `margin`, which batches do not keep",
            "train from the records instead",
        )
    return dataset.report


def render_pairs(
    records: Iterable[Record], tokenizer: Tokenizer, spec: BatchSpec, first: Record
) -> RenderedRow:
    """The pairs of some records: chosen and rejected in turns, cut at `max_length`, without those
    whose prompt fills it. The first record of the source goes before them, so that all must be like
    it."""
    dataset = PairDataset([first, *records], tokenizer, max_length=None)
    made = dataset.examples[1:]
    kept = [(at, pair) for at, pair in enumerate(made) if len(pair.prompt) < spec.max_length]
    over = [pair for _, pair in kept if len(pair) > spec.max_length]
    whole = [len(pair.prompt) + len(part) for pair in over for part in pair.completions]
    parts: list[tuple[int, np.ndarray, np.ndarray]] = []
    for at, pair in kept:
        cut = pair.cut(spec.max_length)
        parts += [(at, cut.prompt, completion) for completion in cut.completions]
    lengths = np.array(
        [len(prompt) + len(completion) for _, prompt, completion in parts], dtype=np.int64
    )
    empty = np.zeros(0, dtype=np.int32)
    ids = np.concatenate([empty, *(part for _, *both in parts for part in both)]).astype(np.int32)
    masks = [
        np.repeat([False, True], [len(prompt), len(completion)]) for _, prompt, completion in parts
    ]
    mask = np.concatenate([np.zeros(0, dtype=bool), *masks])
    documents = Documents(ids, mask, lengths, np.array([at for at, _, _ in parts], dtype=np.int64))
    lost = sum(max(0, size - spec.max_length) for size in whole)
    return RenderedRow(documents, len(made), len(made) - len(kept), len(over), lost)


def pairs_of(batch: FileBatch, name: str) -> Iterator[PairExample]:
    """The pairs of a file, in order, each with its place. Raises DataError when its rows are no
    pairs."""
    count = len(batch.lengths) // 2
    if len(batch.lengths) % 2:
        raise DataError(
            f"`{name}` has {len(batch.lengths)} rows, which are no pairs", "build the batches again"
        )
    for row in range(count):
        chosen, rejected = (
            batch.input_ids[at, : batch.lengths[at]].copy() for at in (row, row + count)
        )
        starts = [_start(batch.loss_mask[at, : batch.lengths[at]]) for at in (row, row + count)]
        start = min(starts)
        if not np.array_equal(chosen[:start], rejected[:start]):
            raise DataError(
                f"`{name}` row {row + 1}: chosen and rejected share no prompt",
                "build the batches again",
            )
        yield PairExample(
            chosen[:start], chosen[start:], rejected[start:], None, Source(name, row + 1, "row")
        )


def _start(mask: np.ndarray) -> int:
    learned = np.flatnonzero(mask)
    return int(learned[0]) if len(learned) else len(mask)
