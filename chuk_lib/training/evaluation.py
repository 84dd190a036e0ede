"""Measuring a model between steps: the loss on validation data, and a sample beside its target."""

from __future__ import annotations

import mlx.core as mx

from chuk_lib.training.algorithm import Algorithm
from chuk_lib.training.utils.gradient_utils import add_up, to_float
from chuk_lib.training.utils.over_ranks import summed


def evaluate_loss(algorithm: Algorithm, steps: int) -> dict[str, float]:
    """`eval_loss` and the algorithm's metrics as `eval_…` over all rows of its plan: sums divided
    once.

    The model should be in eval mode. Draws no random numbers.
    """
    sums: dict[str, float] = {}
    for step in range(steps):
        for update in algorithm.updates(step):
            for micro_batch in update.micro_batches:
                loss = algorithm.loss(algorithm.model, micro_batch)
                values = {"loss": loss.total, "weight": loss.weight, **loss.metrics}
                mx.eval(values)
                found = {name: to_float(value) for name, value in values.items()}
                add_up(sums, dict.fromkeys(found, 0.0) if update.idle else found)
    sums = summed(sums)
    weight = max(sums.pop("weight", 0.0), 1e-9)
    return {f"eval_{name}": value / weight for name, value in sums.items()}
