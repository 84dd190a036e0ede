"""Weights on their way between processes: NumPy arrays, which Ray's store shares without a copy.

What comes out of the store is read-only and is copied by MLX. NumPy has no bfloat16: such weights
travel as the integers that their bits are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from chuk_lib import __version__
from chuk_lib.training.identity import fingerprint_model

Weights = dict[str, tuple[str, np.ndarray]]
"""By name: MLX's type, and the bits."""
_BITS = {"bfloat16": mx.uint16}


def about(model: nn.Module, source: str) -> dict[str, str]:
    """What of a model that was loaded from `source` must be the same on both sides."""
    arrays = tree_flatten(model.trainable_parameters())
    return {
        "chuk": __version__,
        "model": fingerprint_model(source),
        "weights": ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in arrays),
    }


def from_model(model: nn.Module) -> Weights:
    """What is trained of a model."""
    return from_arrays(dict(tree_flatten(model.trainable_parameters())))


def from_arrays(arrays: Mapping[str, mx.array]) -> Weights:
    """MLX arrays by name, copied."""
    found = {}
    for name, array in arrays.items():
        kind = str(array.dtype).removeprefix("mlx.core.")
        bits = array.view(_BITS[kind]) if kind in _BITS else array
        found[name] = (kind, np.array(bits))
    return found


def to_arrays(weights: Weights) -> dict[str, mx.array]:
    """MLX arrays of their own memory."""
    found = {}
    for name, (kind, bits) in weights.items():
        array = mx.array(bits)
        found[name] = array.view(getattr(mx, kind)) if kind in _BITS else array
    return found


def into_model(model: nn.Module, weights: Weights) -> None:
    """Take the trained weights of another process."""
    arrays: list[tuple[str, Any]] = list(to_arrays(weights).items())
    model.update(tree_unflatten(arrays))
    mx.eval(model.parameters())


def size_of(model: nn.Module) -> int:
    """Bytes of what is trained."""
    return sum(leaf.nbytes for _, leaf in tree_flatten(model.trainable_parameters()))
