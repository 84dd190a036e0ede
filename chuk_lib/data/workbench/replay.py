"""A source that is read more than once: files again from the disk, stdin from a copy on the
disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from types import TracebackType

from chuk_lib.data.parsers import bounded, decoded, parse_json_lines
from chuk_lib.data.reader import DataSource, read_records, read_stdin
from chuk_lib.data.types import Record
from chuk_lib.errors import DataError


class Replay:
    """Reads a source from its first row as often as asked. A context manager: the copy of stdin
    goes with it."""

    def __init__(self, source: DataSource, split: str = "train") -> None:
        self._source = source
        self._split = split
        self._copy = tempfile.TemporaryFile() if str(source) == "-" else None  # noqa: SIM115
        self._copied = False

    def __enter__(self) -> Replay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._copy is not None:
            self._copy.close()

    def read(self) -> Iterator[Record]:
        """The records, from the first one. The first reading of stdin has to be finished before the
        second."""
        if self._copy is None:
            return read_records(self._source, self._split)
        if not self._copied:
            return self._copying()
        self._copy.seek(0)
        return parse_json_lines(decoded(bounded(self._copy), "stdin"), "stdin")

    def _copying(self) -> Iterator[Record]:
        assert self._copy is not None
        yield from read_stdin(self._copy)
        self._copied = True


def check_unchanged(before: int, after: int) -> None:
    """Raise DataError when a source had another number of rows at its second reading."""
    if before != after:
        raise DataError(
            f"the data changed while it was read: {before:,} rows, then {after:,}",
            "run it again when nothing writes",
        )
