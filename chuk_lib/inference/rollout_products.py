"""Products of a Llama-like model's layers in MLX: layers that see the same input as one, adapters beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from chuk_lib.inference.rollout_llama import Linear, LlamaParts

FUSED_SHARE = 0.05
"""Weights that see the same input are joined when the copies take at most this share of the device's memory."""

Weights = list[list[Any]]
"""For each product its weight, bias (or an empty list) and adapter (or an empty list)."""


def multiply(x: mx.array, weights: Weights, plus: mx.array | None = None) -> mx.array:
    """`plus` and x (B, in) through all weights side by side, (B, out)."""
    outputs = []
    for weight, bias, adapter in weights:
        if plus is None or len(x) == 1:  # MLX's kernel for one row takes no sum, the one that does is slower
            output = x @ weight.T
            output = output if plus is None else output + plus
        else:
            output = mx.addmm(plus, x, weight.T)
        output = output + bias if isinstance(bias, mx.array) else output
        if adapter:
            down, up, scale = adapter
            output = output + (((x @ down) @ up) * scale).astype(x.dtype)
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=-1)


def weights_of(layers: Sequence[Linear], join: bool) -> Weights:
    """What `multiply` needs of layers that see the same input; `join` copies their weights into one."""
    if join and len(layers) > 1:
        biases = [layer.bias for layer in layers if layer.bias is not None]
        weight = mx.concatenate([layer.weight for layer in layers])
        mx.eval(weight)
        return [[weight, mx.concatenate(biases) if biases else [], []]]
    return [[layer.weight, [] if layer.bias is None else layer.bias, _adapter(layer)] for layer in layers]


def may_join(parts: LlamaParts) -> bool:
    """Whether layers that see the same input can be one product: no adapters, biases on all of them or none, and room
    for the copies."""
    joined = [layer for block in parts.blocks for layer in (block.q, block.k, block.v, block.gate, block.up)]
    if any(layer.adapter is not None for layer in joined):
        return False
    if any((b.q.bias is None) != (b.v.bias is None) or (b.q.bias is None) != (b.k.bias is None) for b in parts.blocks):
        return False
    memory = mx.device_info(mx.default_device()).get("memory_size", 0)
    return isinstance(memory, int) and sum(layer.weight.nbytes for layer in joined) <= FUSED_SHARE * memory


def _adapter(layer: Linear) -> list[Any]:
    if layer.adapter is None:
        return []
    down, up, scale = layer.adapter
    kind = layer.weight.dtype
    return [down.astype(kind), up.astype(kind), mx.array(scale, kind)]
