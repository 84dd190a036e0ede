"""Counting what became of the records of a build, and saying it as `DataReport` does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from chuk_lib.data.batches.documents import RenderedRow, RenderPlan
from chuk_lib.data.batches.manifest import FileEntry
from chuk_lib.data.report import DataReport

_COUNTED = re.compile(r"in ([\d,]+) rows ")


@dataclass
class BuildTally:
    """Sums over blocks. `bins` has the rows of up to 2^k tokens; `stops`: a text's end is learned
    somewhere."""

    read: int = 0
    dropped: int = 0
    truncated: int = 0
    lost: int = 0
    tokens: int = 0
    longest: int = 0
    stops: bool = False
    bins: dict[str, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    @classmethod
    def restored(cls, content: Mapping[str, Any]) -> BuildTally:
        """As `as_dict` gave it."""
        return cls(**content)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def count(self, rendered: RenderedRow) -> None:
        """Add a block."""
        lengths = rendered.documents.lengths
        self.read += rendered.read
        self.dropped += rendered.dropped
        self.truncated += rendered.truncated
        self.lost += rendered.lost
        self.stops = self.stops or rendered.stops
        self.said += [note for note in rendered.notes if _key(note) not in map(_key, self.said)]
        if not len(lengths):
            return
        self.tokens += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max()))
        exponents = np.maximum(4, np.ceil(np.log2(np.maximum(lengths, 1)))).astype(int)
        for exponent, count in enumerate(np.bincount(exponents)):
            if count:
                self.bins[str(exponent)] = self.bins.get(str(exponent), 0) + int(count)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how these rows were rendered."""
        notes = sorted(
            _COUNTED.sub("in some rows ", note)
            for note in self.said
            if not note.startswith("no row learns")
        )
        if self.read and not self.stops:
            notes.append("no row learns an end-of-text token: the model may not learn to stop")
        return tuple(notes)

    def report(
        self, plan: RenderPlan, source: str, split: str, files: Sequence[FileEntry]
    ) -> dict[str, Any]:
        """The counts as `DataReport` has them, with the tokens that were cut off."""
        low, high = min(map(int, self.bins)), max(map(int, self.bins))
        spec = plan.spec
        report = DataReport(
            source=source,
            split=split,
            format=plan.format,
            how=plan.how,
            loss_on=plan.loss_on,
            rows=self.read,
            kept=self.read - self.dropped,
            dropped=self.dropped,
            truncated=self.truncated,
            tokens=sum(entry.tokens for entry in files),
            trained_tokens=sum(entry.trained_tokens for entry in files),
            max_length=spec.max_length,
            longest=self.longest,
            conversational=plan.conversational,
            lengths=tuple((2**k, self.bins.get(str(k), 0)) for k in range(low, high + 1)),
            notes=self.notes,
        )
        return report.as_dict() | {"lost_tokens": self.lost}


def _key(note: str) -> str:
    return _COUNTED.sub("", note)
