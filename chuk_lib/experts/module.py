"""The same networks in MLX: what a GPU learns with, and what the hand-written gradients are checked
against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from chuk_lib.experts.base import RNNExpertBase

Cell = Callable[[Any, mx.array, mx.array, mx.array], mx.array]


class ExpertModule(nn.Module):
    """An expert's weights as an MLX module, by the same names. `write_back` gives what was learned
    to the expert."""

    def __init__(self, expert: RNNExpertBase) -> None:
        super().__init__()
        self._expert = [expert]  # in a list: it is no part of the module's tree
        tree = tree_unflatten([(name, mx.array(value)) for name, value in expert.weights.items()])
        for name, value in tree.items():
            setattr(self, name, value)

    def __call__(
        self, seen: mx.array, state: mx.array, keep: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Policy head (T, B, A) and values (T, B) over `seen` (T, B, D) from `state` (B, S)."""
        expert = self._expert[0]
        x = _dense(self["encoder"], seen, state, keep)
        size = expert.memories * expert.config.hidden_dim
        for layer in range(expert.config.num_layers):
            x = CELLS[expert.kind](
                self["layers"][layer], x, state[:, layer * size : (layer + 1) * size], keep
            )
        values = (
            _linear(self["value"], x)[..., 0]
            if expert.config.use_value_head
            else mx.zeros(keep.shape)
        )
        return _linear(self["policy"], x), values

    def write_back(self) -> None:
        """Copy the weights into the expert."""
        self._expert[0].set_weights(
            {name: np.array(value) for name, value in tree_flatten(self.parameters())}
        )

    def read(self) -> None:
        """Take the expert's weights."""
        self.update(
            tree_unflatten(
                [(name, mx.array(value)) for name, value in self._expert[0].weights.items()]
            )
        )


def _linear(weights: Any, x: mx.array) -> mx.array:
    found: mx.array = x @ weights["weight"].T + weights["bias"]
    return found


def _dense(weights: Any, x: mx.array, state: mx.array, keep: mx.array) -> mx.array:
    return mx.tanh(_linear(weights, x))


def _gru(weights: Any, x: mx.array, state: mx.array, keep: mx.array) -> mx.array:
    given = x @ weights["Wx"].T + weights["b"]
    width, outputs, h = state.shape[1], [], state
    for t in range(len(x)):
        h = h * keep[t][:, None]
        recalled = h @ weights["Wh"].T
        gates = mx.sigmoid(given[t, :, : 2 * width] + recalled[:, : 2 * width])
        offer = recalled[:, 2 * width :] + weights["bhn"]
        new = mx.tanh(given[t, :, 2 * width :] + gates[:, :width] * offer)
        h = new + gates[:, width:] * (h - new)
        outputs.append(h)
    return mx.stack(outputs)


def _lstm(weights: Any, x: mx.array, state: mx.array, keep: mx.array) -> mx.array:
    given = x @ weights["Wx"].T + weights["bias"]
    width, outputs = state.shape[1] // 2, []
    h, c = state[:, :width], state[:, width:]
    for t in range(len(x)):
        forget = keep[t][:, None]
        gates = given[t] + (h * forget) @ weights["Wh"].T
        i, f, g, o = mx.split(gates, 4, axis=1)
        c = mx.sigmoid(f) * (c * forget) + mx.sigmoid(i) * mx.tanh(g)
        h = mx.sigmoid(o) * mx.tanh(c)
        outputs.append(h)
    return mx.stack(outputs)


CELLS: dict[str, Cell] = {"gru": _gru, "lstm": _lstm, "mlp": _dense}
