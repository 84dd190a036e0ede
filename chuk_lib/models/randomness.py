"""Randomness that stays where it belongs: MLX has one global generator, and steps own it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off for the length of a `with` block; afterwards the model is in the mode that it was
    in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Leave the global generator after the block as it was before, whatever is drawn inside."""
    state: Any = mx.random.state
    high, low = state[0].tolist()
    try:
        yield
    finally:
        mx.random.seed((high << 32) | low)


class _Draws:
    """The key that a dropout draws from while its block is run again; None: MLX's global
    generator."""

    def __init__(self) -> None:
        self.key: mx.array | None = None


class Dropout(nn.Module):
    """Dropout that can be told its key, so that a block run twice (see `recompute`) drops the same
    elements twice."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.draws = _Draws()

    @property
    def active(self) -> bool:
        """Whether it drops anything now."""
        return self.p > 0 and self.training

    def __call__(self, x: mx.array) -> mx.array:
        """Zero a share p of the elements and scale the rest by 1/(1-p); nothing in eval mode."""
        if not self.active:
            return x
        kept = mx.random.bernoulli(1 - self.p, x.shape, key=self.draws.key)
        return mx.where(kept, x * (1 / (1 - self.p)), mx.zeros_like(x))


def switch_dropout_off(model: nn.Module) -> None:
    """Make all of a model's dropout, MLX's and that of adapters, pass everything on, in training
    too."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
        elif isinstance(module, nn.Dropout):
            module._p_1 = 1.0  # the share that MLX's layer keeps


def drops(model: nn.Module) -> bool:
    """Whether a model as it stands, in training or not, drops anything: two runs of it differ."""
    ours = any(isinstance(module, Dropout) and module.active for module in model.modules())
    return ours or any(
        isinstance(module, nn.Dropout) and module._p_1 < 1 and module.training
        for module in model.modules()
    )


@contextmanager
def noisy(embedding: nn.Module, alpha: float) -> Iterator[None]:
    """Uniform noise on what an embedding gives, (B, T, H), for the length of a `with` block:
    between ±alpha / √(T·H) (NEFTune: Jain et al. 2023), from the global generator."""

    def make(vectors: mx.array) -> mx.array:
        bound = alpha / (vectors.shape[1] * vectors.shape[2]) ** 0.5
        return vectors + mx.random.uniform(-bound, bound, vectors.shape, vectors.dtype)

    with changed_output(embedding, make):
        yield


@contextmanager
def changed_output(layer: nn.Module, change: Callable[[mx.array], mx.array]) -> Iterator[None]:
    """`change` applied to all that a layer gives, for the length of a `with` block. Its parameters
    keep their names, and a tied embedding is as it was where it serves as the head."""
    kind: Any = type(layer)
    call = lambda self, *inputs: change(kind.__call__(self, *inputs))  # noqa: E731
    # Python looks `__call__` up on the class, not on the object.
    layer.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    try:
        yield
    finally:
        layer.__class__ = kind


def fresh_key() -> mx.array:
    """A new key from the global generator, shape (2,) uint32, usable inside compiled functions."""
    return mx.random.randint(0, 1 << 31, (2,), dtype=mx.uint32)
