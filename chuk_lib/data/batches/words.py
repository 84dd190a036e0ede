"""Text to ids by pieces that come again and again: each is tokenised once and then looked up.

Most pipelines of byte-level BPE cut a text before every space that follows a visible ASCII
character, whatever stands further left or right (GPT-2's pattern and those made after it have no
lookbehind, and no alternative runs from a visible character into a space). So the ids of a text are
those of its pieces between such points, joined. Pipelines that are not known to do so, or fail a
test of it, tokenise whole texts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

_PIECES = re.compile(r"(?s: *[^ ]*[!-~](?= )|.+?[!-~](?= )|.+)")
_MOST_PIECES, _LONGEST_PIECE = 250_000, 48
"""What is remembered: at most some 60 MB. Longer pieces hardly come again."""
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = frozenset(
    (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST,
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST,
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        rf"{_CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"\p{N}{1,3}",
        r"[0-9]",
        r"\d",
    )
)
"""Patterns of GPT-2, Llama 3, Qwen and gpt-oss, and those that only take numbers apart."""
_PROBES = (
    "Hello, world! It's  3 o'clock,  isn't it?\n\n  Yes: 12345 6.",
    "a b",
    " a",
    "",
    "a  b   c \n d\t e",
    "x\u00a0 y \u3000z é ñ\u0303 ü",
    "def f(x):\n    return x + 1  # no\n",
    "日本語 テキスト。 終わり !",
    "it ' s 'll 'S ' d",
    "a\r\n b\r c \r\n",
    "1 000 000 -5 + - = ...  ? !",
)


def encoder_of(pipeline: Any) -> Callable[[Sequence[str]], list[bytes]]:
    """What makes int32 ids of texts, as bytes, special tokens of plain text included: by pieces
    where that gives the same ids, else whole. Takes a `tokenizers.Tokenizer` without padding and
    truncation."""
    if cuts_before_spaces(json.loads(pipeline.to_str())):
        pieces = Pieces(pipeline)
        if pieces(_PROBES) == whole(pipeline, _PROBES):
            return pieces
    return lambda texts: whole(pipeline, texts)


def whole(pipeline: Any, texts: Sequence[str], special: bool = True) -> list[bytes]:
    """Texts by the pipeline itself."""
    found = pipeline.encode_batch_fast(list(texts), add_special_tokens=special)
    return [np.array(one.ids, dtype=np.int32).tobytes() for one in found]


class Pieces:
    """Texts by their pieces. Remembers the ids of short pieces; forgets all of them when they are
    too many."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._known: dict[str, bytes] = {}
        self._before, self._after = _around(pipeline)

    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text."""
        cut = [_PIECES.findall(text) for text in texts]
        new = self._learned(set(chain.from_iterable(cut)))
        ids_of, before, after = self._known.__getitem__, self._before, self._after
        made = [b"".join((before, *map(ids_of, pieces), after)) for pieces in cut]
        for piece in new:
            if len(piece) > _LONGEST_PIECE:
                del self._known[piece]
        return made

    def _learned(self, pieces: set[str]) -> list[str]:
        """The pieces that were not known; now they are."""
        new = list(pieces.difference(self._known))
        if len(self._known) + len(new) > _MOST_PIECES:
            self._known.clear()
            new = list(pieces)
        if new:
            self._known.update(zip(new, whole(self._pipeline, new, special=False), strict=True))
        return new


def _around(pipeline: Any) -> tuple[bytes, bytes]:
    """The ids that the pipeline puts before and after a text, such as BOS."""
    bare, dressed = (
        pipeline.encode("a b", add_special_tokens=special).ids for special in (False, True)
    )
    at = next((at for at in range(len(dressed)) if dressed[at : at + len(bare)] == bare), 0)
    before, after = dressed[:at], dressed[at + len(bare) :]
    return np.array(before, dtype=np.int32).tobytes(), np.array(after, dtype=np.int32).tobytes()


def joined(parts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """All int32 ids of several texts, given as bytes, in one array (N,), and how many each has."""
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)) // 4
    return np.frombuffer(b"".join(parts), dtype=np.int32), lengths


def shared(prompt: bytes, whole: bytes) -> int:
    """How many ids both begin with."""
    if whole.startswith(prompt):
        return len(prompt) // 4
    size = min(len(prompt), len(whole))
    first, second = np.frombuffer(prompt[:size], np.int32), np.frombuffer(whole[:size], np.int32)
    return int(np.argmax(first != second)) if (first != second).any() else size // 4


def cuts_before_spaces(parts: dict[str, Any]) -> bool:
    """Whether a pipeline, as JSON, is known to cut before each space that follows a visible ASCII
    character."""
    normalizer, model = parts.get("normalizer"), parts["model"]
    if normalizer is not None and normalizer.get("type") != "NFC":
        return False
    if (
        model.get("type") != "BPE"
        or model.get("dropout")
        or parts.get("truncation")
        or parts.get("padding")
    ):
        return False
    for token in parts.get("added_tokens", ()):
        if (
            token.get("lstrip")
            or token.get("rstrip")
            or token.get("single_word")
            or re.search(r"\s", token["content"])
        ):
            return False
    splitter = parts.get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers", ()) if splitter.get("type") == "Sequence" else (splitter,)
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        return False
    patterns = [_pattern(step) for step in steps[:-1] if step.get("type") != "Digits"]
    if not all(pattern in PATTERNS for pattern in patterns):
        return False
    return bool(steps[-1].get("use_regex")) or any(
        pattern.endswith(r"\s+(?!\S)|\s+") for pattern in patterns
    )


def _pattern(step: dict[str, Any]) -> str:
    """What a step splits at, empty for what is no plain split."""
    plain = (
        step.get("type") == "Split"
        and step.get("behavior") == "Isolated"
        and not step.get("invert")
    )
    return str(step["pattern"].get("Regex", "")) if plain else ""
