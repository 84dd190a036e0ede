"""Several sources as one stream, drawn by weight and seed. One row of each source is in memory at a
time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random

from chuk_lib.data.reader import read_records
from chuk_lib.data.types import Record
from chuk_lib.data.workbench.shapes import Shaper
from chuk_lib.errors import ConfigError, DataError
from chuk_lib.utils.paths import shell_word

STOPS = ("all", "first")


@dataclass(frozen=True)
class MixPart:
    """A source and how often it is drawn, relative to the others."""

    source: str
    weight: float = 1.0


def parse_part(text: str) -> MixPart:
    """`FILE=WEIGHT`, or a file alone with the weight 1. Raises ConfigError for a weight that is no
    number above 0."""
    name, sign, weight = text.rpartition("=")
    if not sign:
        return MixPart(text)
    try:
        value = float(weight)
    except ValueError:
        return MixPart(text)
    if not 0 < value < float("inf"):
        raise ConfigError(f"`{text}`: a weight is a number above 0", "such as math.jsonl=0.3")
    return MixPart(name, value)


def mixed(
    parts: Sequence[MixPart],
    drawn: Counter[str],
    *,
    rows: int | None = None,
    seed: int = 42,
    stop: str = "all",
    split: str = "train",
    tag: str | None = None,
) -> Iterator[Record]:
    """Rows of the parts, each part in its own order. With `rows` a part that ends starts again
    until there are as many; else the stream ends with the last part (`stop="all"`) or the first one
    (`"first"`). `tag` names a column that says where a row came from; `drawn` counts the rows of
    each part. Raises DataError when formats differ."""
    if stop not in STOPS:
        raise ConfigError(f"unknown stop `{stop}`", f"one of: {', '.join(STOPS)}")
    if sum(part.source == "-" for part in parts) > 1 or (
        rows is not None and any(p.source == "-" for p in parts)
    ):
        raise ConfigError("stdin can be read only once", "write it to a file first")
    random = Random(seed)
    streams = dict(enumerate(_opened(parts, split)))
    made = 0
    while streams and (rows is None or made < rows):
        index = random.choices(list(streams), [parts[at].weight for at in streams])[0]
        record = next(streams[index], None)
        if record is None:
            if rows is None and stop == "first":
                return
            del streams[index]
            if rows is not None:
                streams = dict(
                    sorted({**streams, index: read_records(parts[index].source, split)}.items())
                )
            continue
        made += 1
        drawn[parts[index].source] += 1
        yield Record({**record.columns, tag: parts[index].source}, record.source) if tag else record


def _opened(parts: Sequence[MixPart], split: str) -> list[Iterator[Record]]:
    """The records of every part. The first row of each decides its format, and all must have the
    same."""
    streams: list[Iterator[Record]] = []
    formats: list[str | None] = []
    for part in parts:
        stream = read_records(part.source, split)
        first = next(stream)
        shaper = Shaper()
        shaper(first)
        formats.append(shaper.format)
        if formats[-1] != formats[0]:
            raise DataError(
                f"`{part.source}` holds {formats[-1]} rows, `{parts[0].source}` {formats[0]} rows",
                f"make them alike first: chuk data convert {shell_word(part.source)} --to"
                f" {formats[0]}",
            )
        streams.append(chain([first], stream))
    return streams
