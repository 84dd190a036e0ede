"""Tokens that a smaller model of the same vocabulary guesses (speculative decoding; Leviathan et
al. 2023, Chen et al. 2023), to be run together with the last token by the model that writes.

The small model draws by the very random number that the row will draw its token with, so guesses
are right more often than by chance, and what is written is what the large model draws in any case:
text and log-probs do not depend on the guesses. As in `lookahead.py` guesses are made only where
they are likely enough to be right, which is learned from those that were run; what they may cost in
vain is bounded. Costs follow from the sizes of the models, so a text comes out the same again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.nn as nn
import numpy as np

from chuk_lib.inference.decoder.llama import LlamaParts
from chuk_lib.inference.decoder.lookahead import Cost
from chuk_lib.inference.decoder.numpy_llama import NumpyLlama, Remembered
from chuk_lib.inference.decoder.prefill import prefill_plain
from chuk_lib.runtime.cpu_math import view

MOST = 12
"""Guesses at once."""
_PRIOR = (3.6, 4.0)
"""Right guesses of all that a text begins with: enough for a first try."""
_FADE = 0.95
_GAIN = 1.1
_LOSS = 0.02
"""Steps that guesses may have cost in all, as a share of what was written."""
_AGAIN = 96
"""Tokens after which guesses that were not worth it are tried once more."""
_WEIGHT, _LAYER = 2.7e-10, 1.5e-4
"""Seconds that a step takes for a weight and a layer (a CPU core of 2023, OpenBLAS): only what
models cost beside each other matters."""

Draw = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Tokens (B,) of logits (B, V) by random numbers (B,)."""


class DraftModel(NamedTuple):
    """A small model in its parts, beside that of the one that writes, and what a step of so many
    tokens of the latter costs."""

    model: nn.Module
    parts: LlamaParts
    writer: LlamaParts
    cost: Cost

    @property
    def share(self) -> float:
        """A step of the small model in steps of the other one."""
        return step_seconds(self.parts) / step_seconds(self.writer)


def step_seconds(parts: LlamaParts) -> float:
    """About how long a step of one token takes."""
    linears = [
        layer
        for block in parts.blocks
        for layer in (block.q, block.k, block.v, block.o, block.gate, block.up, block.down)
    ]
    weights = sum(math.prod(layer.weight.shape) for layer in [*linears, parts.head])
    return _WEIGHT * weights + _LAYER * len(parts.blocks)


class Drafting:
    """Guesses for one row, which goes on after `ids` by up to `limit` tokens."""

    def __init__(self, draft: DraftModel, ids: Sequence[int], limit: int) -> None:
        self._draft, self._share, self._cost = draft, draft.share, draft.cost
        self._known = min(one.head.weight.shape[0] for one in (draft.parts, draft.writer))
        self._prompt, self._limit = ids, limit
        self._rows: NumpyLlama | None = None
        self._pending: list[int] = [int(ids[-1])]  # written, and not run by the small model
        self._guessed: list[int] = []
        self._right, self._of = _PRIOR
        self._saved = self._written = 0.0
        self._since = 0  # tokens since guesses were run

    def guess(self, most: int, numbers: np.ndarray, draw: Draw) -> list[int]:
        """Up to `most` tokens that are worth being run now, drawn by `numbers`."""
        count = self._worth(min(most, MOST, len(numbers)))
        if not count or max(self._pending) >= self._known:
            return []
        rows = self._started()
        self._guessed = []
        logits = rows.run(np.array(self._pending, np.int32))[-1:]
        for at in range(count):
            token = int(draw(logits[:, : self._known].copy(), numbers[at : at + 1])[0])
            self._guessed.append(token)
            if at + 1 < count:
                logits = rows.step(np.array([token], np.int32))
        self._pending = []
        return self._guessed

    def add(self, tokens: Sequence[int]) -> None:
        """The row has written `tokens`: of what was guessed last, if anything was, all that was
        right, and one more."""
        self._written += len(tokens)
        self._since += len(tokens)
        if not self._guessed:
            self._pending += [int(token) for token in tokens]
            return
        guessed, self._guessed = self._guessed, []
        right = len(tokens) - 1  # the last is drawn by the model that writes, right or not
        self._right = _FADE * self._right + right
        self._of = _FADE * self._of + right + (right < len(guessed))
        self._saved += len(tokens) - self._cost(1 + len(guessed)) - self._share * len(guessed)
        self._since = 0
        ran = len(guessed) - 1  # the last guess was never run
        kept = min(right, ran)
        if self._rows is not None:
            self._rows.forget(ran - kept)
        self._pending = [int(token) for token in tokens[kept:]]

    def _worth(self, most: int) -> int:
        """How many guesses pay best, 0 when none do."""
        if self._saved < -_LOSS * self._written - 4:
            return 0
        sure = min(0.99, self._right / self._of)
        caught_up = self._share * (self._cost(len(self._pending)) - 1)
        right, best, count = 1.0, 0.0, 0
        for more in range(1, most + 1):
            right += sure**more
            spent = self._cost(more + 1) + self._share * more + caught_up
            if right / spent > best:
                best, count = right / spent, more
        again = self._since >= _AGAIN and self._saved >= -_LOSS * self._written
        return count if best > _GAIN or again else 0

    def _started(self) -> NumpyLlama:
        """The small model after the prompt, which it runs when it is first asked."""
        if self._rows is None:
            (memory,) = prefill_plain(self._draft.model, [self._prompt])
            before = len(self._prompt) - 1
            prefix = [
                (view(keys)[0, :, :before], view(values)[0, :, :before]) for keys, values in memory
            ]
            self._rows = NumpyLlama(self._draft.parts)
            self._rows.admit([Remembered(prefix)], [self._limit + MOST])
        return self._rows
