"""Long texts as windows that overlap, nothing lost: windows without their overlaps, joined, are the
text again.

Windows are cut between words, characters or tokens of a tokenizer. A `.txt` file is one text, line
ends included, and is never in memory as a whole; every other row is a text of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from chuk_lib.data.parsers import file_lines, suffix_of
from chuk_lib.data.reader import find_files, read_records
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.data.types import Record
from chuk_lib.errors import ConfigError, DataError

UNITS = ("tokens", "words", "characters")
_WORD = re.compile(r"\s*\S+\s*")
Cutter = Callable[[str], list[int]]
"""A text to the ends of its pieces, the last one being its length."""


class TextWindow(NamedTuple):
    """A part of a text, where it starts in it, and how many of its first characters the window
    before holds too."""

    text: str
    start: int
    overlap: int


def windows(
    blocks: Iterable[str], cut: Cutter, size: int, overlap: int, fits: Cutter | None = None
) -> Iterator[TextWindow]:
    """Windows of `size` pieces over the text that the blocks make when joined; the next one starts
    `overlap` pieces before the end of the one before. `fits` counts the pieces of a window on its
    own, which may be more than in its text: then it is cut shorter."""
    if not 0 <= overlap < size:
        raise ConfigError(
            f"an overlap of {overlap} does not fit a size of {size}",
            "it lies between 0 and the size",
        )
    pieces = _Pieces(size, overlap, fits)
    for block in blocks:
        pieces.add(block, cut(block))
        while pieces.left > size:
            yield pieces.take()
    while pieces.left > pieces.repeated:
        yield pieces.take()


class _Pieces:
    """Text that no window has yet, with the ends of its pieces. Blocks are appended, used text is
    let go."""

    def __init__(self, size: int, overlap: int, fits: Cutter | None) -> None:
        self.repeated = 0
        self._size, self._overlap, self._fits = size, overlap, fits
        self._text = ""
        self._ends: list[int] = []
        self._first = self._base = self._fresh = 0

    @property
    def left(self) -> int:
        """Pieces that the next window can take, those that repeat the last one's included."""
        return len(self._ends) - self._first

    def add(self, block: str, ends: list[int]) -> None:
        """Take more text."""
        begin = self._begin
        self._text = self._text[begin:] + block
        known = [end - begin for end in self._ends[self._first :]]
        shift = len(self._text) - len(block)
        self._ends = known + [shift + end for end in ends]
        self._base, self._first = self._base + begin, 0

    def take(self) -> TextWindow:
        """The next window."""
        begin, used = self._begin, self._fitting()
        end = self._ends[self._first + used - 1]
        window = TextWindow(self._text[begin:end], self._base + begin, self._fresh)
        self.repeated = min(self._overlap, used)
        self._first += used - self.repeated
        self._fresh = end - self._begin
        return window

    @property
    def _begin(self) -> int:
        return self._ends[self._first - 1] if self._first else 0

    def _fitting(self) -> int:
        """How many pieces the window may take: at least one more than it repeats."""
        used, least = min(self._size, self.left), self.repeated + 1
        while self._fits is not None and used > least:
            text = self._text[self._begin : self._ends[self._first + used - 1]]
            extra = len(self._fits(text)) - self._size
            if extra <= 0:
                break
            used = max(least, used - extra)
        return used


def cutter(unit: str, tokenizer: Tokenizer | None = None) -> Cutter:
    """What cuts a text into pieces. Raises ConfigError for tokens without a tokenizer."""
    if unit == "characters":
        return lambda text: list(range(1, len(text) + 1))
    if unit == "words":
        return _words
    if unit != "tokens":
        raise ConfigError(f"unknown unit `{unit}`", f"units: {', '.join(UNITS)}")
    if tokenizer is None:
        raise ConfigError(
            "tokens need a tokenizer", "name a model (--model MODEL), or take --unit words"
        )
    from chuk_lib.data.tokenizers.encoder import Encoder

    encoder = Encoder(tokenizer)

    def cut(text: str) -> list[int]:
        offsets = encoder.encode([text], special=False, offsets=True)[0].offsets
        assert offsets is not None
        inside = sorted({int(end) for end in offsets[:, 1] if 0 < end < len(text)})
        return [*inside, len(text)] if text else []

    return cut


def _words(text: str) -> list[int]:
    found = [match.end() for match in _WORD.finditer(text)]
    return found or ([len(text)] if text else [])


def chunked(
    source: str | Path,
    *,
    size: int,
    overlap: int = 0,
    unit: str = "words",
    tokenizer: Tokenizer | None = None,
    text_field: str = "text",
    split: str = "train",
) -> Iterator[dict[str, Any]]:
    """Rows {text, …, source_row, chunk, start, overlap}: `overlap` is how many first characters
    repeat the chunk before, `start` where the chunk begins in its text. Other columns of a row go
    along with each of its chunks."""
    cut = cutter(unit, tokenizer)
    fits = cut if unit == "tokens" else None
    for number, (blocks, notes) in enumerate(_texts(source, text_field, split), 1):
        for index, window in enumerate(windows(blocks, cut, size, overlap, fits)):
            place = {
                "source_row": number,
                "chunk": index,
                "start": window.start,
                "overlap": window.overlap,
            }
            yield {text_field: window.text, **notes, **place}


def _texts(
    source: str | Path, text_field: str, split: str
) -> Iterator[tuple[Iterable[str], dict[str, Any]]]:
    if str(source) != "-" and Path(source).is_file() and suffix_of(Path(source)) == ".txt":
        yield from ((file_lines(path), {}) for path in find_files(source, split))
        return
    for record in read_records(source, split):
        yield (
            [_text_of(record, text_field)],
            {name: v for name, v in record.columns.items() if name != text_field},
        )


def _text_of(record: Record, text_field: str) -> str:
    text = record.columns.get(text_field)
    if not isinstance(text, str):
        hint = "name the column: --text-field NAME, or make text: chuk data convert --to text"
        raise DataError(f"{record.source} has no text in `{text_field}`", hint)
    return text
