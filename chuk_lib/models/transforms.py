"""What a model family does to its raw logits, with the derivative that a hand-written backward pass
needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np


class LogitTransform(Protocol):
    """An elementwise map of logits, for MLX and NumPy alike."""

    def __call__(self, logits: mx.array) -> mx.array:
        """The transformed logits."""

    def in_place(self, logits: np.ndarray) -> None:
        """Transform a NumPy array where it stands."""

    def slope(self, transformed: Any) -> Any:
        """The derivative, from the transformed logits (MLX or NumPy)."""


@dataclass(frozen=True)
class SoftCap:
    """Gemma's cap·tanh(x/cap)."""

    cap: float

    def __call__(self, logits: mx.array) -> mx.array:
        return mx.tanh(logits / self.cap) * self.cap

    def in_place(self, logits: np.ndarray) -> None:
        """Transform a NumPy array where it stands."""
        logits /= self.cap
        np.tanh(logits, out=logits)
        logits *= self.cap

    def slope(self, transformed: Any) -> Any:
        """1 − (y/cap)²."""
        ratio = transformed / self.cap
        return 1 - ratio * ratio


@dataclass(frozen=True)
class Scale:
    """Cohere's logit_scale·x and Granite's x/logits_scaling."""

    factor: float

    def __call__(self, logits: mx.array) -> mx.array:
        return logits * self.factor

    def in_place(self, logits: np.ndarray) -> None:
        """Transform a NumPy array where it stands."""
        logits *= self.factor

    def slope(self, transformed: Any) -> Any:
        """The factor."""
        return self.factor


def logit_transform(args: Any) -> LogitTransform | None:
    """The transform that a model's arguments ask for, None when its logits are the head's
    product."""
    if getattr(args, "final_logit_softcapping", None):
        return SoftCap(args.final_logit_softcapping)
    if getattr(args, "logit_scale", None):
        return Scale(args.logit_scale)
    if getattr(args, "logits_scaling", None):
        return Scale(1.0 / args.logits_scaling)
    return None


@dataclass(frozen=True)
class Tempered:
    """Another transform's logits divided by a temperature."""

    inner: LogitTransform
    temperature: float

    def __call__(self, logits: mx.array) -> mx.array:
        return self.inner(logits) / self.temperature

    def in_place(self, logits: np.ndarray) -> None:
        """Transform a NumPy array where it stands."""
        self.inner.in_place(logits)
        logits /= self.temperature

    def slope(self, transformed: Any) -> Any:
        """The inner slope over the temperature."""
        return self.inner.slope(transformed * self.temperature) / self.temperature


def tempered(transform: LogitTransform | None, temperature: float) -> LogitTransform | None:
    """A transform followed by a division by the temperature; at temperature 1 the transform
    itself."""
    if temperature == 1:
        return transform
    return Scale(1 / temperature) if transform is None else Tempered(transform, temperature)
