"""What the arrays of a batch file mean: the layout that chuk writes, and every older one that is
still about.

Written: `input_tensor` (B, T) whole rows, `target_tensor` (B, T) the token after each position,
`attention_mask_tensor` (B, T) 1 where that target is learned (a loss mask, despite its name),
`lengths` (B,), `record_tensor` (D,) the source record of each document, and for packed rows
`segment_tensor` (B, T) 1, 2, … per document and 0 on padding.

Read besides: files without a mask or lengths; rows whose target is an answer instead of the shifted
row; `concatenated_tensor` with prompt and answer in one row; `input_ids` with `loss_mask`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from chuk_lib.errors import DataError

INPUT, TARGET, MASK, LENGTHS = "input_tensor", "target_tensor", "attention_mask_tensor", "lengths"
SEGMENTS, RECORDS, JOINED, IDS, LOSS_MASK = (
    "segment_tensor",
    "record_tensor",
    "concatenated_tensor",
    "input_ids",
    "loss_mask",
)
KEYS = (INPUT, TARGET, MASK, LENGTHS, SEGMENTS, RECORDS, JOINED, IDS, LOSS_MASK)
_HINT = "build the batches again with `chuk batch build`"


@dataclass(frozen=True)
class FileBatch:
    """The rows of one file. `input_ids` int32 (B, T), `loss_mask` bool (B, T) True where the token
    itself is learned (never in column 0), `lengths` int32 (B,), `segment_ids` int32 (B, T) or None,
    `records` int64 (D,) the number of each document in its source, row by row, or None where nobody
    knows. `layout` names how it was stored."""

    input_ids: np.ndarray
    loss_mask: np.ndarray
    lengths: np.ndarray
    segment_ids: np.ndarray | None = None
    records: np.ndarray | None = None
    layout: str = "shifted"

    @property
    def documents(self) -> int:
        """Documents in all rows: segments where rows are packed, else rows."""
        if self.segment_ids is None:
            return len(self.lengths)
        return int(self.segment_ids.max(axis=1, initial=0).sum())


def facts_of(batch: FileBatch) -> dict[str, int]:
    """Counts of one file, as the manifest lists them."""
    return {
        "rows": batch.input_ids.shape[0],
        "length": batch.input_ids.shape[1],
        "documents": batch.documents,
        "tokens": int(batch.lengths.sum()),
        "trained_tokens": int(batch.loss_mask.sum()),
    }


def to_arrays(batch: FileBatch, pad_id: int) -> dict[str, np.ndarray]:
    """The arrays of a file, int32. Padding of `input_ids` must be `pad_id`."""
    targets = np.full(batch.input_ids.shape, pad_id, dtype=np.int32)
    targets[:, :-1] = batch.input_ids[:, 1:]
    mask = np.zeros(batch.input_ids.shape, dtype=np.int32)
    mask[:, :-1] = batch.loss_mask[:, 1:]
    arrays = {INPUT: batch.input_ids, TARGET: targets, MASK: mask, LENGTHS: batch.lengths}
    if batch.segment_ids is not None:
        arrays[SEGMENTS] = batch.segment_ids
    if batch.records is not None:
        arrays[RECORDS] = batch.records.astype(np.int32)
    return arrays


def from_arrays(
    arrays: Mapping[str, np.ndarray], name: str, pad_id: int | None = None
) -> FileBatch:
    """The rows that arrays stand for. `pad_id` is what fills rows up where neither lengths nor a
    mask say how long they are; None finds it out. Raises DataError naming the file."""
    arrays = {key: _integers(array, key, name) for key, array in arrays.items()}
    if JOINED in arrays:
        return _joined(arrays, name, pad_id)
    if IDS in arrays:
        return _plain(arrays, name, pad_id)
    if INPUT not in arrays or TARGET not in arrays:
        found = ", ".join(f"`{key}`" for key in arrays) or "none that chuk knows"
        raise DataError(f"`{name}` has no `{INPUT}` and `{TARGET}` (arrays: {found})", _HINT)
    _check_shapes(arrays, INPUT, (TARGET, MASK, SEGMENTS), name)
    if _is_shifted(arrays[INPUT], arrays[TARGET], arrays.get(MASK), pad_id):
        return _shifted(arrays, name, pad_id)
    return _answers(arrays, name, pad_id)


def _integers(array: np.ndarray, key: str, name: str) -> np.ndarray:
    """As int32, or int64 for records. Older tools also wrote whole numbers as floats."""
    if array.dtype.kind == "f" and not (
        np.isfinite(array).all() and (array == np.floor(array)).all()
    ):
        raise DataError(f"`{name}`: `{key}` holds numbers that are not whole", _HINT)
    if array.size and array.dtype.kind != "b":
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > 2**31 - 1:
            worst = low if low < 0 else high
            raise DataError(
                f"`{name}`: `{key}` holds {worst:.0f}, which is no token or length", _HINT
            )
    return array.astype(np.int32, copy=False)


def _check_shapes(
    arrays: Mapping[str, np.ndarray], first: str, others: tuple[str, ...], name: str
) -> None:
    """Raise DataError unless arrays are (B, T) alike, with at least one row and column, and lengths
    fit."""
    shape = arrays[first].shape
    if len(shape) != 2 or 0 in shape:
        raise DataError(f"`{name}`: `{first}` has the shape {shape}, not (rows, length)", _HINT)
    for key in others:
        if key in arrays and arrays[key].shape != shape:
            raise DataError(
                f"`{name}`: `{key}` has the shape {arrays[key].shape}, `{first}` {shape}", _HINT
            )
    for key in (MASK, LOSS_MASK):
        if key in arrays and arrays[key].size and int(arrays[key].max()) > 1:
            raise DataError(
                f"`{name}`: `{key}` holds {int(arrays[key].max())}, a mask is 0 or 1", _HINT
            )
    if LENGTHS in arrays:
        lengths = arrays[LENGTHS]
        if lengths.shape != shape[:1] or (lengths.size and int(lengths.max()) > shape[1]):
            raise DataError(f"`{name}`: `{LENGTHS}` does not fit rows of the shape {shape}", _HINT)


def _is_shifted(
    inputs: np.ndarray, targets: np.ndarray, mask: np.ndarray | None, pad_id: int | None
) -> bool:
    """Whether each learned target is the token after its position. The last of a row may be a token
    of its own."""
    pad = pad_id if pad_id is not None else _shared_padding(inputs, targets)
    real = mask > 0 if mask is not None else inputs != pad
    ends = inputs.shape[1] - 1 - np.argmax(real[:, ::-1], axis=1)
    compared = real[:, :-1] & (np.arange(inputs.shape[1] - 1)[None] < ends[:, None])
    return not bool((compared & (targets[:, :-1] != inputs[:, 1:])).any())


def _shifted(arrays: Mapping[str, np.ndarray], name: str, pad_id: int | None) -> FileBatch:
    """Rows and the same rows one token on. Where the last column has a target of its own the row is
    one longer."""
    inputs, targets, mask = arrays[INPUT], arrays[TARGET], arrays.get(MASK)
    pad = _pad_of(targets) if pad_id is None else pad_id
    lengths = arrays[LENGTHS] if LENGTHS in arrays else _lengths(inputs, targets, mask, pad)
    at = np.arange(len(lengths))
    last = np.maximum(lengths - 1, 0)
    extra = (lengths > 0) & (targets[at, last] != pad if pad is not None else True)
    if mask is not None:
        extra &= mask[at, last] > 0
    if SEGMENTS in arrays or not extra.any():
        wide, learned = inputs, np.zeros(inputs.shape, dtype=bool)
    else:
        wide = np.pad(inputs, ((0, 0), (0, 1)), constant_values=pad or 0)
        wide[at[extra], lengths[extra]] = targets[at[extra], last[extra]]
        lengths, learned = lengths + extra.astype(np.int32), np.zeros(wide.shape, dtype=bool)
    width = wide.shape[1] - 1
    learned[:, 1:] = mask[:, :width] > 0 if mask is not None else True
    return _finished(
        wide, learned, lengths, arrays, name, "shifted" if mask is not None else "shifted, no mask"
    )


def _pad_of(targets: np.ndarray) -> int | None:
    """What rows are filled up with: the last target of every row, when they agree."""
    last = targets[:, -1]
    return int(last[0]) if (last == last[0]).all() else None


def _lengths(
    inputs: np.ndarray, targets: np.ndarray, mask: np.ndarray | None, pad: int | None
) -> np.ndarray:
    """Tokens before padding of each row of inputs."""
    real = (
        mask > 0
        if mask is not None
        else (inputs != pad if pad is not None else np.ones(inputs.shape, dtype=bool))
    )
    lengths = np.where(real.any(axis=1), inputs.shape[1] - np.argmax(real[:, ::-1], axis=1), 0)
    if mask is not None:  # the token that the last learned position predicts may stand in the row
        at = np.arange(len(lengths))
        last, following = np.maximum(lengths - 1, 0), np.minimum(lengths, inputs.shape[1] - 1)
        stands = (
            (lengths > 0)
            & (lengths < inputs.shape[1])
            & (inputs[at, following] == targets[at, last])
        )
        lengths = lengths + (stands if pad is None else stands & (targets[at, last] != pad))
    return lengths.astype(np.int32)


def _answers(arrays: Mapping[str, np.ndarray], name: str, pad_id: int | None) -> FileBatch:
    """Prompts as input and answers as target, position by position: joined here, and the answers
    learned."""
    inputs, targets = arrays[INPUT], arrays[TARGET]
    pad = pad_id if pad_id is not None else _shared_padding(inputs, targets)
    parts = [
        (_stripped(row, pad), _stripped(answer, pad))
        for row, answer in zip(inputs, targets, strict=True)
    ]
    lengths = np.array([len(prompt) + len(answer) for prompt, answer in parts], dtype=np.int32)
    shape = (len(parts), max(1, int(lengths.max())))
    ids, learned = np.full(shape, pad, dtype=np.int32), np.zeros(shape, dtype=bool)
    for at, (prompt, answer) in enumerate(parts):
        ids[at, : len(prompt)] = prompt
        ids[at, len(prompt) : lengths[at]] = answer
        learned[at, len(prompt) : lengths[at]] = True
    return _finished(ids, learned, lengths, {}, name, "prompt and answer apart")


def _shared_padding(inputs: np.ndarray, targets: np.ndarray) -> int:
    """The commonest last token of inputs and targets; 0, which older tools filled with, where
    nothing repeats."""
    values, counts = np.unique(np.concatenate([inputs[:, -1], targets[:, -1]]), return_counts=True)
    return int(values[np.argmax(counts)]) if counts.max() > 1 else 0


def _stripped(row: np.ndarray, pad: int) -> np.ndarray:
    real = np.flatnonzero(row != pad)
    return row[: real[-1] + 1] if len(real) else row[:0]


def _joined(arrays: Mapping[str, np.ndarray], name: str, pad_id: int | None) -> FileBatch:
    """Prompt in the first half of a row, answer in the second, which is learned."""
    _check_shapes(arrays, JOINED, (), name)
    ids = arrays[JOINED]
    pad = pad_id if pad_id is not None else 0
    lengths = (
        arrays[LENGTHS]
        if LENGTHS in arrays
        else np.array([len(_stripped(row, pad)) for row in ids], np.int32)
    )
    learned = np.zeros(ids.shape, dtype=bool)
    learned[:, ids.shape[1] // 2 :] = True
    return _finished(ids, learned, lengths, {}, name, "prompt and answer in halves")


def _plain(arrays: Mapping[str, np.ndarray], name: str, pad_id: int | None) -> FileBatch:
    """Rows with a mask of their own tokens, not shifted."""
    _check_shapes(arrays, IDS, (LOSS_MASK,), name)
    ids, mask = arrays[IDS], arrays.get(LOSS_MASK)
    pad = pad_id if pad_id is not None else _pad_of(ids)
    real = ids != pad if pad is not None else np.ones(ids.shape, dtype=bool)
    real = real | (mask > 0) if mask is not None else real
    lengths = np.where(real.any(axis=1), ids.shape[1] - np.argmax(real[:, ::-1], axis=1), 0).astype(
        np.int32
    )
    learned = mask > 0 if mask is not None else np.ones(ids.shape, dtype=bool)
    return _finished(ids, learned, lengths, {}, name, "ids and loss mask")


def _finished(
    ids: np.ndarray,
    learned: np.ndarray,
    lengths: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    name: str,
    layout: str,
) -> FileBatch:
    learned = learned & (np.arange(ids.shape[1])[None] < lengths[:, None])
    learned[:, 0] = False
    batch = FileBatch(ids, learned, lengths, arrays.get(SEGMENTS), None, layout)
    records = arrays.get(RECORDS)
    if records is None:
        return batch
    if records.ndim != 1 or (batch.segment_ids is not None and len(records) != batch.documents):
        raise DataError(f"`{name}`: `{RECORDS}` does not name one record a document", _HINT)
    return FileBatch(ids, learned, lengths, batch.segment_ids, records.astype(np.int64), layout)
