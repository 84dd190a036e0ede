"""Rows that a command writes: to a file, or to stdout as JSON lines; then what is said about them
goes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chuk_cli.out import Out, tell_json

if TYPE_CHECKING:
    from chuk_lib.data.types import Record

Columns = Mapping[str, Any]


def write(
    out: Out, rows: Iterable[Columns | Record], output: str, overwrite: bool, dry_run: bool
) -> int:
    """Write rows and return how many; a dry run makes and counts them, and keeps nothing."""
    from chuk_lib.data.types import Record
    from chuk_lib.data.writer import check_target, open_rows

    if dry_run and output != "-":
        check_target(Path(output), overwrite)
    stream: Any = _Nowhere() if dry_run else sys.stdout.buffer
    with open_rows("-" if dry_run else output, overwrite=overwrite, stream=stream) as writer:
        for row in rows:
            if isinstance(row, Record):
                writer.write(row.columns, row.source)
            else:
                writer.write(row)
        written = writer.rows
    warn_of_nulls(out, writer.nulled)
    return written


def warn_of_nulls(out: Out, rows: int) -> None:
    """Say that numbers were written as null, in how many rows."""
    if rows:
        out.warn(
            f"{rows:,} rows hold NaN or infinity, which JSON does not have: they are null in what"
            " was written"
        )


class _Nowhere:
    """Where a dry run writes."""

    def write(self, part: bytes) -> int:
        """Forget it."""
        return len(part)


@contextmanager
def removed_rows(path: Path | None, overwrite: bool, dry_run: bool) -> Iterator[Any]:
    """What takes the rows that a command leaves out: a function, or None when nobody asked for
    them."""
    if path is None or dry_run:
        yield None
        return
    from chuk_lib.data.writer import open_rows

    with open_rows(path, overwrite=overwrite) as writer:
        yield writer.write


def report(out: Out, result: dict[str, Any], output: str, said: str, dry_run: bool) -> None:
    """The result of a command whose rows are written. When they are on stdout it is told on
    stderr."""
    if output != "-":
        out.result(result, human=said, quiet=output)
    elif out.json:
        tell_json(result)
    else:
        out.say(said)
    if dry_run:
        out.say("dry run: nothing was written")
