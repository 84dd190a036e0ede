"""What a build reads: the files of a source, what they are called, and whether they are still the
same."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from chuk_lib.data.batches.blocks import Position, RecordBlock, blocks, records_of
from chuk_lib.data.batches.manifest import SourceEntry
from chuk_lib.data.reader import ROW_EXAMPLE, find_files
from chuk_lib.data.types import Record
from chuk_lib.errors import DataError
from chuk_lib.utils.seals import seal

_PIECES, _PIECE_BYTES = 16, 1 << 16


@dataclass(frozen=True)
class BuildSource:
    """Files in order, and what messages call them."""

    name: str
    files: tuple[Path, ...]
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)

    def stamp(self) -> list[list[Any]]:
        """What tells whether a source changed: names, sizes and times; of stdin, whose copy is
        always new, its hash."""
        if self.names == ("stdin",):
            return [["stdin", *seal(self.files[0]).values()]]
        stats = [path.stat() for path in self.files]
        return [
            [name, stat.st_size, stat.st_mtime_ns]
            for name, stat in zip(self.names, stats, strict=True)
        ]

    def entries(self) -> tuple[SourceEntry, ...]:
        """Sizes and hashes, as the manifest lists them: without the folders that differ from
        machine to machine."""
        seals = [seal(path) for path in self.files]
        names = [Path(name).name for name in self.names]
        return tuple(
            SourceEntry(name, found["bytes"], found["sha256"])
            for name, found in zip(names, seals, strict=True)
        )

    def first(self) -> Record:
        """The first record. Raises DataError when there is none."""
        for block in self.blocks(block_bytes=1 << 16):
            for record in records_of(block):
                return record
        raise DataError(
            f"`{self.name}` holds no records", f"a record is one row such as {ROW_EXAMPLE}"
        )

    def blocks(
        self, start: Position = Position(), block_bytes: int = 1 << 20
    ) -> Iterator[RecordBlock]:
        """All blocks from a position on."""
        return blocks(self.files, self.names, start, block_bytes)

    @property
    def is_small(self) -> bool:
        """Whether a sample is all of it."""
        return self.size <= _PIECES * _PIECE_BYTES

    def sample(self) -> Iterator[RecordBlock]:
        """Blocks spread evenly over the files; the first ones of a source that is read as records;
        all of a small one. The line numbers of a spread are not the file's."""
        if self.is_small:
            yield from self.blocks()
            return
        if any(path.suffix.lower() not in (".jsonl", ".ndjson", ".txt") for path in self.files):
            yield from (block for block, _ in zip(self.blocks(), range(4), strict=False))
            return
        for number, path in enumerate(self.files):
            size = path.stat().st_size
            count = max(1, _PIECES // len(self.files))
            for at in sorted({size * piece // count for piece in range(count)}):
                position = Position(number, _line_start(path, at), 1)
                yield from (
                    block
                    for block, _ in zip(self.blocks(position, _PIECE_BYTES), range(1), strict=False)
                )


def _line_start(path: Path, offset: int) -> int:
    """The first byte of the first line that begins at `offset` or later."""
    if offset == 0:
        return 0
    with path.open("rb") as stream:
        stream.seek(offset - 1)
        stream.readline(1 << 28)
        return stream.tell()


def open_source(source: str | Path, split: str, spool: Path | None = None) -> BuildSource:
    """The files of a path, a hub id, or stdin (`-`), which is copied to `spool` first. Raises
    DataError."""
    if str(source) != "-":
        files = find_files(source, split)
        return BuildSource(str(source), tuple(files), tuple(str(path) for path in files))
    assert spool is not None
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError(
            "data is `-`, but nothing is piped in",
            "pipe JSONL: cat train.jsonl | chuk batch build --data -",
        )
    _copy(sys.stdin.buffer, spool)
    return BuildSource("stdin", (spool,), ("stdin",))


def _copy(stream: IO[bytes], path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
