"""The feed-forward part of a block, by activation: gated (two products, one of them through the
activation), the same with both products in one matrix (Phi-3), or plain (StarCoder2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.errors import ModelError

Activation = Callable[[mx.array], mx.array]

ACTIVATIONS: dict[str, Activation] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "gelu": nn.gelu,
    "gelu_python": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_fast": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "quick_gelu": nn.gelu_fast_approx,
    "relu": nn.relu,
    "relu2": nn.relu2,
    "mish": nn.mish,
    "sigmoid": mx.sigmoid,
    "tanh": mx.tanh,
}
"""By transformers' names (`ACT2FN`), as it computes them."""


def activation(name: str) -> Activation:
    """The function of a name. Raises ModelError for one that is not here."""
    if name not in ACTIVATIONS:
        raise ModelError(f"unknown activation `{name}`", f"chuk computes: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class GatedMLP(nn.Module):
    """down(act(gate(x)) · up(x))."""

    def __init__(self, act: Activation, hidden: int, inner: int, bias: bool) -> None:
        super().__init__()
        self._act = act
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        """(…, H) to (…, H)."""
        return cast(mx.array, self.down_proj(self._act(self.gate_proj(x)) * self.up_proj(x)))


class FusedGatedMLP(nn.Module):
    """The same with gate and up in one matrix, gate first."""

    def __init__(self, act: Activation, hidden: int, inner: int, bias: bool) -> None:
        super().__init__()
        self._act = act
        self.gate_up_proj = nn.Linear(hidden, 2 * inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        """(…, H) to (…, H)."""
        gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)
        return cast(mx.array, self.down_proj(self._act(gate) * up))


class PlainMLP(nn.Module):
    """c_proj(act(c_fc(x)))."""

    def __init__(self, act: Activation, hidden: int, inner: int, bias: bool) -> None:
        super().__init__()
        self._act = act
        self.c_fc = nn.Linear(hidden, inner, bias=bias)
        self.c_proj = nn.Linear(inner, hidden, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        """(…, H) to (…, H)."""
        return cast(mx.array, self.c_proj(self._act(self.c_fc(x))))


KINDS: dict[str, type[GatedMLP] | type[FusedGatedMLP] | type[PlainMLP]] = {
    "gated": GatedMLP,
    "fused_gated": FusedGatedMLP,
    "plain": PlainMLP,
}


def make_mlp(kind: str, act: str, hidden: int, inner: int, bias: bool) -> nn.Module:
    """The MLP of a block: `hidden` to `inner` and back. Raises ModelError for an unknown
    activation."""
    return KINDS[kind](activation(act), hidden, inner, bias)
