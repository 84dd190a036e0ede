"""Reading records: JSONL, JSON, Parquet, CSV, TSV, text, stdin, a folder with train/valid/test files, a hub data set.

Rows stream and keep their file and line, so that every complaint can say where. Text is UTF-8 and nothing else.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from chuk_lib.data.types import Record, Source, kind_of
from chuk_lib.errors import DataError

SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev", "eval"),
    "test": ("test",),
}
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt")
ROW_EXAMPLE = '{"text": "…"} or {"messages": […]}'
_SHARD = r"(?:[-_.]?\d+(?:-of-\d+)?)?"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?:/[\w.-]+)?")


class SupportsWrite(Protocol):
    """What bytes can be written to."""

    def write(self, part: bytes, /) -> object:
        """Take a part."""


DataSource = str | Path | Iterable[Mapping[str, Any]] | Iterable[Record]
"""What records are read from: a path, "-" for stdin, a hub id, or rows or records that are already in memory."""


def read_records(source: DataSource, split: str = "train") -> Iterator[Record]:
    """The records of a source in file order, as a stream. Raises DataError naming file and line, and when no record
    is there at all; a missing file is reported at once, not at the first record."""
    if not isinstance(source, str | Path):
        return _read_rows(source)
    if str(source) == "-":
        return read_stdin()
    return _read_files(find_files(source, split), source)


def has_split(source: DataSource, split: str) -> bool:
    """Whether a local folder holds a file of this split. Files, stdin and rows are train only; the hub is not asked."""
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        return split == "train"
    return bool(split_files(_data_files(Path(source)), split))


def find_files(source: str | Path, split: str = "train") -> list[Path]:
    """The files that hold a split of a path or hub id. Raises DataError when there is none."""
    path = Path(source)
    if path.is_file():
        if split != "train":
            raise DataError(f"`{source}` is one file and has no {split} split", f"give the {split} file itself")
        return [path]
    if path.is_dir():
        return _folder_files(path, split)
    if _is_hub_id(str(source)):
        from chuk_lib.data.hub import fetch

        return fetch(str(source), split)
    raise DataError(f"`{source}` does not exist", _nearest_hint(path))


def split_files(files: Iterable[Path], split: str) -> list[Path]:
    """Those named after a split (`train.jsonl`, `train-00000-of-00002.parquet`, `validation.json`), in order."""
    if split not in SPLITS:
        raise DataError(f"there is no split called `{split}`", f"splits: {', '.join(SPLITS)}")
    pattern = re.compile(f"(?:{'|'.join(SPLITS[split])}){_SHARD}", re.IGNORECASE)
    return sorted(file for file in files if pattern.fullmatch(_stem(file)))


def _is_hub_id(source: str) -> bool:
    """Whether a path that does not exist can be meant as `owner/name`: not when `owner` is a folder here."""
    shaped = _HUB_ID.fullmatch(source) is not None and not source.removesuffix(".gz").endswith(SUFFIXES)
    return shaped and not Path(source.split("/")[0]).is_dir()


def _folder_files(folder: Path, split: str) -> list[Path]:
    files = _data_files(folder)
    chosen = split_files(files, split)
    if not chosen:
        names = ", ".join(sorted(file.name for file in files)[:6]) or "no data file"
        wanted = ", ".join(f"{name}.jsonl" for name in SPLITS[split][:2])
        raise DataError(
            f"`{folder}` has no {split} file (found: {names})", f"name it {wanted}, or give the file itself"
        )
    kinds = {(file.parent, _suffix(file)) for file in chosen}
    if len(kinds) > 1 or (len(chosen) > 1 and any(not re.search(r"\d$", _stem(file)) for file in chosen)):
        names = ", ".join(str(file.relative_to(folder)) for file in chosen)
        raise DataError(f"`{folder}` has several {split} files: {names}", "keep one, or give the file itself")
    return chosen


def _data_files(folder: Path) -> list[Path]:
    here = list(folder.iterdir())
    below = list((folder / "data").iterdir()) if (folder / "data").is_dir() else []
    return [file for file in here + below if file.is_file() and _suffix(file) in SUFFIXES]


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _stem(path: Path) -> str:
    return Path(re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE)).stem


def _nearest_hint(path: Path) -> str:
    import difflib

    if not path.parent.is_dir():
        return f"the folder `{path.parent}` does not exist either"
    near = difflib.get_close_matches(path.name, [item.name for item in path.parent.iterdir()], n=1, cutoff=0.6)
    return f"did you mean `{path.parent / near[0]}`?" if near else "check the path; a hub data set is `owner/name`"


def _read_files(files: list[Path], source: str | Path) -> Iterator[Record]:
    found = False
    for path in files:
        for record in _reader_of(path)(path):
            found = True
            yield record
    if not found:
        raise DataError(f"`{source}` holds no records", f"a record is one row such as {ROW_EXAMPLE}")


def _reader_of(path: Path) -> Callable[[Path], Iterator[Record]]:
    readers = {
        ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet,
        ".csv": _read_csv, ".tsv": _read_csv, ".txt": _read_text,
    }  # fmt: skip
    if _suffix(path) not in readers:
        raise DataError(f"`{path}` has no suffix that says what it holds", f"known suffixes: {', '.join(SUFFIXES)}")
    return readers[_suffix(path)]


def _read_rows(rows: Iterable[Any]) -> Iterator[Record]:
    number = 0
    for number, row in enumerate(rows, 1):
        if isinstance(row, Record):
            yield row
            continue
        if not isinstance(row, Mapping):
            raise DataError(f"row {number} is {kind_of(row)}, not a mapping of columns", f"a row is {ROW_EXAMPLE}")
        yield Record(dict(row), Source("rows", number, "row"))
    if number == 0:
        raise DataError("there are no rows", f"a row is {ROW_EXAMPLE}")


def read_stdin(copy: SupportsWrite | None = None) -> Iterator[Record]:
    """Records piped in as JSONL; their bytes also go to `copy`, so that they can be read again. Raises DataError as
    `read_records` does, and at once when nothing is piped in."""
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError("data is `-`, but nothing is piped in", "pipe JSONL: cat train.jsonl | chuk train sft --data -")
    return _piped(sys.stdin.buffer if copy is None else _copied(sys.stdin.buffer, copy))


def _copied(lines: Iterable[bytes], copy: SupportsWrite) -> Iterator[bytes]:
    for line in lines:
        copy.write(line)
        yield line


def _piped(lines: Iterable[bytes]) -> Iterator[Record]:
    found = False
    for record in _parse_jsonl(_decoded(lines, "stdin"), "stdin"):
        found = True
        yield record
    if not found:
        raise DataError("stdin holds no records", f"pipe JSONL: one row a line, such as {ROW_EXAMPLE}")


def _lines(path: Path) -> Iterator[str]:
    """Decoded lines with their line ends, from a plain or gzipped file."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            yield from _decoded(file, str(path))
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"`{path}` cannot be read: {reason}", "check the file and its permissions") from None


def _decoded(file: Iterable[bytes], name: str) -> Iterator[str]:
    for number, raw in enumerate(file, 1):
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            bad = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}"
            hint = f"save it as UTF-8: iconv -f ENCODING -t UTF-8 {'' if name == 'stdin' else name}".rstrip()
            raise DataError(f"`{name}` line {number} is not UTF-8 ({bad})", hint) from None


def _read_jsonl(path: Path) -> Iterator[Record]:
    return _parse_jsonl(_lines(path), str(path))


def _parse_jsonl(lines: Iterable[str], name: str) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = _json_reason(error, len(line.rstrip()))
            raise DataError(f"`{name}` line {number} is not JSON: {reason}", _jsonl_hint(line, number)) from None
        source = Source(name, number)
        if _HALF.search(line):
            _refuse_half_characters(row, source)
        yield Record(_as_object(row, source), source)


def _json_reason(error: Exception, length: int) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[0].lower()}{error.msg[1:]} at column {min(error.pos, length) + 1}"
    return str(error)


def _refuse_half_characters(row: Any, source: Source) -> None:
    """An escape such as `\\ud83d` without its other half is JSON but no text: no tokenizer takes it."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        hint = "text was cut inside a character: write the row again, or remove it"
        raise DataError(f"{source} holds half a character (`{half}`)", hint) from None


def _jsonl_hint(line: str, number: int) -> str:
    if number == 1 and line.strip() in ("[", "{"):
        return "one row a line is expected; if this is one JSON document, name the file `.json`"
    if not line.endswith("\n"):
        return "the last line may be cut off; remove it or write the file again"
    return f"each line must be one JSON object such as {ROW_EXAMPLE}"


def _read_json(path: Path) -> Iterator[Record]:
    """An array of rows, an object with `data` or `rows`, or JSON lines under the wrong suffix, which are common."""
    text = "".join(_lines(path))
    if not text.strip():
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _first_line_is_row(text):
            yield from _parse_jsonl(text.splitlines(keepends=True), str(path))
            return
        where = f"line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else "line 1"
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        hint = "a `.json` file holds an array of rows; one row a line is `.jsonl`"
        raise DataError(f"`{path}` {where} is not JSON: {reason}", hint) from None
    has_halves = _HALF.search(text) is not None
    for number, row in enumerate(_rows_of(document, path), 1):
        source = Source(str(path), number, "row")
        if has_halves:
            _refuse_half_characters(row, source)
        yield Record(_as_object(row, source), source)


def _first_line_is_row(text: str) -> bool:
    try:
        return isinstance(json.loads(text.lstrip().split("\n", 1)[0]), dict)
    except ValueError:
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
    raise DataError(f"`{path}` holds {found}, not rows", "it should hold an array of rows, alone or under `data`")


def _as_object(row: Any, source: Source) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    raise DataError(f"{source} is {kind_of(row)}, not an object", f"each row must be an object such as {ROW_EXAMPLE}")


def _read_csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # the default refuses a field of 128 KiB
    dialect = csv.excel_tab if _suffix(path) == ".tsv" else csv.excel
    rows = csv.reader(_lines(path), dialect, strict=True)
    header: list[str] = []
    try:
        for row in rows:
            if not header:
                header = row
                continue
            if not row:
                continue
            source = Source(str(path), rows.line_num)
            if len(row) != len(header):
                hint = "quote fields that hold a comma, a quote or a line end"
                raise DataError(f"{source} has {len(row)} fields, the header has {len(header)}", hint)
            yield Record(dict(zip(header, row, strict=True)), source)
    except csv.Error as error:
        raise DataError(f"{Source(str(path), rows.line_num)} is not CSV: {error}", "check its quotes") from None


def _read_text(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield Record({"text": line.rstrip("\r\n")}, Source(str(path), number))


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                columns = {key: _without_none(value) for key, value in row.items()}
                yield Record(columns, Source(str(path), number, "row"))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"`{path}` is not readable as Parquet: {reason}", "write or download the file again") from None


def _without_none(value: Any) -> Any:
    """Nested values without the nulls that Arrow fills in where rows of one column have different keys."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value
