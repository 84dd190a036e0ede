"""What a policy head's outputs mean: one of several actions, or numbers between bounds; with exact
log-probabilities.

    choice     p = softmax(outputs)
    numbers    u ~ N(outputs, e^log_std), action = low + (high − low)·(tanh(u) + 1)/2
               log p(action) = Σ log N(u) − log(1 − tanh²(u)) − log((high − low)/2)

`raw` is what a rollout keeps: the number of the choice, (…,) int64, or u, (…, A), from which both
parts follow exactly. What tanh and the bounds take off does not depend on the weights, so neither
does a ratio of two policies on it."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.experts.config import ExpertConfig

_LOG_2PI = math.log(2 * math.pi)


class Judged(NamedTuple):
    """Log-probability and entropy of what was done, each (T, B)."""

    logps: np.ndarray
    entropy: np.ndarray


class Actions:
    """The actions of one expert. `log_std` (A,) is a weight of it; choices have none."""

    def __init__(self, config: ExpertConfig) -> None:
        self.discrete = config.discrete_actions
        self.low, self.high = (
            np.broadcast_to(np.asarray(bound, np.float32), (config.outputs,))
            for bound in (config.action_low, config.action_high)
        )

    def sample(
        self, outputs: np.ndarray, log_std: np.ndarray | None, rng: np.random.Generator
    ) -> np.ndarray:
        """Draw `raw` from outputs (B, A)."""
        if log_std is None:
            chances = np.exp(_log_softmax(outputs)).cumsum(-1)
            drawn = rng.random((len(outputs), 1)) * chances[:, -1:]
            chosen: np.ndarray = np.minimum((drawn >= chances).sum(-1), outputs.shape[-1] - 1)
            return chosen
        noise = rng.standard_normal(outputs.shape).astype(outputs.dtype)
        found: np.ndarray = outputs + np.exp(log_std) * noise
        return found

    def greedy(self, outputs: np.ndarray) -> np.ndarray:
        """The likeliest choice, or the mean."""
        return outputs.argmax(-1) if self.discrete else outputs

    def of(self, raw: np.ndarray) -> np.ndarray:
        """What an environment is given."""
        if self.discrete:
            return raw
        found: np.ndarray = self.low + (self.high - self.low) * 0.5 * (np.tanh(raw) + 1)
        return found

    def judge(self, outputs: np.ndarray, log_std: np.ndarray | None, raw: np.ndarray) -> Judged:
        """Log-probabilities of `raw` under outputs (…, A), and entropies: of numbers that of the
        normal distribution before tanh, as the entropy after it has no closed form."""
        if log_std is None:
            logps = _log_softmax(outputs)
            taken = np.take_along_axis(logps, raw[..., None], -1)[..., 0]
            return Judged(taken, -(np.exp(logps) * logps).sum(-1))
        distance = (raw - outputs) / np.exp(log_std)
        normal = -0.5 * (distance * distance + _LOG_2PI) - log_std
        entropy = np.full(raw.shape[:-1], (log_std + 0.5 * (1 + _LOG_2PI)).sum(), outputs.dtype)
        return Judged((normal - self._squash(raw)).sum(-1), entropy)

    def slopes(
        self,
        outputs: np.ndarray,
        log_std: np.ndarray | None,
        raw: np.ndarray,
        rise: np.ndarray,
        entropy: float,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The gradient with respect to outputs and log_std of Σ rise·log p + entropy·Σ entropy;
        `rise` is (T, B)."""
        if log_std is None:
            logps = _log_softmax(outputs)
            chances = np.exp(logps)
            found = -chances * rise[..., None]
            taken = raw[..., None]
            np.put_along_axis(
                found, taken, np.take_along_axis(found, taken, -1) + rise[..., None], -1
            )
            if entropy:
                found -= entropy * chances * (logps - (chances * logps).sum(-1, keepdims=True))
            return found, None
        spread = np.exp(log_std)
        distance = (raw - outputs) / spread
        of_std = (rise[..., None] * (distance * distance - 1)).reshape(-1, len(log_std)).sum(0)
        return rise[..., None] * distance / spread, of_std + entropy * rise.size

    def _squash(self, raw: np.ndarray) -> np.ndarray:
        """log(1 − tanh²(u)) + log((high − low)/2), the first as 2·(log 2 − u − log(1 + e^−2u)),
        which does not round to log 0."""
        found: np.ndarray = 2 * (math.log(2) - raw - np.logaddexp(0, -2 * raw)) + np.log(
            (self.high - self.low) / 2
        )
        return found

    def judge_mlx(
        self, outputs: mx.array, log_std: mx.array | None, raw: mx.array
    ) -> tuple[mx.array, mx.array]:
        """`judge` in MLX."""
        if log_std is None:
            logps = nn.log_softmax(outputs)
            taken = mx.take_along_axis(logps, raw[..., None], -1)[..., 0]
            return taken, -(mx.exp(logps) * logps).sum(-1)
        distance = (raw - outputs) / mx.exp(log_std)
        normal = -0.5 * (distance * distance + _LOG_2PI) - log_std
        squash = 2 * (math.log(2) - raw - mx.logaddexp(mx.array(0.0), -2 * raw))
        squash = squash + mx.log((mx.array(self.high) - mx.array(self.low)) / 2)
        entropy = mx.broadcast_to((log_std + 0.5 * (1 + _LOG_2PI)).sum(), raw.shape[:-1])
        return (normal - squash).sum(-1), entropy


def _log_softmax(outputs: np.ndarray) -> np.ndarray:
    shifted = outputs - outputs.max(-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found
