"""Sums, norms and clipping of gradient trees. All of them see every leaf, also those inside lists
of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

Number = TypeVar("Number", int, float)


def to_float(scalar: mx.array) -> float:
    """A scalar array as a Python number; waits for it."""
    return float(np.asarray(scalar.astype(mx.float32)))


def add_up(totals: dict[str, Number], values: Mapping[str, Number]) -> None:
    """Add numbers to running totals, name by name."""
    for name, value in values.items():
        totals[name] = totals.get(name, 0) + value


def add_gradients(total: Any, gradients: Any) -> Any:
    """Leaf-wise sum in float32; `total` may be None."""
    if total is None:
        return tree_map(lambda g: g.astype(mx.float32), gradients)
    return tree_map(lambda a, b: a + b.astype(mx.float32), total, gradients)


def global_norm(gradients: Any) -> mx.array:
    """L2 norm over all leaves, a float32 scalar."""
    squares = [mx.square(leaf.astype(mx.float32)).sum() for _, leaf in tree_flatten(gradients)]
    return mx.sqrt(mx.stack(squares).sum())


def clip_factor(norm: float, max_norm: float) -> float:
    """What gradients are multiplied by: max_norm / (norm + 1e-6) when norm > max_norm, else 1; a
    max_norm of 0 never clips. As `torch.nn.utils.clip_grad_norm_`."""
    return 1.0 if max_norm <= 0 or norm <= max_norm else max_norm / (norm + 1e-6)
