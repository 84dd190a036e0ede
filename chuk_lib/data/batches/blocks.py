"""A source cut into blocks that are rendered apart from each other, in order.

A block of a JSONL or text file is a range of bytes that ends with a line: whoever renders it reads
it itself. Other formats, and compressed files, are read here and handed on as records. A position
says where a block begins, so that a build can go on there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

from chuk_lib.data.parsers import LONGEST_LINE, JsonDecoder, decoded, record_of
from chuk_lib.data.reader import read_records
from chuk_lib.data.types import Record, Source
from chuk_lib.errors import DataError

BLOCK_BYTES = 1 << 20
"""Bytes of text in a block, a little more where a line crosses the end."""
_BLOCK_RECORDS = 500
_PIECE = 1 << 16


class Position(NamedTuple):
    """Where a block begins: the file, the byte (or the record, where files are read as records) and
    the line."""

    file: int = 0
    offset: int = 0
    line: int = 1


@dataclass(frozen=True)
class RecordBlock:
    """Part of a source: `size` bytes of a file of lines from `position` on, or records that were
    read already."""

    path: str
    name: str
    position: Position
    size: int = 0
    records: Sequence[Record] | None = None


def blocks(
    files: Sequence[Path],
    names: Sequence[str],
    start: Position = Position(),
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[RecordBlock]:
    """The blocks of some files from a position on. `names` are what messages call the files."""
    for number in range(start.file, len(files)):
        begin = start if number == start.file else Position(number)
        of_lines = files[number].suffix.lower() in (".jsonl", ".ndjson", ".txt")
        parts = (
            _ranges(files[number], begin, block_bytes)
            if of_lines
            else _batches(files[number], begin)
        )
        for position, size, records in parts:
            yield RecordBlock(str(files[number]), names[number], position, size, records)


Part = tuple[Position, int, "Sequence[Record] | None"]


def _ranges(path: Path, start: Position, block_bytes: int) -> Iterator[Part]:
    """Ranges of whole lines."""
    try:
        with path.open("rb") as stream:
            stream.seek(start.offset)
            position = start
            while piece := stream.read(block_bytes):
                size, lines = len(piece), piece.count(b"\n")
                while not piece.endswith(b"\n") and (piece := stream.readline(_PIECE)):
                    size, lines = size + len(piece), lines + piece.endswith(b"\n")
                    if size > block_bytes + LONGEST_LINE:
                        raise OSError(f"a line is longer than {LONGEST_LINE // 2**20} MiB")
                yield position, size, None
                position = Position(position.file, position.offset + size, position.line + lines)
    except OSError as error:
        raise _unreadable(path, error) from None


def _batches(path: Path, start: Position) -> Iterator[Part]:
    records = islice(read_records(path), start.offset, None)
    at = start.offset
    while chunk := list(islice(records, _BLOCK_RECORDS)):
        yield Position(start.file, at, chunk[0].source.line), 0, chunk
        at += len(chunk)


def records_of(block: RecordBlock) -> Iterator[Record]:
    """The records of a block. Raises DataError naming file and line."""
    if block.records is not None:
        yield from block.records
        return
    is_text = block.path.lower().endswith(".txt")
    decoder = JsonDecoder()
    for number, line in enumerate(_lines(block), block.position.line):
        source = Source(block.name, number)
        if number == 1 and line.startswith(b"\xef\xbb\xbf"):
            line = line[3:]
        if not line.strip():
            continue
        row = _text(line, source) if is_text else _parsed(line, source, decoder)
        if row is not None:
            yield Record(row, source)


def _lines(block: RecordBlock) -> list[bytes]:
    try:
        with open(block.path, "rb") as stream:
            stream.seek(block.position.offset)
            return stream.read(block.size).split(b"\n")
    except OSError as error:
        raise _unreadable(Path(block.path), error) from None


def _text(line: bytes, source: Source) -> dict[str, Any] | None:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        # Raises with the place.
        text = list(decoded(chain(repeat(b"", source.line - 1), [line]), source.name))[-1]
    return {"text": text.rstrip("\r\n")} if text.strip() else None


def _parsed(line: bytes, source: Source, decoder: JsonDecoder) -> dict[str, Any] | None:
    """A row; None for a line that is blank after all."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        # Raises with the place.
        text = list(decoded(chain(repeat(b"", source.line - 1), [line]), source.name))[-1]
    return record_of(decoder, text, source).columns if text.strip() else None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"`{path}` cannot be read: {error.strerror or error}", "check the file and its permissions"
    )
