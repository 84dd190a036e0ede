"""The file that answers are written to: append-only, so that a killed run goes on where it ended.

Beside it lies `NAME.settings.json`: what the answers were made with. A run goes on only with the
same, on the same input: each answer holds its line's number and columns, and they are compared."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from chuk_lib.errors import ConfigError, DataError
from chuk_lib.inference.batch import InputRow
from chuk_lib.utils.paths import check_folder, make_folder, unwritable, write_whole

_SECONDS = 1.0  # between two waits for the disk
_AGAIN = "give what it was made with, or another --output, or --overwrite"
DRAWN = "drawn_seed"


def line_of(answer: Mapping[str, Any]) -> bytes:
    """An answer as one line of JSON for every reader: some take NEL, LS and PS for ends of
    lines."""
    text = json.dumps(answer, ensure_ascii=False)
    for mark in ("\x85", "\u2028", "\u2029"):
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text.encode() + b"\n"


def settings_file(path: Path) -> Path:
    """Where the settings of an output are kept."""
    return path.with_name(f"{path.name}.settings.json")


def check_output(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise ConfigError unless answers can be written there. Changes nothing."""
    check_folder(path.parent)
    if path.is_dir():
        raise ConfigError(f"`{path}` is a folder", "give a file")
    if path.exists() and not (resume or overwrite):
        raise ConfigError(f"`{path}` exists", "go on with --resume, start again with --overwrite")


def drawn_seed(path: Path, resume: bool, fresh: int) -> int:
    """The seed that was drawn for an output that goes on, else a fresh one."""
    there = _read_settings(path) if resume and path.exists() and path.stat().st_size else {}
    return int(there.get(DRAWN, fresh))


class AnswerFile:
    """An output of which one process at a time is the writer. With `resume` it begins after the
    answers that are there.

    Raises ConfigError when it was made with other settings, has none beside it, is being written,
    or cannot be."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self._path = path
        make_folder(path.parent)
        try:
            self._stream: BinaryIO = path.open("ab")
        except OSError as error:
            raise unwritable(path, error) from None
        try:
            self._begin(json.loads(json.dumps(dict(settings))), resume)
        except BaseException:  # Ctrl-C too: the file must not stay open and locked
            self._stream.close()
            raise
        self._synced = time.monotonic()
        self._there = self._answers()
        self._next: dict[str, Any] | None = None
        self.rows = 0
        self.errors = 0
        self.problems = 0

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *error: object) -> None:
        os.fsync(self._stream.fileno())
        self._stream.close()

    def there(self, row: InputRow) -> int:
        """How many answers to a row were there; an error counts as all that it can get,
        unless it is that of one sample.

        Raises DataError when they are answers to another row."""
        found = 0
        while (answer := self._peek()) is not None and answer.get("line") == row.line:
            self._next = None
            same = _text(answer.get("input")) == _text(row.columns)
            if not same or (row.columns is None and answer.get("error") != row.error):
                raise self._other_input(row.line)
            found += 1
            self.rows += 1
            self.problems += answer.get("problem") is not None
            if "error" in answer:
                self.errors += 1
                if "sample" not in answer:
                    return 1 << 30
        if answer is not None and not found:
            raise self._other_input(row.line)
        return found

    def check_end(self) -> None:
        """Raise DataError when answers are there for more rows than the input has."""
        if (answer := self._peek()) is not None:
            raise self._other_input(answer.get("line"))

    def write(self, answer: Mapping[str, Any]) -> None:
        """Append an answer; at least once a second all of them are on the disk."""
        self._stream.write(line_of(answer))
        self._stream.flush()
        if time.monotonic() - self._synced >= _SECONDS:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def _begin(self, settings: dict[str, Any], resume: bool) -> None:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"`{self._path}` is being written by another process", "wait for it to end"
            ) from None
        beside = settings_file(self._path)
        if resume and self._path.stat().st_size:
            _compare(self._path, _read_settings(self._path), settings)
        else:
            self._stream.truncate(0)
            write_whole(beside, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        with self._path.open("rb") as written:
            self._stream.truncate(_whole(written))

    def _answers(self) -> Iterator[dict[str, Any]]:
        """What is there when the file is opened."""
        size = self._path.stat().st_size
        with self._path.open("rb") as lines:
            while lines.tell() < size:
                try:
                    answer = json.loads(lines.readline())
                except ValueError:
                    answer = None
                if not isinstance(answer, dict):
                    raise DataError(f"`{self._path}` holds a line that is no answer", _AGAIN)
                yield answer

    def _peek(self) -> dict[str, Any] | None:
        if self._next is None:
            self._next = next(self._there, None)
        return self._next

    def _other_input(self, line: Any) -> DataError:
        return DataError(f"`{self._path}` was made from another input: line {line} differs", _AGAIN)


def _whole(stream: BinaryIO) -> int:
    """Bytes up to the end of the last whole line: a killed process may leave a part of one."""
    end = stream.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - (1 << 16))
        stream.seek(start)
        at = stream.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(settings_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            f"`{path}` has no `{settings_file(path).name}`, so nothing says how it was made", _AGAIN
        )
    return found


def _compare(path: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in sorted({*there, *now}):
        if there.get(name) != now.get(name):
            was, wanted = _text(there.get(name))[:80], _text(now.get(name))[:80]
            raise ConfigError(
                f"`{path}` was made with another {name.replace('_', ' ')}: {was}, now {wanted}",
                _AGAIN,
            )


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
