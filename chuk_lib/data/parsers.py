"""One parser for each kind of data file: bytes to records, each with its line or row.

A row that cannot be read goes to `broken`, which raises, or takes note of it so that the rows after it are still read.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from chuk_lib.data.types import Record, Source, kind_of
from chuk_lib.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt")
ROW_EXAMPLE = '{"text": "…"} or {"messages": […]}'
LONGEST_LINE = 2**26
"""Bytes. No row is that long; a damaged or hostile file may be, and would fill the memory."""
LONGEST_DOCUMENT = 2**31
"""Bytes. A JSON document is read as a whole, often from a single line."""
DEEPEST = 100
"""Brackets in brackets. Parsers and writers recurse, and no row that means something nests like that."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")

Broken = Callable[[Source, DataError], None]
"""Told about each row that cannot be read. Whatever it raises ends the reading."""


class SupportsReadline(Protocol):
    """What lines of bytes are read from."""

    def readline(self, size: int, /) -> bytes:
        """A line of at most `size` bytes; empty at the end."""


class EncodingError(DataError):
    """Bytes that are not UTF-8, or half a character."""


def refuse(source: Source, error: DataError) -> None:
    """The `Broken` of ordinary reading: raise at the first row that cannot be read."""
    raise error from None


def suffix_of(path: Path) -> str:
    """`.jsonl` of `train.jsonl.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def parser_of(path: Path) -> Callable[[Path, Broken], Iterator[Record]]:
    """The parser for a file, by its suffix. Raises DataError for a suffix that is not known."""
    parsers = {
        ".jsonl": parse_jsonl, ".ndjson": parse_jsonl, ".json": parse_json, ".parquet": parse_parquet,
        ".csv": parse_csv, ".tsv": parse_csv, ".txt": parse_text,
    }  # fmt: skip
    if suffix_of(path) not in parsers:
        raise DataError(f"`{path}` has no suffix that says what it holds", f"known suffixes: {', '.join(SUFFIXES)}")
    return parsers[suffix_of(path)]


def file_lines(path: Path, broken: Broken = refuse, longest: int = LONGEST_LINE) -> Iterator[str]:
    """Decoded lines with their line ends, from a plain or gzipped file. A line that is not UTF-8 comes out empty.
    Raises DataError for a file that cannot be read to its end, or with a line of more than `longest` bytes."""
    number = 0
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            for number, line in enumerate(decoded(bounded(file, longest), str(path), broken), 1):  # noqa: B007
                yield line
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        place = f" after line {number}" if number else ""
        raise DataError(f"`{path}` cannot be read{place}: {reason}", "check the file and its permissions") from None


def bounded(file: SupportsReadline, longest: int = LONGEST_LINE) -> Iterator[bytes]:
    """Lines of bytes. Raises OSError for one of more than `longest`."""
    for line in iter(partial(file.readline, longest), b""):
        if len(line) == longest and not line.endswith(b"\n"):
            raise OSError(f"the next line is longer than {longest // 2**20} MiB")
        yield line


def decoded(lines: Iterable[bytes], name: str, broken: Broken = refuse) -> Iterator[str]:
    """Lines as text, without a byte order mark. A line that is not UTF-8 comes out empty."""
    for number, raw in enumerate(lines, 1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            broken(Source(name, number), _not_utf8(raw, error, name, number))
            text = ""
        yield text


def _not_utf8(raw: bytes, error: UnicodeDecodeError, name: str, number: int) -> EncodingError:
    bad = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}"
    hint = f"save it as UTF-8: iconv -f ENCODING -t UTF-8 {'' if name == 'stdin' else name}".rstrip()
    return EncodingError(f"`{name}` line {number} is not UTF-8 ({bad})", hint)


def parse_jsonl(path: Path, broken: Broken = refuse) -> Iterator[Record]:
    """One JSON object a line."""
    return parse_json_lines(file_lines(path, broken), str(path), broken)


def parse_json_lines(lines: Iterable[str], name: str, broken: Broken = refuse) -> Iterator[Record]:
    """Records of lines that are already text; `name` is what messages call their file."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        source = Source(name, number)
        try:
            record = _record_of(line, source)
        except DataError as error:
            broken(source, error)
            continue
        yield record


def _record_of(line: str, source: Source) -> Record:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = _json_reason(error, len(line.rstrip()))
        raise DataError(f"{source} is not JSON: {reason}", _jsonl_hint(line, source.line)) from None
    _refuse_depth(row, line, source)
    if _HALF.search(line):
        _refuse_half_characters(row, source)
    return Record(_as_object(row, source), source)


