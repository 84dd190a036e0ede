"""Bytes to lines to records: what all parsers share, and those of JSON lines and plain text.

A row that cannot be read goes to `broken`, which raises, or takes note of it so that the rows after
it are still read."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from chuk_lib.data.types import Record, Source, kind_of
from chuk_lib.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt")
"""What is read and written."""
READ_SUFFIXES = (*SUFFIXES, ".arrow", ".feather")
"""What is read."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes behind the suffix. All are read, `.gz` is written too."""
ROW_EXAMPLE = '{"text": "…"} or {"messages": […]}'
LONGEST_LINE = 2**26
"""Bytes of a row of any kind of file. No row is that long; a damaged or hostile file may be, and
would fill the memory."""
DEEPEST = 100
"""Brackets in brackets. Parsers and writers recurse, and no row that means something nests like
that."""
_SPACES = " \t\n\r"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")

Broken = Callable[[Source, DataError], None]
"""Told about each row that cannot be read. Whatever it raises ends the reading."""


class SupportsReadline(Protocol):
    """What lines of bytes are read from."""

    def readline(self, size: int, /) -> bytes:
        """A line of at most `size` bytes; empty at the end."""


class LongLineError(OSError):
    """A line that is longer than any row."""


class EncodingError(DataError):
    """Bytes that are not UTF-8, or half a character."""


def refuse(source: Source, error: DataError) -> None:
    """The `Broken` of ordinary reading: raise at the first row that cannot be read."""
    raise error from None


def suffix_of(path: Path) -> str:
    """`.jsonl` of `train.jsonl.gz`."""
    return Path(plain_name(path.name).lower()).suffix


def plain_name(name: str) -> str:
    """`train.jsonl` of `train.jsonl.gz`."""
    packed = next((end for end in COMPRESSED if name.lower().endswith(end)), "")
    return name[: len(name) - len(packed)]


def open_bytes(path: Path) -> io.BufferedIOBase:
    """A file for reading, unpacked by its last suffix: gzip, bzip2, xz, Zstandard, or as it is."""
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.open(path)
    if name.endswith(".bz2"):
        return bz2.open(path)
    if name.endswith(".xz"):
        return lzma.open(path)
    if name.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def unreadable(path: Path | str, error: Exception, line: int = 0) -> DataError:
    """What is said of a file that cannot be read on; `line` is the last one that could be."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    place = f" after line {line}" if line else ""
    if isinstance(error, LongLineError):
        hint = "check the file: no row is that long"
    elif isinstance(error, OSError) and error.errno is not None:
        hint = "check the file and its permissions"
    else:
        hint = (
            "check the file: it is cut off, damaged or not what its suffix says; fetch or write it"
            " again"
        )
    return DataError(f"`{path}` cannot be read{place}: {reason}", hint)


UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a file raises, packed or not."""


def file_lines(path: Path, broken: Broken = refuse) -> Iterator[str]:
    """Decoded lines with their line ends, from a file packed or not. A line that is not UTF-8 comes
    out empty. Raises DataError for a file that cannot be read to its end, or with a line of more
    than `LONGEST_LINE` bytes."""
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(decoded(bounded(file), str(path), broken), 1):  # noqa: B007
                yield line
    except UNREADABLE as error:
        raise unreadable(path, error, number) from None


def bounded(file: SupportsReadline) -> Iterator[bytes]:
    """Lines of bytes. Raises LongLineError for one of more than `LONGEST_LINE`."""
    for line in iter(partial(file.readline, LONGEST_LINE), b""):
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            raise LongLineError(f"the next line is longer than {LONGEST_LINE // 2**20} MiB")
        yield line


