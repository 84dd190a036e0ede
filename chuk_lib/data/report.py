"""What became of a data source: format, rows, what was cut or left out, tokens, and how long rows
are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class DataReport:
    """Counts over one split. `conversational` rows went through the chat template; `dropped` rows
    had no token to learn, `truncated` ones were cut at `max_length`; `how` says what was made of a
    row; `lengths` are (longest, rows) bins of the rows kept."""

    source: str
    split: str
    format: str
    how: str
    loss_on: str
    rows: int
    kept: int
    dropped: int
    truncated: int
    tokens: int
    trained_tokens: int
    max_length: int | None
    longest: int
    conversational: bool
    lengths: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()

    @property
    def trained_share(self) -> float:
        """Learned tokens as a share of all."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        bins = [{"up_to": bound, "rows": count} for bound, count in self.lengths]
        share = round(self.trained_share, 4)
        return asdict(self) | {"trained_share": share, "lengths": bins, "notes": list(self.notes)}


def length_bins(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Rows by length in bins that double: (16, n) counts rows of up to 16 tokens. Empty for no
    rows."""
    if not len(lengths):
        return ()
    exponents = np.maximum(4, np.ceil(np.log2(np.maximum(lengths, 1)))).astype(int)
    low, high = int(exponents.min()), int(exponents.max())
    counts = np.bincount(exponents - low, minlength=high - low + 1)
    return tuple((2 ** (low + index), int(count)) for index, count in enumerate(counts))
