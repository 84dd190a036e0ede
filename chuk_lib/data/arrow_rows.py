"""Rows of Parquet and Arrow files, a few megabytes of them at a time.

Arrow fills in nulls where the structs of one column have different keys, and cannot tell them from
nulls that were written: inside nested values nulls are left out. An index that pandas wrote by
itself is left out too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chuk_lib.data.parsers import LONGEST_LINE, Broken, refuse
from chuk_lib.data.types import Record, Source
from chuk_lib.errors import DataError
from chuk_lib.utils.text import first_line

_BATCH_BYTES = 2**22
_BATCH_ROWS = 1024
_MARK, _FEATHER_1 = b"ARROW1", b"FEA1"
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
_TURNS = ({"role", "content"}, {"from", "value"})


def parse_parquet(path: Path, broken: Broken = refuse) -> Iterator[Record]:
    """The rows of a Parquet file. Raises DataError for one that is damaged, with the last row that
    could be read."""
    import pyarrow
    import pyarrow.parquet

    rows = _Rows(path, "Parquet")
    try:
        # Without a buffer of its own for each column, and without reading ahead, memory grows with
        # the row group.
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            _check_names(file.schema_arrow, path)
            for group in range(file.num_row_groups):
                size = rows.batch_rows(file.metadata.row_group(group))
                for batch in file.iter_batches(
                    batch_size=size, row_groups=[group], use_threads=False
                ):
                    yield from rows.of(batch)
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        raise rows.unreadable(error) from None


def parse_arrow(path: Path, broken: Broken = refuse) -> Iterator[Record]:
    """The rows of an Arrow file or stream (`.arrow`, `.feather`). Raises DataError for one that is
    damaged."""
    import pyarrow

    rows = _Rows(path, "Arrow")
    try:
        with pyarrow.memory_map(str(path)) as file:
            mark = file.read(len(_MARK))
            file.seek(0)
            if mark.startswith(_FEATHER_1):
                raise DataError(
                    f"`{path}` is Feather version 1",
                    "write it again: pyarrow.feather.write_feather",
                )
            is_file = mark == _MARK
            reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
            _check_names(reader.schema, path)
            batches = (
                map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
            )
            for batch in batches:
                yield from rows.sliced(batch)
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        raise rows.unreadable(error) from None


class _Rows:
    """Batches to records; counts them, for messages."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._kind = path, kind
        self._number = 0
        self._column = ""

    def batch_rows(self, group: Any) -> int:
        """How many rows of a Parquet row group are read at once. Raises DataError when a row must
        be too long."""
        average = int(group.total_byte_size) // max(1, group.num_rows)
        if average > LONGEST_LINE:
            raise self._too_long(self._number + 1)
        rows: int = _BATCH_BYTES // max(1, average)
        return max(1, min(_BATCH_ROWS, rows))

    def sliced(self, batch: Any) -> Iterator[Record]:
        """The records of a batch of any size."""
        size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * len(batch) // max(1, batch.nbytes)))
        for start in range(0, len(batch), size):
            yield from self.of(batch.slice(start, size))

    def of(self, batch: Any) -> Iterator[Record]:
        """The records of a batch. Raises DataError for a row that is too long and a column that is
        no Python value."""
        if batch.nbytes > max(LONGEST_LINE, 2 * _BATCH_BYTES) and len(batch) == 1:
            raise self._too_long(self._number + 1)
        names = [name for name in batch.schema.names if not _is_index(name, batch.schema)]
        columns = []
        for name in names:
            self._column = name
            columns.append(_values(batch.column(name)))
        self._column = ""
        for row in range(len(batch)):
            self._number += 1
            found = {name: values[row] for name, values in zip(names, columns, strict=True)}
            yield Record(found, Source(str(self._path), self._number, "row"))

    def unreadable(self, error: Exception) -> DataError:
        """What is said of a file that cannot be read on."""
        reason = first_line(error)
        place = f" after row {self._number}" if self._number else ""
        column = f"column `{self._column}`: " if self._column else ""
        found = f"`{self._path}` is not readable as {self._kind}{place}: {column}{reason}"
        return DataError(found, "write or download the file again")

    def _too_long(self, row: int) -> DataError:
        found = (
            f"`{self._path}` row {row} or one after it is longer than {LONGEST_LINE // 2**20} MiB"
        )
        return DataError(found, "check the file: no row is that long")


def _check_names(schema: Any, path: Path) -> None:
    twice, count = Counter(schema.names).most_common(1)[0] if schema.names else ("", 0)
    if count > 1:
        raise DataError(
            f"`{path}` names the column `{twice}` twice", "give each column a name of its own"
        )


def _is_index(name: str, schema: Any) -> bool:
    return _PANDAS_INDEX.fullmatch(name) is not None and b"pandas" in (schema.metadata or {})


def _values(column: Any) -> list[Any]:
    """A column as Python values, (rows,)."""
    import pyarrow

    target = _readable(column.type)
    if target != column.type:
        try:
            # To microseconds, where nothing is lost.
            column = column.cast(_readable(column.type, exact=False))
        except pyarrow.ArrowInvalid:
            column = column.cast(target)
    found = [_without_none(value) for value in column.to_pylist(maps_as_pydicts="strict")]
    return [_turns(value) for value in found] if _holds_turns(column.type) else found


def _readable(kind: Any, exact: bool = True) -> Any:
    """A type with its nanoseconds, which Python's times do not have, as text, or (`exact=False`) as
    microseconds."""
    import pyarrow

    if pyarrow.types.is_timestamp(kind) and kind.unit == "ns":
        return pyarrow.string() if exact else pyarrow.timestamp("us", kind.tz)
    if pyarrow.types.is_time64(kind) and kind.unit == "ns":
        return pyarrow.string() if exact else pyarrow.time64("us")
    if pyarrow.types.is_duration(kind) and kind.unit == "ns":
        return pyarrow.int64() if exact else pyarrow.duration("us")
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(_readable(kind.value_type, exact))
    if pyarrow.types.is_large_list(kind):
        return pyarrow.large_list(_readable(kind.value_type, exact))
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([(field.name, _readable(field.type, exact)) for field in kind])
    return kind


def _holds_turns(kind: Any) -> bool:
    """Whether messages stand as a struct of lists, one for roles and one for contents, as
    `datasets` wrote them."""
    import pyarrow

    if not pyarrow.types.is_struct(kind):
        return False
    lists = all(
        pyarrow.types.is_list(field.type) or pyarrow.types.is_large_list(field.type)
        for field in kind
    )
    return lists and any({field.name for field in kind} >= names for names in _TURNS)


def _turns(value: Any) -> Any:
    if not isinstance(value, dict) or len({len(items) for items in value.values()}) != 1:
        return value
    turns = (dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True))
    return [_without_none(turn) for turn in turns]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value
