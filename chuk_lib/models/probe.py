"""Compare two models by what they say: mean loss, KL divergence and agreement of the likeliest
token on given text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from chuk_lib.errors import DataError

WINDOW = 512
Rows = Sequence[Sequence[int]]
"""Token ids of texts."""
Forward = Callable[[mx.array], Any]


@dataclass(frozen=True)
class Probed:
    """Over `tokens` predicted tokens: the mean loss (nats) of both, the mean KL(first ‖ second)
    (nats), and the share of tokens where both find the same one likeliest."""

    tokens: int
    loss: float
    other_loss: float
    kl: float
    same_argmax: float


def windows(ids: Sequence[int], length: int = WINDOW) -> list[list[int]]:
    """A long text in pieces of at most `length` tokens; the last is left out when it is one
    token."""
    pieces = [list(ids[start : start + length]) for start in range(0, len(ids), length)]
    return [piece for piece in pieces if len(piece) > 1]


def mean_loss(model: Forward, rows: Rows) -> float:
    """Mean cross-entropy in nats over all next tokens of `rows`. Raises DataError when there are
    none."""
    total, count = 0.0, 0
    for ids, logits in _logits(model, rows):
        losses = -mx.take_along_axis(_log_softmax(logits), ids[1:, None], axis=-1)
        total, count = total + float(losses.sum()), count + len(ids) - 1
    return total / _counted(count)


def compare(first: Forward, second: Forward, rows: Rows) -> Probed:
    """What two models say of the same tokens. Raises DataError when there are none to predict."""
    sums, count = [0.0, 0.0, 0.0, 0.0], 0
    for (ids, one), (_, two) in zip(_logits(first, rows), _logits(second, rows), strict=True):
        logp, logq = _log_softmax(one), _log_softmax(two)
        target = ids[1:, None]
        found = (
            -mx.take_along_axis(logp, target, axis=-1).sum(),
            -mx.take_along_axis(logq, target, axis=-1).sum(),
            (mx.exp(logp) * (logp - logq)).sum(),
            (logp.argmax(-1) == logq.argmax(-1)).sum(),
        )
        sums = [total + float(value) for total, value in zip(sums, found, strict=True)]
        count += len(ids) - 1
    loss, other, kl, same = (total / _counted(count) for total in sums)
    return Probed(count, loss, other, max(kl, 0.0) if math.isfinite(kl) else kl, same)


def _logits(model: Forward, rows: Rows) -> Iterator[tuple[mx.array, mx.array]]:
    """Of each row its ids (T,) and the logits (T−1, V) of its next tokens, in float32."""
    for row in rows:
        if len(row) > 1:
            ids = mx.array(list(row))
            yield ids, model(ids[None])[0, :-1].astype(mx.float32)


def _log_softmax(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _counted(tokens: int) -> int:
    if not tokens:
        raise DataError("the text has no two tokens in a row to predict", "give a longer text")
    return tokens
