"""Train a tokenizer on given texts, which are read once and not kept.

Five kinds. `byte-bpe` (GPT-2), `bpe`, `unigram` (SentencePiece) and `char` lose nothing: what their
vocabulary does not know becomes bytes. `wordpiece` (BERT) has one token for all unknown words, and
forgets spaces. The same texts give the same tokenizer, but for `unigram` and `wordpiece`, whose
trainers add up and break ties in any order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from chuk_lib.data.tokenizers.char import TOOL_TOKENS, byte_level, reserved_tokens
from chuk_lib.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SMALLEST = 256 + len(reserved_tokens())
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
UNKNOWN = {"wordpiece": "[UNK]", "unigram": "<unk>"}
"""Kinds whose models need a token for what they do not know."""
_SPACE = "▁"


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with chuk's reserved tokens; see `train_tokenizer`."""
    return train_tokenizer(texts, vocab_size)


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    kind: str = "byte-bpe",
    *,
    special: Sequence[str] = reserved_tokens(),
    min_frequency: int = 0,
) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens: fewer when the texts hold no more pieces worth a
    token.

    `special` tokens have the first ids, in order; those of `TOOL_TOKENS` are text that decoding
    shows. A piece must occur `min_frequency` times. Raises ConfigError for an unknown kind or too
    small a vocabulary, DataError when there is no text."""
    if kind not in KINDS:
        raise ConfigError(
            f"there is no kind of tokenizer called `{kind}`", f"kinds: {', '.join(KINDS)}"
        )
    tokens = list(dict.fromkeys([*special, *([UNKNOWN[kind]] if kind in UNKNOWN else [])]))
    smallest = len(tokens) + (1 if kind == "wordpiece" else 256)
    if vocab_size < smallest:
        needed = "the special tokens" if kind == "wordpiece" else "256 bytes and the special tokens"
        raise ConfigError(
            f"a vocabulary of {vocab_size} cannot hold {needed}", f"use {smallest} or more"
        )
    counter = _Counted(texts)
    made = KINDS[kind](counter, vocab_size, tokens, min_frequency)
    if not counter.seen:
        raise DataError("there is no text to train a tokenizer on", "give a file with text in it")
    return _mark(made, tokens)


def _train_byte_bpe(texts: Iterable[str], size: int, special: list[str], least: int) -> Tokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = byte_level(Tokenizer(models.BPE()))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=alphabet,
        min_frequency=least,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def _train_bpe(texts: Iterable[str], size: int, special: list[str], least: int) -> Tokenizer:
    from tokenizers import Tokenizer, models, trainers

    made = _spaced(Tokenizer(models.BPE()))
    room = size - len(BYTES)
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        special_tokens=special,
        limit_alphabet=max(1, room // 2),
        min_frequency=least,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    model = json.loads(made.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)[len(special) :]
    vocabulary = {
        piece: index for index, piece in enumerate(dict.fromkeys([*special, *BYTES, *pieces]))
    }
    merges = [tuple(merge) for merge in model["merges"]]
    return _spaced(Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True)))


def _train_unigram(texts: Iterable[str], size: int, special: list[str], least: int) -> Tokenizer:
    from tokenizers import Tokenizer, models, trainers

    made = _spaced(Tokenizer(models.Unigram()))
    trainer = trainers.UnigramTrainer(
        vocab_size=size - len(BYTES),
        special_tokens=special,
        unk_token=UNKNOWN["unigram"],
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    pieces = json.loads(made.to_str())["model"]["vocab"]
    # Bytes never win over a piece of text.
    floor = min((score for _, score in pieces), default=0.0) - 100.0
    taken = {*special, *BYTES}
    kept = [(piece, score) for piece, score in pieces if piece not in taken]
    vocabulary = [*((token, 0.0) for token in special), *((byte, floor) for byte in BYTES), *kept]
    model = models.Unigram(vocabulary, unk_id=special.index(UNKNOWN["unigram"]), byte_fallback=True)
    return _spaced(Tokenizer(model))


def _train_wordpiece(texts: Iterable[str], size: int, special: list[str], least: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.WordPiece(unk_token=UNKNOWN["wordpiece"]))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=special, min_frequency=least, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return made


def _train_char(texts: Iterable[str], size: int, special: list[str], least: int) -> Tokenizer:
    """The most frequent characters; of equally frequent ones those that come first in Unicode."""
    from collections import Counter

    from tokenizers import Tokenizer, decoders, models

    found: Counter[str] = Counter()
    for text in texts:
        found.update(text)
    often = [character for character, count in found.items() if count >= least]
    often.sort(key=lambda character: (-found[character], character))
    kept = often[: size - len(special) - len(BYTES)]
    pieces = {
        piece: index for index, piece in enumerate(dict.fromkeys([*special, *BYTES, *sorted(kept)]))
    }
    made = Tokenizer(models.BPE(vocab=pieces, merges=[], byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return made


KINDS: dict[str, Callable[[Iterable[str], int, list[str], int], Tokenizer]] = {
    "byte-bpe": _train_byte_bpe,
    "bpe": _train_bpe,
    "unigram": _train_unigram,
    "wordpiece": _train_wordpiece,
    "char": _train_char,
}
"""Kinds of tokenizers by name."""


def _spaced(tokenizer: Tokenizer) -> Tokenizer:
    """Spaces as `▁`, lines and digits apart, and bytes for what is unknown. A literal `▁` comes
    back as a space."""
    from tokenizers import decoders, pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _mark(tokenizer: Tokenizer, special: Sequence[str]) -> Tokenizer:
    """Special tokens are cut out of a text before anything else looks at it."""
    from tokenizers import AddedToken

    shown = [token for token in special if token in TOOL_TOKENS]
    hidden = [token for token in special if token not in TOOL_TOKENS]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in hidden])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in shown])
    return tokenizer


class _Counted:
    """Passes texts on and remembers whether there were any."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.seen = False

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.seen = self.seen or bool(text)
            yield text
