"""Where rows come from when it is more than one file: several sources, each taken so often, columns
under other names, and rows that are set aside for validation. Everything is a function of the
settings and the rows, so that a resumed run reads what the first one read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from chuk_lib.config.data_parts import DataPart, parts_of
from chuk_lib.data.types import Record
from chuk_lib.errors import ConfigError, DataError

Read = Callable[[str, str], Iterator[Record]]
"""The records of (a source, a split)."""


@dataclass(frozen=True)
class Sources:
    """Rows of several sources. `columns`: new name to the column it is in the rows. `val_size`:
    rows that are set aside, below 1 a share of all. `seed` chooses which rows."""

    parts: tuple[DataPart, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    val_size: float = 0.0
    seed: int = 0

    def __str__(self) -> str:
        return ",".join(map(str, self.parts))

    def records(self, split: str, read: Read, has: Callable[[str, str], bool]) -> Iterator[Record]:
        """The rows of a split, one source after another. Raises DataError for a source without it,
        and where fewer rows than two cannot be parted."""
        found = self._all("train" if self.val_size else split, read, has)
        if self.val_size and split in ("train", "valid"):
            found = self._parted(list(found), split)
        return (self._renamed(record) for record in found)

    def has(self, split: str, has: Callable[[str, str], bool]) -> bool:
        """Whether there are rows of a split."""
        if split == "valid" and self.val_size:
            return True
        return any(has(part.source, split) for part in self.parts)

    def _all(self, split: str, read: Read, has: Callable[[str, str], bool]) -> Iterator[Record]:
        chosen = [part for part in self.parts if split == "train" or has(part.source, split)]
        for number, part in enumerate(chosen):
            rows = read(part.source, split)
            if part.weight == 1 or split != "train":
                yield from rows
            else:
                yield from self._weighed(list(rows), part, number)

    def _weighed(self, rows: list[Record], part: DataPart, number: int) -> Iterator[Record]:
        times, rest = divmod(round(part.weight * len(rows)), len(rows))
        if not times and not rest:
            raise DataError(
                f"`{part}` takes no row of {len(rows)}", "give it a higher weight, or leave it out"
            )
        for _ in range(times):
            yield from rows
        for at in sorted(Random(f"{self.seed} {number}").sample(range(len(rows)), rest)):
            yield rows[at]

    def _parted(self, rows: list[Record], split: str) -> Iterator[Record]:
        """The rows set aside, or the others. Copies of a row go to one side, or what is measured
        would have been learned."""
        places = list(dict.fromkeys((r.source.name, r.source.line) for r in rows))
        share = self.val_size < 1
        count = math.ceil(self.val_size * len(places)) if share else int(self.val_size)
        if not 0 < count < len(places):
            raise DataError(
                f"val_size {self.val_size:g} leaves no row to train of {len(places)}",
                "set fewer rows aside",
            )
        aside = {places[at] for at in Random(self.seed).sample(range(len(places)), count)}
        for row in rows:
            place = (row.source.name, row.source.line)
            if (place in aside) != (split == "valid"):
                continue
            if split == "valid":
                aside.discard(place)  # measured once, however often it would be trained
            yield row

    def _renamed(self, record: Record) -> Record:
        if not self.columns:
            return record
        old = {theirs: ours for ours, theirs in self.columns.items()}
        absent = [name for name in old if name not in record.columns]
        if absent:
            raise DataError(
                f"{record.source} has no `{absent[0]}` to be `{old[absent[0]]}`",
                f"it has {', '.join(f'`{name}`' for name in record.columns) or 'no columns'}",
            )
        taken = [name for name in self.columns if name in record.columns and name not in old]
        if taken:
            raise DataError(
                f"{record.source} has a `{taken[0]}` already",
                f"give that another name too: --map other={taken[0]}",
            )
        columns = {old.get(name, name): value for name, value in record.columns.items()}
        return Record(columns, record.source)


def sources(
    text: str, columns: Sequence[str] = (), val_size: float = 0.0, seed: int = 0
) -> str | Sources:
    """What a text and settings name: the text itself where it is one plain source. Raises
    ConfigError for a mapping that is not NAME=COLUMN."""
    parts = parts_of(text)
    if len(parts) == 1 and parts[0].weight == 1 and not columns and not val_size:
        return text
    if text == "-":
        raise ConfigError(
            "rows of stdin are taken as they are", "write them to a file to map or part them"
        )
    return Sources(parts, mapping(columns), val_size, seed)


def mapping(columns: Sequence[str]) -> dict[str, str]:
    """`prompt=question` as {new name: column}. Raises ConfigError for what is not NAME=COLUMN."""
    found: dict[str, str] = {}
    for text in columns:
        ours, mark, theirs = text.partition("=")
        if not mark or not ours or not theirs or ours in found or theirs in found.values():
            raise ConfigError(
                f"`{text}` is no NAME=COLUMN of its own", "such as `--map prompt=question`"
            )
        found[ours] = theirs
    return found
