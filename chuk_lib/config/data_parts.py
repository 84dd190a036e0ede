"""How data is named: one source, or several with commas between, each with how often its rows are
taken: `sums.jsonl,chats.jsonl=0.3`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from chuk_lib.errors import ConfigError


class DataPart(NamedTuple):
    """A source and how often each of its rows is taken: 0.3 is three rows of ten, 2 is twice."""

    source: str
    weight: float = 1.0

    def __str__(self) -> str:
        return self.source if self.weight == 1 else f"{self.source}={self.weight:g}"


def parts_of(text: str) -> tuple[DataPart, ...]:
    """The sources that a text names; a path that is there is one, whatever stands in its name.
    Raises ConfigError for a weight that is not above 0, and where stdin is one of several."""
    if Path(text).exists() or text == "-":
        return (DataPart(text),)
    parts = tuple(_part(piece.strip()) for piece in text.split(",") if piece.strip())
    if len(parts) > 1 and any(part.source == "-" for part in parts):
        raise ConfigError("stdin cannot be one of several sources", "write it to a file first")
    return parts or (DataPart(text),)


def with_parts(text: str, move: Callable[[str], str]) -> str:
    """A text that names data, with `move` done to each source."""
    parts = parts_of(text)
    return ",".join(str(part._replace(source=move(part.source))) for part in parts)


def _part(text: str) -> DataPart:
    source, mark, weight = text.rpartition("=")
    if not mark or Path(text).exists():
        return DataPart(text)
    try:
        value = float(weight)
    except ValueError:
        return DataPart(text)
    if not 0 < value < math.inf:
        raise ConfigError(
            f"`{text}`: {weight} is no weight",
            "above 0: 0.3 takes three rows of ten, 2 takes each row twice",
        )
    return DataPart(source, value)
