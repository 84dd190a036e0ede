"""Rows as training sees them: the text that the tokens stand for, cut where a role or the loss mask
changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from chuk_lib.data.rendering import Renderer
from chuk_lib.data.sft_dataset import truncate
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.data.types import Example, Record


@dataclass(frozen=True)
class Fragment:
    """Decoded tokens of one role that are all learned or all not."""

    text: str
    role: str
    trained: bool
    tokens: int


@dataclass(frozen=True)
class PreviewRow:
    """One row: where it stood, its fragments, and its counts. `cut` tokens lie beyond
    `max_length`."""

    source: str
    fragments: tuple[Fragment, ...]
    tokens: int
    trained_tokens: int
    cut: int


def preview_rows(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    *,
    rows: int = 3,
    max_length: int | None = 1024,
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool = False,
    format: str | None = None,
    text_field: str = "text",
) -> list[PreviewRow]:
    """The first rows as `SFTDataset` with the same settings makes them, rows that it would drop
    included."""
    renderer = Renderer(
        tokenizer,
        completion_only_loss=completion_only_loss,
        assistant_only_loss=assistant_only_loss,
        format=format,
        text_field=text_field,
        spans=True,
    )
    return [
        _row(example, tokenizer, max_length) for example in renderer.render(islice(records, rows))
    ]


def _row(example: Example, tokenizer: Tokenizer, max_length: int | None) -> PreviewRow:
    kept = example if max_length is None else truncate(example, max_length)
    fragments = tuple(_fragments(kept, tokenizer))
    return PreviewRow(
        str(example.source), fragments, len(kept), kept.trained_tokens, len(example) - len(kept)
    )


def _fragments(example: Example, tokenizer: Tokenizer) -> Iterable[Fragment]:
    """Text of a part = text up to its end minus text up to its start: tokens decoded alone lose
    spaces."""
    roles = np.full(len(example), "", dtype=object)
    for span in example.spans:
        roles[span.start : span.end] = span.role
    mask = example.loss_mask
    edges = [
        at
        for at in range(1, len(example))
        if mask[at] != mask[at - 1] or roles[at] != roles[at - 1]
    ]
    shown, start = "", 0
    for end in [*edges, len(example)]:
        text = _decoded(example.input_ids[:end], tokenizer)
        new = (
            text[len(shown) :]
            if text.startswith(shown)
            else _decoded(example.input_ids[start:end], tokenizer)
        )
        yield Fragment(new, str(roles[start]), bool(mask[start]), end - start)
        shown, start = text, end


def _decoded(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    return str(
        tokenizer.decode(
            ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )
