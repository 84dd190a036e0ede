"""Settings that nobody gave and that the size of the model decides.

TRL's learning rates for reinforcement learning are meant for billions of weights. Adam moves every
weight by about the rate, whatever the gradient's size, so what a step changes in a layer's output
grows with the layer's width: the rate for the same change falls with width, and width grows as the
square root of the number of weights (Yang et al. 2022, "Tensor Programs V"). At `USUAL_SIZE`
weights and beyond the usual rates stand; below, they grow by a power of how much smaller the model
is. docs/rewards.md shows what came of it."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

USUAL_SIZE = 10**9
"""Weights that the usual learning rates are meant for."""
SMALL = 10**7
"""Below this many weights a model is small: many rows at once cost it no memory to speak of."""


def scaled_rate(rate: float, weights: int, power: float) -> float:
    """A learning rate that is right for `USUAL_SIZE` weights, for a model of `weights`: two
    significant digits."""
    factor = max(1.0, USUAL_SIZE / max(weights, 1)) ** power
    return float(f"{rate * factor:.1e}") if factor > 1 else rate


def count_weights(model: nn.Module) -> int:
    """How many numbers the model was made of: what quantisation packs is counted one by one, its
    scales are not."""
    counted: dict[int, int] = {}
    for _, module in model.named_modules():
        packed = isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)
        for name, leaf in module.items():
            if (
                not isinstance(leaf, mx.array)
                or name.startswith("_")
                or (packed and name in ("scales", "biases"))
            ):
                continue
            counted[id(leaf)] = leaf.size * (
                32 // module.bits if packed and name == "weight" else 1
            )
    return sum(counted.values())


def size_origin(weights: int) -> str:
    """Where such a value comes from, in the words that `--dry-run`, `origins.json` and
    `config.yaml` show."""
    for factor, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if weights >= factor:
            scaled = weights / factor
            return f"auto: {scaled:.{0 if scaled >= 10 else 1}f} {letter} weights"
    return f"auto: {weights} weights"
