"""Tokens that are guessed from the text itself: where the last few stood before, what came next may
come again (prompt lookup; Saxena 2023).

A guess costs nothing until it is run. Run with the last token in one step, guesses are right as far
as they are what the row draws there anyway, so the text stays as it is. Since a step of several
tokens costs several steps of one on a CPU, guesses are run only when enough of them are likely to
be right: how likely, by how many tokens agreed before, is learned from every token that is
written, run or not. All of it follows from the text alone, so a text comes out the same again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_LEAST = 3
"""Tokens that must agree."""
_EDGES = (4, 6, 9, 17, 33)
_PRIOR = ((1.0, 4.0), (1.5, 4.0), (2.5, 4.0), (3.2, 4.0), (3.6, 4.0), (3.8, 4.0))
"""Right guesses of all, by tokens that agreed: below 4, below 6, … What a text begins with."""
_FADE = 0.97
MOST = 32
_GAIN = 1.15
_LOSS = 0.02
"""Steps that guesses may have cost in all, as a share of what was written."""

Cost = Callable[[int], float]
"""What a step of so many tokens of one row costs, in steps of one."""


class Lookahead:
    """The tokens of one row, and what it may write next."""

    def __init__(self, tokens: Sequence[int], cost: Cost) -> None:
        self._cost = cost
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # last tokens to the place behind them
        self._place = 0  # of the next guess, 0 without one
        self._agree = 0  # tokens before it that agree
        self._right = [list(pair) for pair in _PRIOR]
        self._saved = self._written = 0.0
        for token in tokens:
            self._append(token)
        self._find()

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that are worth being run now."""
        if not self._place or self._saved < -_LOSS * self._written - 1:
            return []
        right, sure, best, length = 1.0, 1.0, _GAIN, 0
        for more in range(1, min(most, MOST - 1) + 1):
            good, of = self._right[_class(self._agree + more - 1)]
            sure *= good / of
            right += sure
            if right / self._cost(more + 1) > best:
                best, length = right / self._cost(more + 1), more
        guessed = self._tokens[self._place : self._place + length]
        while len(guessed) < length:  # what comes next repeats what came just before, as in a loop
            guessed.append(guessed[len(guessed) - (len(self._tokens) - self._place)])
        return guessed

    def add(self, tokens: Sequence[int], run: int | None = 1) -> None:
        """The row has written `tokens` by one step of `run`, or (None) by guesses of another."""
        self._written += len(tokens)
        self._saved += 0.0 if run is None else len(tokens) - self._cost(run)
        for token in tokens:
            self._learn(token)
            self._append(token)
            if self._place:
                continue
            self._find()

    def _learn(self, token: int) -> None:
        if not self._place:
            return
        is_right = self._tokens[self._place] == token
        counts = self._right[_class(self._agree)]
        counts[0] = _FADE * counts[0] + is_right
        counts[1] = _FADE * counts[1] + 1
        self._place, self._agree = (self._place + 1, self._agree + 1) if is_right else (0, 0)

    def _append(self, token: int) -> None:
        last = len(self._tokens)
        if last >= _LEAST:
            self._after[tuple(self._tokens[-_LEAST:])] = last
        self._tokens.append(token)

    def _find(self) -> None:
        tokens = self._tokens
        self._place = self._after.get(tuple(tokens[-_LEAST:]), 0)
        if not self._place:
            return
        agree = _LEAST
        while agree < min(_EDGES[-1], self._place):
            if tokens[self._place - 1 - agree] != tokens[-1 - agree]:
                break
            agree += 1
        self._agree = agree


def _class(agree: int) -> int:
    return next((at for at, edge in enumerate(_EDGES) if agree < edge), len(_EDGES))