def decoded(lines: Iterable[bytes], name: str, broken: Broken = refuse) -> Iterator[str]:
    """Lines as text, without a byte order mark. A line that is not UTF-8 comes out empty."""
    for number, raw in enumerate(lines, 1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            broken(Source(name, number), not_utf8(raw[error.start], error.start + 1, name, number))
            text = ""
        yield text


def not_utf8(byte: int, position: int, name: str, line: int) -> EncodingError:
    """What is said of a byte that is no UTF-8; `position` counts the bytes of its line from 1."""
    hint = (
        f"save it as UTF-8: iconv -f ENCODING -t UTF-8 {'' if name == 'stdin' else name}".rstrip()
    )
    return EncodingError(
        f"`{name}` line {line} is not UTF-8 (byte 0x{byte:02x} at position {position})", hint
    )


def parse_jsonl(path: Path, broken: Broken = refuse) -> Iterator[Record]:
    """One JSON object a line."""
    return parse_json_lines(file_lines(path, broken), str(path), broken)


def parse_json_lines(lines: Iterable[str], name: str, broken: Broken = refuse) -> Iterator[Record]:
    """Records of lines that are already text; `name` is what messages call their file."""
    decoder = JsonDecoder()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        source = Source(name, number)
        try:
            record = record_of(decoder, line, source)
        except DataError as error:
            broken(source, error)
            continue
        yield record


class JsonDecoder:
    """JSON to values, and what else makes a row of one.

    The standard library's decoder: it is fast enough (300 MB/s and more), streams out of a longer
    text, and can tell that an object has one key twice, of which every decoder keeps the last and
    forgets the other."""

    def __init__(self) -> None:
        self._twice: str | None = None
        self.raw_decode = json.JSONDecoder(object_pairs_hook=self._object).raw_decode

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            self._twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        return row

    def record(self, row: Any, text: str, start: int, end: int, source: Source) -> Record:
        """The row that was decoded from `text[start:end]`. Raises DataError naming it for what is
        no row."""
        twice, self._twice = self._twice, None
        if twice is not None:
            raise DataError(
                f"{source} has the key `{twice[:60]}` twice",
                "one of the two would be lost: remove one",
            )
        if text.count("[", start, end) + text.count("{", start, end) > DEEPEST:
            _refuse_depth(row, source)
        if _HALF.search(text, start, end):
            _refuse_half_characters(row, source)
        return Record(as_object(row, source), source)


def record_of(decoder: JsonDecoder, line: str, source: Source) -> Record:
    """The row of one line. Raises DataError naming the line for what is no JSON object."""
    begin, length = len(line) - len(line.lstrip(_SPACES)), len(line.rstrip(_SPACES))
    try:
        row, end = decoder.raw_decode(line, begin)
        if end != length:
            raise json.JSONDecodeError(
                "Extra data", line, end + len(line[end:]) - len(line[end:].lstrip(_SPACES))
            )
    except (ValueError, RecursionError) as error:
        reason = json_reason(error, len(line.rstrip()))
        raise DataError(f"{source} is not JSON: {reason}", _jsonl_hint(line, source.line)) from None
    return decoder.record(row, line, 0, end, source)


def json_reason(error: Exception, length: int) -> str:
    """Why a line of `length` characters is not JSON, and where."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[0].lower()}{error.msg[1:]} at column {min(error.pos, length) + 1}"
    return "brackets in brackets in brackets" if isinstance(error, RecursionError) else str(error)


def _refuse_depth(row: Any, source: Source) -> None:
    level, depth = [row], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise DataError(
                f"{source} nests more than {DEEPEST} levels deep", "mend the row, or remove it"
            )
        inner = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]


def _refuse_half_characters(row: Any, source: Source) -> None:
    """An escape such as `\\ud83d` without its other half is JSON but no text: no tokenizer takes
    it."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        hint = "text was cut inside a character: write the row again, or remove it"
        raise EncodingError(f"{source} holds half a character (`{half}`)", hint) from None


def _jsonl_hint(line: str, number: int) -> str:
    if number == 1 and line.strip() in ("[", "{"):
        return "one row a line is expected; if this is one JSON document, name the file `.json`"
    if not line.endswith("\n"):
        return "the last line may be cut off; remove it or write the file again"
    return f"each line must be one JSON object such as {ROW_EXAMPLE}"


def as_object(row: Any, source: Source) -> dict[str, Any]:
    """A parsed value as a row. Raises DataError when it is no object."""
    if isinstance(row, dict):
        return row
    raise DataError(
        f"{source} is {kind_of(row)}, not an object",
        f"each row must be an object such as {ROW_EXAMPLE}",
    )


def parse_text(path: Path, broken: Broken = refuse) -> Iterator[Record]:
    """One row a line that is not blank, in the column `text`."""
    for number, line in enumerate(file_lines(path, broken), 1):
        if line.strip():
            yield Record({"text": line.rstrip("\r\n")}, Source(str(path), number))
