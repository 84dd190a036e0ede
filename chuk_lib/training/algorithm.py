"""The types every trainer is made of. Read this first.

Shape letters: B rows, T tokens, C completion tokens, V vocabulary, G group. A *step* is one step of
the plan; it makes one or more *updates* (optimizer applications); an update is made of
*micro-batches*, what is run at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

Arrays = dict[str, mx.array]
"""A micro-batch on the device: what a loss reads."""


class Loss(NamedTuple):
    """A sum and its weight, so that micro-batches of unequal size add up exactly; the loss is total
    / weight.

    `metrics` are sums over the same weight: the engine divides each by the summed weight. All
    scalars, float32."""

    total: mx.array
    weight: mx.array
    metrics: dict[str, mx.array]


class Update(NamedTuple):
    """The micro-batches of one optimizer application, the sum of their loss weights (known before
    any is run, so that gradients are divided by it once; above 0, and the engine compares it with
    what the losses weigh), and counts to report (tokens, rows …), which are added up.

    Where several processes train together the micro-batches hold this one's rows; weight and counts
    are those of all. `idle`: it has no rows, and what it computes counts nothing."""

    micro_batches: list[Arrays]
    weight: float
    counts: dict[str, int]
    idle: bool = False


@dataclass(frozen=True)
class Report:
    """What a finished step has to tell beside its losses.

    `metrics` are averaged over the steps of a log record (a metric that a step does not have is
    left out of the mean; NaN counts as not there). `completions` go to `completions.jsonl`, a line
    each; the first `shown` of them go into the log too, for whoever watches. `warnings` are told
    once each."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    completions: Sequence[Mapping[str, Any]] = ()
    shown: int = 8
    warnings: Sequence[str] = ()


class Memory(NamedTuple):
    """What an algorithm keeps between steps beside the trained weights; a checkpoint holds it:
    `arrays` by name, and `values`, plain data."""

    arrays: dict[str, mx.array]
    values: dict[str, Any]


class Algorithm(ABC):
    """What differs between SFT, DPO, GRPO and PPO: where updates come from, and the loss.

    `updates` and `loss` are pure functions of (step, seed, weights, memory): that is what makes
    resuming exact. MLX's global random state is seeded from (seed, step) before `updates` is asked.
    """

    model: nn.Module
    """What is differentiated and updated."""

    @abstractmethod
    def updates(self, step: int) -> Iterable[Update]:
        """The optimizer updates of one step (0-based). What is yielded is applied before the next
        is asked for."""

    @abstractmethod
    def loss(self, model: nn.Module, micro_batch: Arrays) -> Loss:
        """Same model and micro-batch, same loss. On a GPU it is compiled: no values of arrays may
        be read."""

    @abstractmethod
    def where(self, step: int) -> str:
        """Which rows a step trains on, for the message when its loss is not finite."""

    def finish(self, step: int) -> Report:
        """Called when all updates of a step (0-based) are applied."""
        return Report()

    def memory(self) -> Memory:
        """What must be in a checkpoint beside weights and moments."""
        return Memory({}, {})

    def recall(self, memory: Memory) -> None:  # noqa: B027 (most have nothing to recall)
        """Take back what `memory` gave. Called before the first step of a resumed run."""
