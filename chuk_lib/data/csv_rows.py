"""Separated fields under a header. All values are text.

Which sign separates them is read off the header, because spreadsheets write what the language of
their user asks for."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from chuk_lib.data.parsers import Broken, file_lines, refuse, suffix_of
from chuk_lib.data.types import Record, Source
from chuk_lib.errors import DataError

LONGEST_FIELD = 2**24
"""Characters. A quote that is never closed makes one field of all that follows."""
_SEPARATORS = (",", ";", "\t", "|")
_NAMED = re.compile(r'"?sep=(.)"?[;,]*\s*', re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def parse_csv(path: Path, broken: Broken = refuse) -> Iterator[Record]:
    """The rows under the header. Fields are separated by commas (tabs in `.tsv`), or by semicolons,
    tabs or bars where those are in the header and commas are not, or by what a first line such as
    `sep=;` names; where a space follows each separator of the header, it belongs to the separator.
    """
    csv.field_size_limit(LONGEST_FIELD)
    lines = file_lines(path, broken)
    first = next(lines, "")
    named = _NAMED.fullmatch(first)
    if named:
        first = next(lines, "")
    usual = "\t" if suffix_of(path) == ".tsv" else ","
    separator = named[1] if named else _separator(first, usual)
    names = _QUOTED.sub("", first).rstrip("\r\n").split(separator)
    spaced = len(names) > 1 and all(name.startswith(" ") for name in names[1:])
    source = _Lines(chain([first], lines), 1 if named else 0)
    rows = csv.reader(source, delimiter=separator, skipinitialspace=spaced, strict=True)
    header: list[str] = []
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            place = Source(str(path), source.began or source.number)
            broken(place, _broken_row(place, source, str(error)))
            source.began = 0
            continue
        if row is None:
            return
        source.began = 0
        place = Source(str(path), source.number)
        if not header:
            header = [name.rstrip() for name in row] if spaced else row
            _check_header(header, place)
        elif len(row) == len(header):
            yield Record(dict(zip(header, row, strict=True)), place)
        elif row:
            found = f"{place} has {len(row)} fields, the header has {len(header)}"
            broken(place, DataError(found, "quote fields that hold a comma, a quote or a line end"))


class _Lines:
    """Lines on their way to `csv.reader`, which does not say where a field that never ends began:
    `began` is the line of the last quote that opened in the row being read, `number` the last line
    given."""

    def __init__(self, lines: Iterable[str], before: int) -> None:
        self.number = before
        self.began = 0
        self._lines = iter(lines)
        self._is_open = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self._is_open = self._is_open and self.began > 0
        if line.count('"') % 2:
            self._is_open = not self._is_open
            self.began = self.number if self._is_open else self.began
        return line


def _separator(first: str, usual: str) -> str:
    outside = _QUOTED.sub("", first)
    return next((sign for sign in (usual, *_SEPARATORS) if sign in outside), usual)


def _broken_row(place: Source, lines: _Lines, reason: str) -> DataError:
    if lines.began and ("unexpected end" in reason or "field larger" in reason):
        until = (
            "the file ends"
            if "unexpected end" in reason
            else f"{LONGEST_FIELD // 2**20} MiB follow"
        )
        found = f"{place} is not CSV: a quote opens there and is not closed before {until}"
        return DataError(
            found, 'close it; quotes inside of a field are written twice: "say ""yes"""'
        )
    if "field larger" in reason:
        reason = f"a field is longer than {LONGEST_FIELD // 2**20} MiB"
    where = (
        f" (line {lines.number}, in the field that opens in line {place.line})"
        if lines.began
        else ""
    )
    return DataError(
        f"{place} is not CSV: {reason}{where if lines.number != place.line else ''}",
        "check its quotes",
    )


def _check_header(header: list[str], source: Source) -> None:
    name, count = Counter(header).most_common(1)[0] if header else ("", 0)
    if count > 1:
        raise DataError(
            f"{source} names the column `{name}` twice", "give each column a name of its own"
        )
