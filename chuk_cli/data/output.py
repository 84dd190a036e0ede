"""Rows that a command writes: to a file, or to stdout as JSON lines; then what is said about them goes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chuk_cli.out import Out, tell_json

Columns = Mapping[str, Any]


def write(rows: Iterable[Columns], output: str, overwrite: bool, dry_run: bool) -> int:
    """Write rows and return how many; a dry run counts them and writes nothing."""
    from chuk_lib.data.writer import check_target, open_rows

    if dry_run:
        if output != "-":
            check_target(Path(output), overwrite)
        return sum(1 for _ in rows)
    with open_rows(output, overwrite=overwrite, stream=sys.stdout.buffer) as writer:
        for columns in rows:
            writer.write(columns)
        return writer.rows


@contextmanager
def removed_rows(path: Path | None, overwrite: bool, dry_run: bool) -> Iterator[Any]:
    """What takes the rows that a command leaves out: a function, or None when nobody asked for them."""
    if path is None or dry_run:
        yield None
        return
    from chuk_lib.data.writer import open_rows

    with open_rows(path, overwrite=overwrite) as writer:
        yield writer.write


def report(out: Out, result: dict[str, Any], output: str, said: str, dry_run: bool) -> None:
    """The result of a command whose rows are written. When they are on stdout it is told on stderr."""
    if output != "-":
        out.result(result, human=said, quiet=output)
    elif out.json:
        tell_json(result)
    else:
        out.say(said)
    if dry_run:
        out.say("dry run: nothing was written")
