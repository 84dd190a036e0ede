"""The optimizers by name: how each is made, and which settings it reads. Imports nothing heavy
until one is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.optimizers as optim

    from chuk_lib.training.config import RunConfig


@dataclass(frozen=True)
class OptimizerKind:
    """`make` gives the optimizer at learning rate 0 and without weight decay: both are the
    engine's."""

    make: Callable[[RunConfig], optim.Optimizer]
    reads: tuple[str, ...]


def _adam(config: RunConfig) -> optim.Optimizer:
    import mlx.optimizers as optim

    betas = [config.adam_beta1, config.adam_beta2]
    return optim.Adam(learning_rate=0.0, betas=betas, eps=config.adam_epsilon, bias_correction=True)


def _sgd(config: RunConfig) -> optim.Optimizer:
    import mlx.optimizers as optim

    return optim.SGD(learning_rate=0.0, momentum=config.momentum)


def _lion(config: RunConfig) -> optim.Optimizer:
    import mlx.optimizers as optim

    return optim.Lion(learning_rate=0.0, betas=[config.adam_beta1, config.adam_beta2])


def _adafactor(config: RunConfig) -> optim.Optimizer:
    import mlx.optimizers as optim

    return optim.Adafactor(learning_rate=0.0, scale_parameter=False, relative_step=False)


def _muon(config: RunConfig) -> optim.Optimizer:
    import mlx.optimizers as optim

    muon = optim.Muon(learning_rate=0.0, momentum=config.momentum or 0.95, weight_decay=0.0)
    return optim.MultiOptimizer([muon, _adam(config)], [_is_hidden_matrix])


def _is_hidden_matrix(path: str, value: mx.array) -> bool:
    """Muon's weights (Jordan 2024): matrices inside the blocks; embeddings, head, norms and biases
    go to Adam."""
    outside = any(part in path for part in ("embed", "lm_head", "wte", "wpe"))
    return value.ndim >= 2 and not outside


_BETAS = ("adam_beta1", "adam_beta2")
OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind(_adam, (*_BETAS, "adam_epsilon", "weight_decay")),
    "adam": OptimizerKind(_adam, (*_BETAS, "adam_epsilon")),
    "sgd": OptimizerKind(_sgd, ("momentum", "weight_decay")),
    "lion": OptimizerKind(_lion, (*_BETAS, "weight_decay")),
    "adafactor": OptimizerKind(_adafactor, ("weight_decay",)),
    "muon": OptimizerKind(_muon, ("momentum", *_BETAS, "adam_epsilon", "weight_decay")),
}
"""Every value of `optimizer`."""
APPLYING = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "min_lr_rate",
    "optimizer",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "momentum",
    "max_grad_norm",
)
"""Settings of how gradients are applied."""
