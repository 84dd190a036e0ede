"""The types every trainer is made of. Read this first.

Shape letters: B rows, T tokens, V vocabulary, G group. A *step* is one step of the plan; it makes one or more
*updates* (optimizer applications); an update is made of *micro-batches*, what is run at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn

Arrays = dict[str, mx.array]
"""A micro-batch on the device: what a loss reads."""


class Loss(NamedTuple):
    """A sum and its weight, so that micro-batches of unequal size add up exactly; the loss is total / weight.

    `metrics` are sums over the same weight: the engine divides each by the summed weight. All scalars, float32.
    """

    total: mx.array
    weight: mx.array
    metrics: dict[str, mx.array]


class Update(NamedTuple):
    """The micro-batches of one optimizer application, the sum of their loss weights (known before any is run, so
    that gradients are scaled once), and counts to report (tokens, rows …), which are added up."""

    micro_batches: list[Arrays]
    weight: float
    counts: dict[str, int]


class Algorithm(Protocol):
    """What differs between SFT, DPO, GRPO and PPO: where updates come from, and the loss.

    Both methods are pure functions of (step, seed, weights): that is what makes resuming exact.
    """

    model: nn.Module

    def updates(self, step: int) -> Iterable[Update]:
        """The optimizer updates of one step (0-based)."""

    def loss(self, model: nn.Module, micro_batch: Arrays) -> Loss:
        """Same model and micro-batch, same loss."""

    def where(self, step: int) -> str:
        """Which rows a step trains on, for the message when its loss is not finite."""


class Evaluator(Protocol):
    """Measures the model between steps; returns metrics such as `eval_loss`, and maybe samples."""

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """Metrics by name."""
