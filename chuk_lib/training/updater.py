"""One update: gradients summed over micro-batches, divided once by the weight of them all, checked,
clipped, applied.

A gradient that is not finite stops the run before it touches a weight.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from chuk_lib.errors import TrainingError
from chuk_lib.training.algorithm import Algorithm, Arrays, Update
from chuk_lib.training.optimizers import ChukOptimizer
from chuk_lib.training.utils.gradient_utils import (
    add_gradients,
    add_up,
    clip_factor,
    global_norm,
    to_float,
)
from chuk_lib.training.utils.over_ranks import summed_update

_SAME_WEIGHT = 1e-3
"""How far, relatively, the losses of an update may weigh something else than it said: float32 sums
of many tokens."""


class Learner(ABC):
    """Takes the place of `Updater` and optimizer where MLX would be too slow: gradients and rule
    are its own."""

    @property
    @abstractmethod
    def state(self) -> Any:
        """What a checkpoint keeps: a tree of MLX arrays."""

    @abstractmethod
    def restore(self, arrays: dict[str, mx.array]) -> None:
        """Go on from the arrays of a saved `state`, by path. Raises ModelError when they do not
        fit."""

    @abstractmethod
    def __call__(self, update: Update, learning_rate: float) -> dict[str, float]:
        """Apply one update, whole or not at all; returns and raises what `Updater` does."""


class Updater:
    """Applies updates: gradients over micro-batches, one division, a check, clipping, the
    optimizer."""

    def __init__(
        self,
        algorithm: Algorithm,
        optimizer: ChukOptimizer,
        max_grad_norm: float,
        compiled: bool = False,
        reserve: Callable[[Arrays], None] = lambda micro_batch: None,
    ) -> None:
        self._algorithm = algorithm
        self._reserve = reserve
        self._optimizer = optimizer
        self._max_grad_norm = max_grad_norm
        self._gradients: Callable[..., Any] = nn.value_and_grad(algorithm.model, self._scaled_loss)
        self._apply: Callable[..., Any] = self._update_model
        if compiled:
            model, draws = algorithm.model.state, mx.random.state
            # Weights and the random state are inputs of the compiled graph: captured as constants
            # they would be those of the first step for ever.
            inside = [model, draws]  # the model is an output too: tracing leaves placeholders in it
            self._gradients = mx.compile(self._gradients, inputs=inside, outputs=inside)
            both = [model, optimizer.state]
            self._apply = mx.compile(self._update_model, inputs=both, outputs=both)

    def __call__(self, update: Update, learning_rate: float) -> dict[str, float]:
        """Run one update; returns sums `total`, `weight` and metric sums, and `grad_norm` before
        clipping.

        Raises FloatingPointError, weights untouched, when the loss or the gradient is not finite;
        TrainingError for an update that weighs nothing, or something else than its losses do."""
        # Pieces of cut documents can leave a window with nothing to learn.
        if not update.micro_batches:
            return {"total": 0.0, "weight": 0.0}
        if not update.weight > 0:
            raise TrainingError(
                f"an update of {len(update.micro_batches)} micro-batches weighs {update.weight:g}",
                "`Update.weight` is the sum of its losses' weights, above 0; leave its"
                " micro-batches out otherwise",
            )
        gradients, sums = summed_update(*self._accumulate(update), update.idle)
        norm = to_float(global_norm(gradients))
        if not math.isfinite(norm) or not math.isfinite(sums["total"]):
            raise FloatingPointError(
                f"loss {sums['total'] / update.weight:.4g}, gradient norm {norm:.4g}"
            )
        # An algorithm that says a wrong weight would train at a wrong rate in silence.
        if not math.isclose(sums["weight"], update.weight, rel_tol=_SAME_WEIGHT):
            raise TrainingError(
                f"the update weighs {update.weight:g}, but its losses weigh {sums['weight']:g}"
                " together",
                "`Update.weight` is what gradients are divided by: the sum of `Loss.weight` over"
                " its micro-batches",
            )
        # None and a factor are two graphs: without clipping the gradients are not multiplied, so
        # that they are the same numbers with max_grad_norm off and far away.
        factor = clip_factor(norm, self._max_grad_norm)
        self._change(gradients, learning_rate, None if factor == 1 else mx.array(factor))
        return sums | {"grad_norm": norm}

    def rehearse(self, update: Update) -> None:
        """Compute all that an update may compute, whatever comes out: with clipping, and
        without."""
        if update.micro_batches:
            gradients, _ = self._accumulate(update)
            mx.eval(global_norm(gradients))
            for factor in (mx.array(1.0), None):
                self._change(gradients, 0.0, factor)

    def _change(self, gradients: Any, learning_rate: float, factor: mx.array | None) -> None:
        self._apply(gradients, mx.array(learning_rate, mx.float32), factor)
        mx.eval(self._algorithm.model.trainable_parameters(), self._optimizer.state)

    def _update_model(
        self, gradients: Any, learning_rate: mx.array, factor: mx.array | None
    ) -> None:
        if factor is not None:
            gradients = tree_map(lambda leaf: leaf * factor.astype(leaf.dtype), gradients)
        self._optimizer.update(self._algorithm.model, gradients, learning_rate)

    def _accumulate(self, update: Update) -> tuple[Any, dict[str, float]]:
        # The loss is scaled before differentiation, not the gradients after: float16 gradients of a
        # summed loss would overflow. The weight of all micro-batches is known before the first
        # (sums of token counts), so accumulation gives the gradient of the whole batch, however it
        # is cut.
        scale = mx.array(1.0 / update.weight, mx.float32)
        gradients: Any = None
        sums: dict[str, float] = {}
        for micro_batch in update.micro_batches:
            self._reserve(micro_batch)
            (_, values), part = self._gradients(micro_batch, scale)
            gradients = add_gradients(gradients, part) if len(update.micro_batches) > 1 else part
            del part  # or it would live beside the next micro-batch's
            mx.eval(gradients, values)
            add_up(sums, {name: to_float(value) for name, value in values.items()})
        return gradients, sums

    def _scaled_loss(
        self, micro_batch: Arrays, scale: mx.array
    ) -> tuple[mx.array, dict[str, mx.array]]:
        loss = self._algorithm.loss(self._algorithm.model, micro_batch)
        return loss.total * scale, {"total": loss.total, "weight": loss.weight, **loss.metrics}
