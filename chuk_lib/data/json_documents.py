"""A `.json` file as a stream of rows: an array, an object with an array under `data` or `rows`, one
row, JSON lines.

A document may be larger than the memory. Its text comes in pieces; values are decoded one after the
other from what is there, and where a value does not end in it, more is read and the value decoded
again. Reading twice as much each time keeps the work linear, and the limit for a row bounds the
memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chuk_lib.data.parsers import (
    LONGEST_LINE,
    UNREADABLE,
    Broken,
    JsonDecoder,
    json_reason,
    not_utf8,
    open_bytes,
    parse_jsonl,
    refuse,
    unreadable,
)
from chuk_lib.data.types import Record, Source, kind_of
from chuk_lib.errors import DataError

_PIECE = 2**18
"""Bytes read at once, at least."""
_NEAR_END = 16
"""Characters. A complaint this near to the end of what was read may be about the cut: no literal,
escape or tail of a number is longer, and a string that does not end says so itself."""
_BLANK = codecs.BOM_UTF8 + b" \t\r\n"
_SPACE = re.compile(r"[ \t\n\r]*")
_HINT = "a `.json` file holds an array of rows; one row a line is `.jsonl`"


def parse_json(path: Path, broken: Broken = refuse) -> Iterator[Record]:
    """The rows of a JSON document, or JSON lines under the wrong suffix, which are common. Raises
    DataError with line and column for what is not JSON."""
    if _holds_lines(path):
        yield from parse_jsonl(path, broken)
        return
    text = _Text(path)
    first = text.peek()
    if first == "[":
        yield from _array(text, path, broken)
    elif first == "{":
        yield from _object(text, path, broken)
    elif first:
        raise _no_rows(path, kind_of(text.value("the document")[0]))
    if text.peek():
        raise text.error("Extra data", text.at)


def _holds_lines(path: Path) -> bool:
    """Whether the first line is a whole object and something comes after it."""
    try:
        with open_bytes(path) as file:
            head = file.readline(2**16)
            while head and not head.strip(_BLANK):
                head = file.readline(2**16)
            if not head.lstrip(_BLANK).startswith(b"{"):
                return False
            line = head if head.endswith(b"\n") else head + file.readline(LONGEST_LINE)
            if not line.endswith(b"\n") or not line.rstrip().endswith(b"}"):
                return False
            follows = any(piece.strip() for piece in iter(lambda: file.read(2**16), b""))
    except UNREADABLE as error:
        raise unreadable(path, error) from None
    try:
        return follows and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


class _Text:
    """The text of a file from the first value that is not taken yet; `at` is where that begins in
    what was read."""

    def __init__(self, path: Path) -> None:
        self.at = 0
        self._path = path
        self._text = ""
        self._pieces = _pieces(path)
        self._decoder = JsonDecoder()
        self._lines = self._column = 0

    def peek(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            self.at = _SPACE.match(self._text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._more():
                return ""

    def take(self, wanted: str, otherwise: str) -> str:
        """The next character, which must be one of `wanted`; else `otherwise` is what the error
        says."""
        found = self.peek()
        if not found or found not in wanted:
            raise self.error(otherwise, self.at)
        self.at += 1
        return found

    def value(self, what: object) -> tuple[Any, int]:
        """The value that begins here, and where it began. Raises DataError for what is not JSON,
        and for a value of more than `LONGEST_LINE` characters, `what` being its name."""
        self.peek()
        while True:
            start = self.at
            try:
                found, end = self._decoder.raw_decode(self._text, start)
                error = None
            except (ValueError, RecursionError) as problem:
                end, error = len(self._text), problem
            if (
                (end < len(self._text) and error is None)
                or not self._may_go_on(error)
                or not self._more()
            ):
                if error is not None:
                    raise self._not_json(error)
                self.at = end
                return found, start
            if len(self._text) - self.at > LONGEST_LINE:
                raise DataError(
                    f"{what} is longer than {LONGEST_LINE // 2**20} MiB",
                    "check the file: no row is",
                )

    def record(self, row: Any, start: int, source: Source) -> Record:
        """A value that `value` returned, as a row. Raises DataError naming it for what is no
        row."""
        return self._decoder.record(row, self._text, start, self.at, source)

    def error(self, reason: str, position: int) -> DataError:
        """What is said of text that is not JSON from `position` on."""
        line = self._lines + self._text.count("\n", 0, position) + 1
        newline = self._text.rfind("\n", 0, position)
        column = position - newline if newline >= 0 else self._column + position + 1
        return DataError(f"`{self._path}` line {line} column {column} is not JSON: {reason}", _HINT)

    def _may_go_on(self, error: Exception | None) -> bool:
        """Whether more text could mend an error. One in the middle of what was read is told at
        once."""
        if not isinstance(error, json.JSONDecodeError):
            return error is None
        return (
            error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _NEAR_END
        )

    def _not_json(self, error: Exception) -> DataError:
        if isinstance(error, json.JSONDecodeError):
            return self.error(error.msg, error.pos)
        return self.error(json_reason(error, 0), self.at)

    def _more(self) -> bool:
        """Read on: as much again as there is, without what was taken. False at the end of the
        file."""
        piece, left = next(self._pieces, ""), len(self._text) - self.at
        if not piece:
            return False
        newline = self._text.rfind("\n", 0, self.at)
        self._lines += self._text.count("\n", 0, self.at)
        self._column = self.at - newline - 1 if newline >= 0 else self._column + self.at
        parts, read = [self._text[self.at :]], 0
        while piece:
            parts.append(piece)
            read += len(piece)
            piece = next(self._pieces, "") if read <= left else ""
        self._text, self.at = "".join(parts), 0
        return True


def _pieces(path: Path) -> Iterator[str]:
    """The text of a file in parts that are never empty, without a byte order mark."""
    line, column, rest = 1, 0, b""
    try:
        with open_bytes(path) as file:
            data = file.read(_PIECE).removeprefix(codecs.BOM_UTF8)
            while data:
                piece = file.read(_PIECE)
                try:
                    text, used = codecs.utf_8_decode(data, "strict", not piece)
                except UnicodeDecodeError as error:
                    newline = data.rfind(b"\n", 0, error.start)
                    line += data.count(b"\n", 0, error.start)
                    position = error.start - newline if newline >= 0 else column + error.start + 1
                    raise not_utf8(data[error.start], position, str(path), line) from None
                if text:
                    yield text
                newline = data.rfind(b"\n", 0, used)
                line += data.count(b"\n", 0, used)
                column = used - newline - 1 if newline >= 0 else column + used
                rest = data[used:]
                data = rest + piece
    except UNREADABLE as error:
        raise unreadable(path, error, line - 1) from None


def _array(text: _Text, path: Path, broken: Broken) -> Iterator[Record]:
    """The rows of the array that begins here."""
    text.take("[", "Expecting value")
    number, sign = 0, ","
    if text.peek() == "]":
        text.take("]", "")
        return
    while sign == ",":
        number += 1
        source = Source(str(path), number, "row")
        row, start = text.value(source)
        try:
            record = text.record(row, start, source)
        except DataError as error:
            broken(source, error)
        else:
            yield record
        sign = text.take(",]", "Expecting ',' delimiter")


def _object(text: _Text, path: Path, broken: Broken) -> Iterator[Record]:
    """The rows under `data` or `rows` of the object that begins here, or the object as the only
    row."""
    columns: dict[str, Any] = {}
    under = ""
    text.take("{", "Expecting value")
    sign = text.take("}", "") if text.peek() == "}" else ","
    while sign == ",":
        name = _name(text)
        if name in columns or name == under:
            raise DataError(
                f"`{path}` has the key `{name[:60]}` twice", "one would be lost: remove one"
            )
        if name in ("data", "rows") and text.peek() == "[":
            if under:
                raise DataError(
                    f"`{path}` holds rows under `data` and under `rows`", "keep one of the two"
                )
            under = name
            yield from _array(text, path, broken)
        else:
            columns[name] = text.value(f"`{path}`: the value of `{name[:60]}`")[0]
        sign = text.take(",}", "Expecting ',' delimiter")
    if not under:
        yield from _only_row(columns, path, broken)


def _name(text: _Text) -> str:
    if text.peek() != '"':
        raise text.error("Expecting property name enclosed in double quotes", text.at)
    name = str(text.value("a key")[0])
    text.take(":", "Expecting ':' delimiter")
    return name


def _only_row(columns: dict[str, Any], path: Path, broken: Broken) -> Iterator[Record]:
    """An object that is a row: it holds no lists but of messages."""
    if any(
        isinstance(value, list) and key not in ("messages", "conversations")
        for key, value in columns.items()
    ):
        raise _no_rows(path, f"an object with {', '.join(columns)}")
    whole = json.dumps(columns, ensure_ascii=True)
    source = Source(str(path), 1, "row")
    try:
        record = JsonDecoder().record(columns, whole, 0, len(whole), source)
    except DataError as error:
        broken(source, error)
    else:
        yield record


def _no_rows(path: Path, found: str) -> DataError:
    return DataError(
        f"`{path}` holds {found[:200]}, not rows",
        "it should hold an array of rows, alone or under `data`",
    )
