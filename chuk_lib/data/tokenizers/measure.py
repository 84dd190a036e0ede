"""How well and how fast tokenizers encode: two on the same texts, or one against the clock.

Speed is that of one call with many texts, which uses all cores, as `chuk batch build` does. Figures
of a busy machine mean little."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from chuk_lib.data.tokenizers.protocol import Tokenizer, unwrap
from chuk_lib.errors import DataError

_CHUNK = 1000


@dataclass
class TokenCounts:
    """What one tokenizer made of some texts. `unknown`: tokens that stand for anything; `lost`:
    characters in them; `changed`: texts that decoding does not give back."""

    texts: int = 0
    characters: int = 0
    bytes: int = 0
    tokens: int = 0
    unknown: int = 0
    lost: int = 0
    changed: int = 0
    seconds: float = 0.0
    used: set[int] = field(default_factory=set)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes that a token stands for, on average."""
        return self.bytes / max(1, self.tokens)

    @property
    def coverage(self) -> float:
        """Share of the characters that are not in unknown tokens."""
        return 1 - self.lost / max(1, self.characters)

    @property
    def megabytes_per_second(self) -> float:
        """Speed of encoding."""
        return self.bytes / 1e6 / max(self.seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Speed of encoding."""
        return self.tokens / max(self.seconds, 1e-9)

    def as_dict(self) -> dict[str, float | int]:
        """The figures by name."""
        return {
            "texts": self.texts,
            "characters": self.characters,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bytes_per_token": self.bytes_per_token,
            "unknown": self.unknown,
            "coverage": self.coverage,
            "changed_texts": self.changed,
            "used_tokens": len(self.used),
            "seconds": self.seconds,
            "megabytes_per_second": self.megabytes_per_second,
            "tokens_per_second": self.tokens_per_second,
        }


def compare(tokenizers: Iterable[Any], texts: Iterable[str]) -> list[TokenCounts]:
    """One tally a tokenizer, on the same texts, which are read once. Raises DataError when there is
    no text."""
    those = [unwrap(tokenizer) for tokenizer in tokenizers]
    tallies = [TokenCounts() for _ in those]
    for chunk in _chunks(texts):
        for tokenizer, tally in zip(those, tallies, strict=True):
            _count(tokenizer, chunk, tally)
    if not tallies or not tallies[0].texts:
        raise DataError("there is no text to encode", "give text, or a file with text in it")
    return tallies


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = (text for text in texts if text)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk


def _count(hf: Any, texts: list[str], tally: TokenCounts) -> None:
    unknown = hf.unk_token_id
    offsets = unknown is not None and hf.is_fast
    start = time.perf_counter()
    rows = hf(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
    tally.seconds += time.perf_counter() - start
    tally.texts += len(texts)
    tally.characters += sum(map(len, texts))
    tally.bytes += sum(len(text.encode()) for text in texts)
    tally.tokens += sum(map(len, rows))
    for ids, text in zip(rows, texts, strict=True):
        tally.used.update(ids)
        tally.changed += (
            hf.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) != text
        )
        if unknown is not None and unknown in ids:
            tally.unknown += ids.count(unknown)
            tally.lost += _lost(hf, text, unknown) if offsets else len(text)


def _lost(hf: Any, text: str, unknown: int) -> int:
    out = hf(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    pairs = zip(out["input_ids"], out["offset_mapping"], strict=True)
    return sum(end - start for token, (start, end) in pairs if token == unknown)


@dataclass(frozen=True)
class Speed:
    """Rates of encoding many texts at once, one after the other, and of decoding."""

    megabytes: float
    tokens: int
    batch_megabytes_per_second: float
    batch_tokens_per_second: float
    single_megabytes_per_second: float
    decode_tokens_per_second: float


def bench(tokenizer: Tokenizer, texts: Iterable[str], seconds: float = 3.0) -> Speed:
    """Encode and decode for about `seconds` in all, a third each. Raises DataError when there is no
    text."""
    hf = unwrap(tokenizer)
    chunk = next(_chunks(texts), [])
    if not chunk:
        raise DataError("there is no text to encode", "give a file with text in it")
    rows = hf(chunk, add_special_tokens=False, verbose=False)["input_ids"]
    size, tokens = sum(len(text.encode()) for text in chunk) / 1e6, sum(map(len, rows))
    share = seconds / 3
    batch = _rate(lambda: hf(chunk, add_special_tokens=False, verbose=False), share)
    single = _rate(
        lambda: [hf(text, add_special_tokens=False, verbose=False) for text in chunk], share
    )
    decode = _rate(lambda: [hf.decode(ids) for ids in rows], share)
    return Speed(size, tokens, size * batch, tokens * batch, size * single, tokens * decode)


def _rate(work: Any, seconds: float) -> float:
    """Times a second, the best of what fits into the time: the machine does other things too."""
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() >= end:
            return 1 / best
