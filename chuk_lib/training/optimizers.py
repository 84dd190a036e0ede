"""Optimizers: MLX's own, set up as PyTorch and TRL run them.

MLX's Adam family leaves out bias correction by default and its AdamW decays norms and biases; here
bias correction is on and weight decay is decoupled (Loshchilov & Hutter 2019), on weights that are
neither norms nor biases."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map_with_path

from chuk_lib.errors import ModelError
from chuk_lib.training.config import RunConfig
from chuk_lib.training.optimizer_kinds import OPTIMIZERS
from chuk_lib.training.tables import pick


class ChukOptimizer:
    """An MLX optimizer plus decoupled weight decay on the right weights. `state` is what a
    checkpoint keeps."""

    def __init__(self, base: optim.Optimizer, weight_decay: float, decayed: frozenset[str]) -> None:
        self._base = base
        self._weight_decay = weight_decay
        self.decayed = decayed

    @property
    def state(self) -> Any:
        """The optimizer's moments and counters, a tree of arrays."""
        return self._base.state

    def restore(self, arrays: dict[str, mx.array]) -> None:
        """Continue from the arrays of a saved `state` by path, as `tree_flatten` names them. Call
        `init` first.

        Raises ModelError when they belong to other parameters or another optimizer.
        """
        own = dict(tree_flatten(self._base.state))
        if set(own) != set(arrays):
            name = sorted(set(own) ^ set(arrays))[0]
            raise ModelError(
                f"the saved optimizer state does not fit: `{name}` is in only one of the two"
            )
        self._base.state = tree_map_with_path(lambda path, _: arrays[path], self._base.state)
        for part in getattr(self._base, "optimizers", [self._base]):
            part._initialized = True  # MLX would otherwise zero the moments at the first update

    def init(self, model: nn.Module) -> None:
        """Allocate the state for all trainable parameters."""
        self._base.init(model.trainable_parameters())

    def update(self, model: nn.Module, gradients: Any, learning_rate: mx.array) -> None:
        """One update: p ← p·(1 − lr·decay) where decayed, then the optimizer's own rule. Lazy:
        evaluates nothing."""
        self._base.learning_rate = learning_rate
        if self._weight_decay:
            keep = 1.0 - learning_rate * self._weight_decay

            def decay(path: str, value: mx.array) -> mx.array:
                return value * keep.astype(value.dtype) if path in self.decayed else value

            model.update(tree_map_with_path(decay, model.trainable_parameters()))
        model.update(self._base.apply_gradients(gradients, model.trainable_parameters()))


def decayed_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the trainable parameters that weight decay touches: all but biases and the weights
    of norms."""
    norms = {
        name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()
    }
    names = (name for name, _ in tree_flatten(model.trainable_parameters()))
    return frozenset(
        n for n in names if not n.endswith("bias") and n.rpartition(".")[0] not in norms
    )


def build_optimizer(config: RunConfig, model: nn.Module) -> ChukOptimizer:
    """The optimizer of a run, state allocated. Raises ConfigError for one that does not exist."""
    kind = pick(OPTIMIZERS, config.optimizer, "optimizer")
    optimizer = ChukOptimizer(kind.make(config), config.weight_decay, decayed_parameters(model))
    optimizer.init(model)
    return optimizer
