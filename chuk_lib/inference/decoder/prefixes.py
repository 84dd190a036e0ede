"""Prefix cache: keys and values of earlier prompts and answers, for later prompts that begin alike.

A prompt goes on from the longest beginning that it shares with anything that is remembered, so a
system message, a long document or the turns of a conversation run through the model once. What was
used last is kept, up to a number of bytes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from chuk_lib.inference.decoder.prefill import Memory

LEAST = 32
"""Shared tokens below which a prompt runs whole, together with others of its length: that is
cheaper than to go on alone. A prompt that is known whole runs nothing."""
_MOST = 1024
"""Texts at most: each is compared with each new prompt."""


@dataclass(eq=False)
class _Text:
    """Tokens (T,) under a model called `name`, with the keys and values of all of them."""

    name: Hashable
    tokens: np.ndarray
    memory: Memory
    size: int


class PrefixCache:
    """What models remember of texts, in `limit` bytes at most. `name` tells models apart, and the
    same model under several adapters. `size`: bytes that are held; `version` grows with what is
    known."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._texts: list[_Text] = []  # the one that was used last stands last
        self.size = 0
        self.version = 0

    def find(self, name: Hashable, ids: Sequence[int]) -> Memory | None:
        """The keys and values of the longest known beginning of a prompt, its last token left out;
        None when it is too short to be of use."""
        prompt = np.asarray(ids, np.int32)[:-1]
        same, best = 0, None
        for text in self._own(name):
            shared = _shared(text.tokens, prompt)
            if shared > same:
                same, best = shared, text
        if best is None or same < min(LEAST, len(prompt)):
            return None
        self._texts.remove(best)
        self._texts.append(best)
        return [(keys[:, :, :same], values[:, :, :same]) for keys, values in best.memory]

    def keep(self, name: Hashable, ids: Sequence[int], memory: Memory) -> None:
        """Remember `memory`, of all tokens `ids`, in a copy of its own. A text that another begins
        with is part of that one; one that is larger than the limit is not kept."""
        tokens = np.asarray(ids, np.int32)
        known = next((t for t in self._own(name) if _shared(t.tokens, tokens) == len(tokens)), None)
        if known is not None:
            self._texts.remove(known)
            self._texts.append(known)
            return
        size = sum(part.nbytes for pair in memory for part in pair)
        if not len(tokens) or size > self._limit:
            return
        for part in [t for t in self._own(name) if _shared(t.tokens, tokens) == len(t.tokens)]:
            self._drop(part)
        while self._texts and (self.size + size > self._limit or len(self._texts) >= _MOST):
            self._drop(self._texts[0])
        own = [(_copy(keys), _copy(values)) for keys, values in memory]
        mx.eval(own)
        self._texts.append(_Text(name, tokens, own, size))
        self.size += size
        self.version += 1

    def _own(self, name: Hashable) -> Iterator[_Text]:
        return (text for text in self._texts if text.name == name)

    def _drop(self, text: _Text) -> None:
        self._texts.remove(text)
        self.size -= text.size


def _copy(part: mx.array) -> mx.array:
    """A slice would keep the whole batch alive that it was cut from."""
    return mx.contiguous(part + mx.zeros((), part.dtype))


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two texts begin with alike."""
    both = min(len(one), len(other))
    unlike = one[:both] != other[:both]
    return int(unlike.argmax()) if unlike.any() else both
