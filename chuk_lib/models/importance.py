"""How much each part of a model does on given text: layers, groups of heads, neurons of the MLPs.

- a layer: 1 − cos(input, output), the mean over tokens (Men et al. 2024, ShortGPT's block
influence)
- heads that share keys and values: the mean square of what they add to the residual stream, ‖W_o,h
x_h‖²
- a neuron: √(mean of its activation's square) · the length of its column in the down projection
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.models.probe import Rows, mean_loss
from chuk_lib.models.targets import block_prefix

See = Callable[[mx.array, mx.array], None]
DOWN = ("mlp.down_proj", "mlp.c_proj")
"""The projections from an MLP's neurons, by their path in a block."""


@dataclass(frozen=True)
class Importance:
    """The mean `loss` on the text (nats); `layers` (L,); `groups` (L, KV heads) and `neurons`
    (L, inner), None where a block has no such part."""

    loss: float
    layers: np.ndarray
    groups: np.ndarray | None
    neurons: np.ndarray | None


@contextmanager
def watched(modules: Sequence[tuple[nn.Module, See]]) -> Iterator[None]:
    """Inside, each call of a module shows its first input and its output."""
    own = [type(module) for module, _ in modules]
    try:
        for (module, see), plain in zip(modules, own, strict=True):
            module.__class__ = _telling(plain, see)
        yield
    finally:
        for (module, _), plain in zip(modules, own, strict=True):
            module.__class__ = plain


def _telling(plain: Any, see: See) -> Any:
    def call(self: Any, x: mx.array, *args: Any, **settings: Any) -> Any:
        output = plain.__call__(self, x, *args, **settings)
        see(x, output)
        return output

    return type(plain.__name__, (plain,), {"__call__": call, "__module__": plain.__module__})


def measure(model: nn.Module, rows: Rows, kv_heads: int, heads: int) -> Importance:
    """Run `rows` through the model and measure. `heads` query heads share `kv_heads` keys and
    values."""
    blocks = list(model.layers)
    paths = dict(model.named_modules())
    prefix = block_prefix(model)
    outs = [paths.get(f"{prefix}{index}.self_attn.o_proj") for index in range(len(blocks))]
    downs = [
        next((paths[p] for end in DOWN if (p := f"{prefix}{i}.{end}") in paths), None)
        for i in range(len(blocks))
    ]
    layers, groups, neurons = ([_Mean() for _ in blocks] for _ in range(3))
    seen = [(block, _influence(mean)) for block, mean in zip(blocks, layers, strict=True)]
    has_groups, has_neurons = None not in outs, None not in downs
    if has_groups:
        seen += [
            (out, _of_groups(mean, out, kv_heads, heads))
            for out, mean in zip(outs, groups, strict=True)
        ]
    if has_neurons:
        seen += [(down, _of_neurons(mean)) for down, mean in zip(downs, neurons, strict=True)]
    with watched(seen):
        loss = mean_loss(model, rows)
    return Importance(
        loss,
        np.array([1 - float(one.value()) for one in layers]),
        np.stack([one.value() for one in groups]) if has_groups else None,
        np.stack([_sizes(one, down) for one, down in zip(neurons, downs, strict=True)])
        if has_neurons
        else None,
    )


class _Mean:
    """A mean over tokens: `add` takes (T, …)."""

    def __init__(self) -> None:
        self.total: mx.array = mx.zeros(())
        self.count = 0

    def add(self, values: mx.array) -> None:
        self.total = self.total + values.sum(axis=0)
        mx.eval(self.total)  # else what it is computed from stays in memory
        self.count += values.shape[0]

    def value(self) -> np.ndarray:
        return np.array(self.total / self.count)


def _influence(mean: _Mean) -> See:
    def see(x: mx.array, output: mx.array) -> None:
        a, b = (part.astype(mx.float32).reshape(-1, part.shape[-1]) for part in (x, output))
        product = (a * b).sum(-1)
        mean.add(
            product / mx.maximum(mx.linalg.norm(a, axis=-1) * mx.linalg.norm(b, axis=-1), 1e-12)
        )

    return see


def _of_groups(mean: _Mean, out: Any, kv_heads: int, heads: int) -> See:
    weight = (
        out.weight.astype(mx.float32).reshape(out.weight.shape[0], heads, -1).transpose(1, 2, 0)
    )  # (H, D, hidden)
    gram = weight @ weight.swapaxes(1, 2)

    def see(x: mx.array, output: mx.array) -> None:
        own = (
            x.astype(mx.float32).reshape(-1, heads, x.shape[-1] // heads).swapaxes(0, 1)
        )  # (H, T, D)
        squares = ((own @ gram) * own).sum(-1)
        mean.add(squares.reshape(kv_heads, -1, squares.shape[-1]).sum(1).T)

    return see


def _of_neurons(mean: _Mean) -> See:
    return lambda x, output: mean.add(mx.square(x.astype(mx.float32)).reshape(-1, x.shape[-1]))


def _sizes(mean: _Mean, down: Any) -> np.ndarray:
    columns = mx.linalg.norm(down.weight.astype(mx.float32), axis=0)
    sizes: np.ndarray = np.sqrt(mean.value()) * np.array(columns)
    return sizes
