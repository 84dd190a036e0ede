"""The words that data is made of: a record is a parsed row, an example is a record as ids and mask,
a batch is what a model sees at once. NumPy only: batches are made while another step runs, possibly
in another thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Source:
    """Where a record came from, for messages: `train.jsonl` line 17. `unit` is "row" where files
    have no lines."""

    name: str
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"`{self.name}` {self.unit} {self.line}"


def kind_of(value: Any) -> str:
    """What a value is, in the words of messages: a list, text, a number, null."""
    names = {
        list: "a list",
        dict: "an object",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


@dataclass(frozen=True)
class Record:
    """One parsed row: its columns as found, and where it stood."""

    columns: dict[str, Any]
    source: Source


@dataclass(frozen=True)
class Span:
    """Tokens start..end (end excluded) written by one role: system, user, assistant, tool, prompt,
    completion, text."""

    role: str
    start: int
    end: int


@dataclass(frozen=True)
class Example:
    """A record as token ids and the mask of tokens that are learned.

    `input_ids` int32 (T,); `loss_mask` bool (T,): True where the token itself is a target, so
    position 0 never counts in the loss whatever its mask says."""

    input_ids: np.ndarray
    loss_mask: np.ndarray
    spans: Sequence[Span] = ()
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def trained_tokens(self) -> int:
        """Targets in this row."""
        return int(self.loss_mask[1:].sum())


@dataclass(frozen=True)
class Batch:
    """One micro-batch, right-padded.

    `input_ids` int32 (B, T); `loss_mask` bool (B, T): True where the token is a target (column 0
    and the first token of every packed document are always False); `lengths` int32 (B,): tokens
    before padding; `segment_ids` int32 (B, T) when rows hold several documents: 1, 2, … per
    document and 0 on padding, else None; `rows`: which examples it holds."""

    input_ids: np.ndarray
    loss_mask: np.ndarray
    lengths: np.ndarray
    segment_ids: np.ndarray | None = None
    rows: Sequence[int] = field(default_factory=tuple)

    def take(self, rows: Sequence[int]) -> Batch:
        """Some of its rows, by their places in it, as wide as before."""
        places = list(rows)
        return Batch(
            self.input_ids[places],
            self.loss_mask[places],
            self.lengths[places],
            None if self.segment_ids is None else self.segment_ids[places],
            [self.rows[place] for place in places] if len(self.rows) else (),
        )

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.lengths.sum())

    @property
    def trained_tokens(self) -> int:
        """Targets."""
        return int(self.loss_mask.sum())
