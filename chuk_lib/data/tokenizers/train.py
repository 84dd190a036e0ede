"""Train a byte-level BPE tokenizer on given texts. Byte-level: whatever the texts, encoding loses nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chuk_lib.data.tokenizers.char import add_reserved, byte_level, reserved_tokens
from chuk_lib.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SMALLEST = 256 + len(reserved_tokens())


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens: fewer when the texts hold no more pairs to merge.

    Raises ConfigError when `vocab_size` cannot hold the bytes, DataError when there is no text.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST:
        raise ConfigError(
            f"a vocabulary of {vocab_size} cannot hold 256 bytes and the special tokens", f"use {SMALLEST} or more"
        )
    tokenizer = byte_level(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(reserved_tokens()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    counter = _Counted(texts)
    tokenizer.train_from_iterator(counter, trainer)
    if not counter.seen:
        raise DataError("there is no text to train a tokenizer on", "give a file with text in it")
    return add_reserved(tokenizer)


class _Counted:
    """Passes texts on and remembers whether there were any."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.seen = False

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.seen = self.seen or bool(text)
            yield text


def texts_of(source: str | Path) -> Iterator[str]:
    """Every string in a data file's columns, nested ones too. Raises DataError as `read_records` does."""
    from chuk_lib.data import read_records

    for record in read_records(source):
        yield from _strings(record.columns)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