def _json_reason(error: Exception, length: int) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[0].lower()}{error.msg[1:]} at column {min(error.pos, length) + 1}"
    return "brackets in brackets in brackets" if isinstance(error, RecursionError) else str(error)


def _refuse_depth(row: Any, text: str, source: Source) -> None:
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    level, depth = [row], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise DataError(f"{source} nests more than {DEEPEST} levels deep", "mend the row, or remove it")
        inner = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]


def _refuse_half_characters(row: Any, source: Source) -> None:
    """An escape such as `\\ud83d` without its other half is JSON but no text: no tokenizer takes it."""
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


def parse_json(path: Path, broken: Broken = refuse) -> Iterator[Record]:
    """An array of rows, an object with `data` or `rows`, or JSON lines under the wrong suffix, which are common."""
    text = "".join(file_lines(path, longest=LONGEST_DOCUMENT))
    if not text.strip():
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _first_line_is_row(text):
            yield from parse_json_lines(text.splitlines(keepends=True), str(path), broken)
            return
        where = f"line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else "line 1"
        reason = error.msg if isinstance(error, json.JSONDecodeError) else _json_reason(error, 0)
        hint = "a `.json` file holds an array of rows; one row a line is `.jsonl`"
        raise DataError(f"`{path}` {where} is not JSON: {reason}", hint) from None
    has_halves = _HALF.search(text) is not None
    for number, row in enumerate(_rows_of(document, path), 1):
        source = Source(str(path), number, "row")
        try:
            _refuse_depth(row, text, source)
            if has_halves:
                _refuse_half_characters(row, source)
            record = Record(_as_object(row, source), source)
        except DataError as error:
            broken(source, error)
            continue
        yield record


def _first_line_is_row(text: str) -> bool:
    try:
        return isinstance(json.loads(text.lstrip().split("\n", 1)[0]), dict)
    except (ValueError, RecursionError):
        return False


def _rows_of(document: Any, path: Path) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        for key in ("data", "rows"):
            if isinstance(document.get(key), list):
                return list(document[key])
        if all(not isinstance(value, list) or key in ("messages", "conversations") for key, value in document.items()):
            return [document]
    found = f"an object with {', '.join(document)}" if isinstance(document, dict) else kind_of(document)
    raise DataError(f"`{path}` holds {found[:200]}, not rows", "it should hold an array of rows, alone or under `data`")


def _as_object(row: Any, source: Source) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    raise DataError(f"{source} is {kind_of(row)}, not an object", f"each row must be an object such as {ROW_EXAMPLE}")


def parse_csv(path: Path, broken: Broken = refuse) -> Iterator[Record]:
    """Comma- or tab-separated fields under a header; all values are text."""
    csv.field_size_limit(2**31 - 1)  # the default refuses a field of 128 KiB
    dialect = csv.excel_tab if suffix_of(path) == ".tsv" else csv.excel
    rows = csv.reader(file_lines(path, broken), dialect, strict=True)
    header: list[str] = []
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            source = Source(str(path), rows.line_num)
            broken(source, DataError(f"{source} is not CSV: {error}", "check its quotes"))
            continue
        if row is None:
            return
        source = Source(str(path), rows.line_num)
        if not header:
            header = row
            _check_header(header, source)
        elif len(row) == len(header):
            yield Record(dict(zip(header, row, strict=True)), source)
        elif row:
            found = f"{source} has {len(row)} fields, the header has {len(header)}"
            broken(source, DataError(found, "quote fields that hold a comma, a quote or a line end"))


def _check_header(header: list[str], source: Source) -> None:
    twice = [name for name in header if header.count(name) > 1] if len(header) < 1000 else []
    if twice:
        raise DataError(f"{source} names the column `{twice[0]}` twice", "give each column a name of its own")


def parse_text(path: Path, broken: Broken = refuse) -> Iterator[Record]:
    """One row a line that is not blank, in the column `text`."""
    for number, line in enumerate(file_lines(path, broken), 1):
        if line.strip():
            yield Record({"text": line.rstrip("\r\n")}, Source(str(path), number))


def parse_parquet(path: Path, broken: Broken = refuse) -> Iterator[Record]:
    """The rows of a Parquet file; nulls inside nested values are left out."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    columns = {key: _without_none(value) for key, value in row.items()}
                    yield Record(columns, Source(str(path), number, "row"))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        place = f" after row {number}" if number else ""
        hint = "write or download the file again"
        raise DataError(f"`{path}` is not readable as Parquet{place}: {reason}", hint) from None


def _without_none(value: Any) -> Any:
    """Nested values without the nulls that Arrow fills in where rows of one column have different keys."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value
