"""What a row may write, when that is not everything: a grammar that is followed token by token.

A `Constraint` belongs to a request and may serve many rows; each row follows it with a `Guide` of
its own, which says after every token what may come next. It filters: the log-probs of what is
written are those of the model without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.sampling import Settings


class Guide(Protocol):
    """Where one row stands."""

    def fill(self, bits: np.ndarray) -> None:
        """Set `bits` (W,) uint32, zeros: bit t is one where token t may come next; one is at least,
        also when the row is over. Tokens that a token table does not reach may not come."""

    def follow(self, token: int) -> None:
        """The row has written `token`; whatever comes after its end changes nothing."""


class Constraint(Protocol):
    """What the whole text of a row must be."""

    def start(self) -> Guide:
        """A guide for a row that has written nothing yet."""

    def problem(self, text: str, ids: Sequence[int]) -> str | None:
        """Why a finished text, of tokens `ids` without the one that ended it, is not what it must
        be; None when it is."""


class Bias:
    """What is added to the logits of one row: what its request says of some tokens, less what the
    tokens of its answer cost: μ[j] − c[j]·frequency_penalty − (c[j] > 0)·presence_penalty, where
    c[j] counts token j in the answer (OpenAI's documentation of its API)."""

    def __init__(self, given: Mapping[int, float], config: SamplingConfig) -> None:
        self.values = dict(given)
        self.moves = config.counts
        self._config = config
        self._counted: set[int] = set()

    def follow(self, token: int) -> None:
        """The row has written `token`."""
        cost = self._config.frequency_penalty
        if token not in self._counted:
            self._counted.add(token)
            cost += self._config.presence_penalty
        self.values[token] = self.values.get(token, 0.0) - cost


class Group:
    """Rows of a batch that are chosen for in one go: their indices, None when they are all rows in
    order; and their guides and what is added to their logits, if they have any: all of them or
    none."""

    def __init__(
        self,
        rows: np.ndarray | None,
        settings: Settings,
        guides: Sequence[Guide] = (),
        biases: Sequence[Bias] = (),
    ) -> None:
        self.rows, self.settings, self.guides, self._biases = rows, settings, guides, biases
        self._bias: np.ndarray | None = None

    def limits(self, vocabulary: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """What each row may write next (B, V) bool, and what is added to its logits (B, V) float32;
        None when that is everything, and nothing."""
        if self._bias is None and self._biases:
            self._bias = np.zeros((len(self._biases), vocabulary), np.float32)
            for line, bias in zip(self._bias, self._biases, strict=True):
                line[list(bias.values)] = list(bias.values.values())
        return self.allowed(vocabulary), self._bias

    def allowed(self, vocabulary: int) -> np.ndarray | None:
        """(B, V) bool: what each row may write next; None when that is everything."""
        if not self.guides:
            return None
        bits = np.zeros((len(self.guides), -(-vocabulary // 32)), np.uint32)
        for guide, line in zip(self.guides, bits, strict=True):
            guide.fill(line)
        flags = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
        return flags[:, :vocabulary].view(bool)

    @property
    def follows(self) -> bool:
        """Whether what may come next depends on what was written."""
        return bool(self.guides) or any(bias.moves for bias in self._biases)

    def follow(self, tokens: np.ndarray) -> None:
        """What its rows (B,) have written."""
        for guide, token in zip(self.guides, tokens.tolist(), strict=False):
            guide.follow(token)
        for row, (bias, token) in enumerate(zip(self._biases, tokens.tolist(), strict=False)):
            if not bias.moves:
                continue
            bias.follow(token)
            if self._bias is not None:
                self._bias[row, token] = bias.values[token]
