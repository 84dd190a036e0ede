"""The products of an output head: from hidden states to logits, and gradients back.

Logits are float32 also of a bfloat16 head: products of bfloat16 numbers are exact there, while a
bfloat16 product rounds logits of 20 to the next eighth. Gradients with respect to rows and weights
stay in the head's type.

A plain weight is the usual case and the fastest. Everything else that makes logits of hidden states
(a quantized head, one with a bias or with adapters) is called as the layer it is, and
differentiated by MLX, a tile at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from chuk_lib import runtime


class HeadProduct(Protocol):
    """What the tiles need of a head. Shapes: rows (N, H), logits and slope (N, V)."""

    vocabulary: int
    linear: bool
    """Whether logits are linear in the rows: no bias."""

    @property
    def trained(self) -> tuple[mx.array, ...]:
        """The arrays that get a gradient."""

    def logits(self, rows: mx.array, trained: Sequence[mx.array]) -> mx.array:
        """The product in float32, with these trained arrays in place (none: as the head is)."""

    def to_rows(self, slope: mx.array, rows: mx.array) -> mx.array:
        """The gradient with respect to the rows of a frozen head."""

    def pull(
        self, slope: mx.array, rows: mx.array, trained: Sequence[mx.array]
    ) -> tuple[mx.array, ...]:
        """The gradients with respect to the rows and to each trained array."""


class WeightProduct:
    """A weight (V, H) and nothing else: a linear layer without bias, or the tied embedding."""

    linear = True

    def __init__(self, weight: mx.array, is_trained: bool) -> None:
        self._weight = weight
        self._wide: mx.array | None = None  # the same in float32, made once for all tiles
        self.trained: tuple[mx.array, ...] = (weight,) if is_trained else ()
        self.vocabulary = weight.shape[0]

    def logits(self, rows: mx.array, trained: Sequence[mx.array]) -> mx.array:
        """rows · Wᵀ, the rows first rounded to the weight's type."""
        # Rounding first makes this the same product on every path: with the weight widened once, in
        # parts, or as a gradient's argument.
        rows = rows.astype(self._weight.dtype).astype(mx.float32)
        if trained:
            return rows @ trained[0].astype(mx.float32).T
        if self._weight.dtype != mx.float32 and not runtime.keeps_wide_head(4 * self._weight.size):
            return self._in_parts(rows)
        self._wide = self._weight.astype(mx.float32) if self._wide is None else self._wide
        return rows @ self._wide.T

    def _in_parts(self, rows: mx.array) -> mx.array:
        """The product over the vocabulary part by part, so that the weight in float32 never exists
        whole; each part waits for the one before. A part is a quarter of a tile: a few exist at a
        time."""
        size = max(1, runtime.tile_bytes() // (16 * self._weight.shape[1]))
        made: list[mx.array] = []
        for begin in range(0, self.vocabulary, size):
            part = self._weight[begin : begin + size]
            part = mx.depends([part], made[-1:])[0] if made else part
            made.append(rows @ part.astype(mx.float32).T)
        return mx.concatenate(made, axis=1)

    def to_rows(self, slope: mx.array, rows: mx.array) -> mx.array:
        """slope · W."""
        return slope.astype(self._weight.dtype) @ self._weight

    def pull(
        self, slope: mx.array, rows: mx.array, trained: Sequence[mx.array]
    ) -> tuple[mx.array, ...]:
        """slope · W, slopeᵀ · rows."""
        (weight,) = trained
        # Gradients in the head's own type, as autocast's backward has them: what is rounded is the
        # slope (between -1 and 1), never the logits.
        slope = slope.astype(weight.dtype)
        return slope @ weight, slope.T @ rows.astype(weight.dtype)


class LayerProduct:
    """Any layer: quantized, biased, adapted."""

    def __init__(self, layer: nn.Module, tied: bool, vocabulary: int) -> None:
        self._layer = layer
        self._tied = tied
        self.vocabulary = vocabulary
        self.linear = not any(
            name.rpartition(".")[2] == "bias" for name, _ in tree_flatten(layer.parameters())
        )
        found = tree_flatten(layer.trainable_parameters())
        self._names = [name for name, _ in found]
        self.trained: tuple[mx.array, ...] = tuple(array for _, array in found)

    def logits(self, rows: mx.array, trained: Sequence[mx.array]) -> mx.array:
        """What the layer makes of the rows in float32: MLX widens its arrays to their type."""
        return self._with(trained, rows.astype(mx.float32))

    def to_rows(self, slope: mx.array, rows: mx.array) -> mx.array:
        """By MLX's differentiation."""
        return self.pull(slope, rows, ())[0]

    def pull(
        self, slope: mx.array, rows: mx.array, trained: Sequence[mx.array]
    ) -> tuple[mx.array, ...]:
        """By MLX's differentiation."""
        logits, gradients = mx.vjp(
            lambda inputs, *arrays: self._with(arrays, inputs),
            [rows, *trained],
            [slope.astype(self._type(rows))],
        )
        del logits
        return tuple(gradients)

    def _type(self, rows: mx.array) -> mx.Dtype:
        return self._call(rows[:1]).dtype

    def _with(self, trained: Sequence[mx.array], rows: mx.array) -> mx.array:
        """The layer's own product, in its own type, with these trained arrays in place."""
        layer: Any = self._layer
        if not trained:
            return self._call(rows)
        # The layer's arrays are swapped for the arguments of the function being differentiated: MLX
        # traces through them. They are put back whatever happens, or a tracer would stay in the
        # model.
        before = layer.trainable_parameters()
        layer.update(tree_unflatten(list(zip(self._names, trained, strict=True))))
        try:
            return self._call(rows)
        finally:
            layer.update(before)

    def _call(self, rows: mx.array) -> mx.array:
        layer: Any = self._layer
        made: mx.array = layer.as_linear(rows) if self._tied else layer(rows)
        return made
