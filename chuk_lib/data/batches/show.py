"""Rows of batches as text: what a model sees, with the learned tokens told apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from chuk_lib.data.batches.folder import BatchFolder
from chuk_lib.data.batches.layouts import FileBatch
from chuk_lib.data.preview import Fragment, PreviewRow
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.errors import DataError


def show_rows(folder: BatchFolder, tokenizer: Tokenizer, file: int, rows: int) -> list[PreviewRow]:
    """The first rows of file `file` (from 1), padding left out. Raises DataError when there is no
    such file."""
    if not 1 <= file <= len(folder.files):
        raise DataError(
            f"`{folder.source}` has {len(folder.files)} files, not {file}",
            "files are counted from 1",
        )
    batch, name = folder.read(file - 1), folder.files[file - 1].name
    shown = []
    for row in range(min(rows, len(batch.lengths))):
        tokens = int(batch.lengths[row])
        trained = int(batch.loss_mask[row].sum())
        role = _role(folder, batch, row)
        fragments = tuple(_fragments(batch, row, tokenizer, role))
        shown.append(PreviewRow(f"{name} row {row + 1}", fragments, tokens, trained, 0))
    return shown


def _role(folder: BatchFolder, batch: FileBatch, row: int) -> str:
    if folder.kind != "preference":
        return ""
    return "chosen" if row < len(batch.lengths) // 2 else "rejected"


def _fragments(batch: FileBatch, row: int, tokenizer: Tokenizer, role: str) -> Iterator[Fragment]:
    """Parts that are all learned or all not, cut at documents too; text up to an end minus text up
    to a start."""
    length = int(batch.lengths[row])
    ids, mask = batch.input_ids[row, :length], batch.loss_mask[row, :length]
    documents = (
        np.zeros(length, dtype=np.int32)
        if batch.segment_ids is None
        else batch.segment_ids[row, :length]
    )
    edges = [
        at
        for at in range(1, length)
        if mask[at] != mask[at - 1] or documents[at] != documents[at - 1]
    ]
    shown, start = "", 0
    for end in [*edges, length] if length else []:
        text = _decoded(ids[:end], tokenizer)
        new = text[len(shown) :] if text.startswith(shown) else _decoded(ids[start:end], tokenizer)
        name = role if batch.segment_ids is None else f"part {documents[start]}"
        yield Fragment(new, name, bool(mask[start]), end - start)
        shown, start = text, end


def _decoded(ids: Sequence[int] | np.ndarray, tokenizer: Tokenizer) -> str:
    listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    return str(
        tokenizer.decode(listed, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )
