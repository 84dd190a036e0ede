"""Writing rows: JSONL, JSON, CSV, TSV, Parquet or text by the suffix, or JSONL into a stream.

A file is written under another name beside its place and renamed when it is whole. Kinds that need
all columns before the first row (CSV, Parquet) keep the rows in a temporary file on disk until
then; memory does not grow with them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, cast

from chuk_lib.data.parsers import COMPRESSED, SUFFIXES, suffix_of
from chuk_lib.data.types import Source
from chuk_lib.errors import ConfigError, DataError
from chuk_lib.utils.paths import check_folder, make_folder, replace_file

Columns = Mapping[str, Any]
_BATCH = 1000


class RowWriter(Protocol):
    """Takes rows one at a time. `rows` counts them, `nulled` those in which a number that JSON does
    not have (NaN, infinity) was written as null."""

    rows: int
    nulled: int

    def write(self, columns: Columns, source: Source | None = None) -> None:
        """Take one row, which stood at `source`. Raises DataError for values that the kind of file
        cannot hold."""


@contextmanager
def open_rows(
    target: str | Path, *, overwrite: bool = False, stream: IO[bytes] | None = None
) -> Iterator[RowWriter]:
    """A writer for a file, or for `stream` when the target is `-`. The file appears when the block
    ends well and not at all otherwise. Raises ConfigError when it is there already or its suffix
    says nothing."""
    if str(target) == "-":
        if stream is None:
            raise ConfigError("there is no standard output to write to", "name a file")
        yield _Lines(stream)
        return
    path = Path(target)
    check_target(path, overwrite)
    make_folder(path.parent)
    with (
        replace_file(path, shared=True) as draft,
        draft.open("wb") as file,
        _writer_into(path, file) as writer,
    ):
        yield writer


def write_rows(target: str | Path, rows: Iterable[Columns], *, overwrite: bool = False) -> int:
    """Write rows to a file and return how many there were."""
    with open_rows(target, overwrite=overwrite) as writer:
        for columns in rows:
            writer.write(columns)
        return writer.rows


def check_target(path: Path, overwrite: bool = False) -> None:
    """Raise ConfigError when rows must not or cannot be written to `path`. Changes nothing."""
    if suffix_of(path) not in SUFFIXES:
        raise ConfigError(
            f"`{path}` has no suffix that says what to write",
            f"known suffixes: {', '.join(SUFFIXES)}; - is stdout",
        )
    packed = next((end for end in COMPRESSED if path.name.lower().endswith(end)), "")
    if packed and suffix_of(path) == ".parquet":
        raise ConfigError(f"`{path}` would be compressed twice", f"leave `{packed}` away")
    if packed not in ("", ".gz"):
        raise ConfigError(f"`{packed}` is read, not written", "write `.gz`")
    check_folder(path.parent)
    if path.is_dir():
        raise ConfigError(f"`{path}` is a folder", "choose another --output")
    if path.exists() and not overwrite:
        raise ConfigError(
            f"`{path}` exists", "choose another --output, or replace the file with --overwrite"
        )


def to_line(columns: Columns, where: object = "a row") -> str:
    """A row as a line of JSON. Dates become text; numbers that JSON does not have (NaN, infinity)
    become null. Raises DataError for bytes, with the name of their column; `where` is what the row
    is called."""
    return _line(columns, where)[0]


def _line(columns: Columns, where: object) -> tuple[str, bool]:
    """A line, and whether a number became null."""
    try:
        return json.dumps(
            columns, ensure_ascii=False, allow_nan=False, default=_as_json
        ) + "\n", False
    except ValueError:  # no finite number, or bytes
        name = next((name for name, value in columns.items() if _holds_bytes(value)), None)
    if name is not None:
        raise DataError(
            f"{where}: the column `{name}` holds bytes, which are no text",
            f"leave it out: chuk data convert --drop {name}",
        )
    return json.dumps(_finite(columns), ensure_ascii=False, default=_as_json) + "\n", True


def _as_json(value: Any) -> Any:
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        raise ValueError("bytes")
    return str(value)


def _holds_bytes(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_bytes, value.values()))
    return (
        any(map(_holds_bytes, value))
        if isinstance(value, list | tuple)
        else isinstance(value, bytes)
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _writer_into(path: Path, file: IO[bytes]) -> Iterator[RowWriter]:
    if path.name.lower().endswith(".gz"):
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            with _plain_writer(path, cast(IO[bytes], packed)) as writer:
                yield writer
            return
    with _plain_writer(path, file) as writer:
        yield writer


@contextmanager
def _plain_writer(path: Path, file: IO[bytes]) -> Iterator[RowWriter]:
    kind = suffix_of(path)
    if kind in (".jsonl", ".ndjson"):
        yield _Lines(file)
    elif kind == ".txt":
        yield _TextLines(file)
    elif kind == ".json":
        array = _Array(file)
        yield array
        array.finish()
    else:
        with tempfile.TemporaryFile() as rows:
            spool = _Spool(rows)
            yield spool
            finish = _write_parquet if kind == ".parquet" else _write_csv
            finish(path, file, spool)


class _Lines:
    """JSON lines."""

    def __init__(self, file: IO[bytes]) -> None:
        self.rows = 0
        self.nulled = 0
        self._file = file

    def write(self, columns: Columns, source: Source | None = None) -> None:
        self._put(self._line(columns, source).encode())

    def _line(self, columns: Columns, source: Source | None) -> str:
        line, nulled = _line(columns, source or f"row {self.rows + 1}")
        self.nulled += nulled
        return line

    def _put(self, line: bytes) -> None:
        self._file.write(line)
        self.rows += 1


class _TextLines(_Lines):
    """One text a line."""

    def write(self, columns: Columns, source: Source | None = None) -> None:
        text = columns.get("text")
        if not isinstance(text, str) or "\n" in text or "\r" in text:
            raise DataError(
                f"{source or f'row {self.rows + 1}'} is no line of text",
                "a `.txt` holds one-line `text` columns: write `.jsonl`",
            )
        self._put(text.encode() + b"\n")


class _Array(_Lines):
    """A JSON array, one row a line."""

    def write(self, columns: Columns, source: Source | None = None) -> None:
        self._file.write(b",\n" if self.rows else b"[\n")
        self._put(self._line(columns, source).rstrip("\n").encode())

    def finish(self) -> None:
        """Close the array."""
        self._file.write(b"\n]\n" if self.rows else b"[]\n")


class _Spool(_Lines):
    """Rows on disk and the names of their columns in the order in which they came up."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.columns: dict[str, None] = {}

    def write(self, columns: Columns, source: Source | None = None) -> None:
        self.columns.update(dict.fromkeys(columns))
        super().write(columns, source)

    def read(self) -> Iterator[dict[str, Any]]:
        """The rows again, from the first one."""
        self._file.seek(0)
        for line in self._file:
            yield json.loads(line)


def _write_csv(path: Path, file: IO[bytes], spool: _Spool) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, "excel-tab" if suffix_of(path) == ".tsv" else "excel")
    names = list(spool.columns)
    if names:
        writer.writerow(names)
    for row in spool.read():
        writer.writerow([_cell(row.get(name)) for name in names])
    text.detach()


def _cell(value: Any) -> str:
    """Text as it is; everything else as JSON, which the reader takes back where it expects lists
    and objects."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write_parquet(path: Path, file: IO[bytes], spool: _Spool) -> None:
    import pyarrow
    import pyarrow.parquet

    names = list(spool.columns)
    schema = None
    for part in _parts(spool.read()):
        found = pyarrow.schema(
            [(name, _typed(pyarrow.array, part, name, path).type) for name in names]
        )
        schema = found if schema is None else _merged(schema, found, path)
    if schema is None:
        schema = pyarrow.schema([])
    try:
        with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for part in _parts(spool.read()):
                columns = [
                    _typed(partial(_array, field.type), part, field.name, path) for field in schema
                ]
                writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
    except (pyarrow.ArrowException, OSError) as error:
        raise _not_parquet(path, str(error)) from None


def _parts(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while part := list(islice(rows, _BATCH)):
        yield part


def _typed(
    make: Callable[[list[Any]], Any], part: list[dict[str, Any]], name: str, path: Path
) -> Any:
    import pyarrow

    values = [row.get(name) for row in part]
    try:
        if any(isinstance(value, int) and value >= 2**63 for value in values):
            return pyarrow.array(values, pyarrow.uint64())
        return make(values)
    except (pyarrow.ArrowException, OverflowError) as error:
        raise _not_parquet(path, f"column `{name}`: {error}") from None


def _array(type_: Any, values: list[Any]) -> Any:
    import pyarrow

    return pyarrow.array(values, type_)


def _merged(first: Any, second: Any, path: Path) -> Any:
    import pyarrow

    for name in first.names:  # whole numbers beyond 2^63, and smaller ones
        kinds = {first.field(name).type, second.field(name).type}
        if kinds == {pyarrow.int64(), pyarrow.uint64()}:
            first = first.set(first.get_field_index(name), pyarrow.field(name, pyarrow.uint64()))
            second = second.set(second.get_field_index(name), pyarrow.field(name, pyarrow.uint64()))
    try:
        return pyarrow.unify_schemas([first, second], promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise _not_parquet(path, str(error)) from None


def _not_parquet(path: Path, reason: str) -> DataError:
    return DataError(
        f"`{path}`: Parquet cannot hold these rows: {reason.splitlines()[0][:200]}",
        "a Parquet column has one type: drop or mend the column, or write `.jsonl`",
    )
