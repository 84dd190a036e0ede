"""Standard streams that outlive whoever reads them.

A run goes on when its terminal is closed, when the program behind a pipe leaves, and when the disk
that holds its log is full: what is written then goes nowhere."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TextIO


def open_closed_streams() -> None:
    """Give a process that was started without standard streams (`2>&-`) empty ones.

    Otherwise the next file it opens becomes its stderr, and a library's complaint is written into
    that file."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)))
    sys.stdout = sys.stdout or io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
    sys.stderr = sys.stderr or io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w", closefd=False)))


def lasting(stream: TextIO) -> TextIO:
    """The stream in a form whose writes never fail. One without a file beneath, as tests use, comes
    back as it is."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        return stream
    raw = _Lasting(number, "w", closefd=False)
    errors = stream.errors or "backslashreplace"
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=errors,
        line_buffering=True,
        newline=None,
    )


@contextmanager
def lasting_stdout() -> Iterator[None]:
    """Make stdout last for the time of the block."""
    former = sys.stdout
    former.flush()
    sys.stdout = lasting(former)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout = former


class _Lasting(io.FileIO):
    def write(self, part: Any, /) -> int:
        try:
            return super().write(part)
        except OSError:
            self._leave()
            return memoryview(part).nbytes

    def _leave(self) -> None:
        """Point the file number elsewhere, so that nothing in the process meets the error again."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


@cache
def follows() -> bool:
    """Whether this process is one of several that train together, and not the first, which draws
    and prints for all. As its launcher said: the variable is gone once it has joined the others."""
    ranks = (os.environ.get(name, "0") for name in ("MLX_RANK", "OMPI_COMM_WORLD_RANK"))
    return any(rank != "0" for rank in ranks)


def without_ring_noise() -> None:
    """Drop the lines that MLX's ring writes to file descriptor 2 when a process goes, ten of them
    and no way to switch them off: what Python writes to stderr goes past the filter. For one of
    several processes."""
    kept = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = os.fdopen(os.dup(kept), "w", buffering=1, errors="backslashreplace")

    def filter_lines() -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if not line.startswith(b"[ring]"):
                    os.write(kept, line)

    threading.Thread(target=filter_lines, name="chuk-stderr", daemon=True).start()
