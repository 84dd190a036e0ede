"""Products of a Llama-like model's layers in MLX: layers that see the same input as one, adapters
beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from chuk_lib.inference.decoder.llama import Linear, LlamaParts, Packed
from chuk_lib.runtime.memory_use import device_memory

FUSED_SHARE = 0.05
"""Weights that see the same input are joined when the copies take at most this share of the
device's memory."""
_RANKS = 8

Weights = list[list[Any]]
"""For each product its weight (see `for_graph`), bias (or an empty list) and adapter (or an empty
list)."""


@dataclass(frozen=True)
class LowRank:
    """Adapters of layers that see the same input, side by side: `downs` (R, K), `scales` (R,)
    float32 and `ups` (all O, rank). R = layers · rank; rank is the largest of theirs, rounded up to
    a multiple of 8; what is absent is zero."""

    downs: mx.array
    scales: mx.array
    ups: mx.array

    def apart(self, widths: Sequence[int]) -> mx.array:
        """The second factors as one matrix (all O, R), of layers with so many outputs."""
        rank, rows, first = self.ups.shape[1], [], 0
        for index, width in enumerate(widths):
            edges = (index * rank, (len(widths) - 1 - index) * rank)
            rows.append(mx.pad(self.ups[first : first + width], [(0, 0), edges]))
            first += width
        return mx.concatenate(rows)


def low_rank(layers: Sequence[Linear]) -> LowRank | None:
    """The adapters of `layers` in the type of their weights; None when there are none."""
    adapters = [layer.adapter for layer in layers]
    ranks = [adapter[0].shape[1] for adapter in adapters if adapter is not None]
    if not ranks:
        return None
    # One rank for all, with zeros where an adapter has less: they add nothing, and the kernel reads
    # 8 numbers at a time.
    rank = -(-max(ranks) // _RANKS) * _RANKS
    downs, scales, ups = [], [], []
    for layer, adapter in zip(layers, adapters, strict=True):
        outputs, inputs = layer.weight.shape
        none = (mx.zeros((inputs, 0)), mx.zeros((0, outputs)), 0.0)
        down, up, scale = none if adapter is None else adapter
        room = [(0, 0), (0, rank - down.shape[1])]
        downs.append(mx.pad(down, room).T)
        ups.append(mx.pad(up.T, room))
        scales.append(mx.full((rank,), scale, mx.float32))
    kind = layers[0].weight.dtype
    joined = (mx.contiguous(mx.concatenate(parts).astype(kind)) for parts in (downs, ups))
    low = LowRank(next(joined), mx.concatenate(scales), next(joined))
    mx.eval(low.downs, low.scales, low.ups)
    return low


def multiply(x: mx.array, weights: Weights, plus: mx.array | None = None) -> mx.array:
    """`plus` and x (B, in) through all weights side by side, (B, out)."""
    outputs = []
    for weight, bias, adapter in weights:
        # MLX's kernel for one row takes no sum, the one that does is slower.
        if plus is None or len(x) == 1 or isinstance(weight, list):
            output = _product(x, weight)
            output = output if plus is None else output + plus
        else:
            output = mx.addmm(plus, x, weight.T)
        output = output + bias if isinstance(bias, mx.array) else output
        if adapter:
            down, up, scale = adapter
            output = output + (((x @ down) @ up) * scale).astype(x.dtype)
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=-1)


def _product(x: mx.array, weight: Any) -> mx.array:
    if not isinstance(weight, list):
        output: mx.array = x @ weight.T
        return output
    codes, scales, biases, group_size, bits, mode = weight
    some = biases if isinstance(biases, mx.array) else None
    return mx.quantized_matmul(x, codes, scales, some, True, group_size, bits, mode)


def look_up(embedding: Any, tokens: mx.array) -> mx.array:
    """The rows (B, H) of tokens (B,) in an embedding that `for_graph` returned."""
    if not isinstance(embedding, list):
        hidden: mx.array = embedding[tokens]
        return hidden
    codes, scales, biases, group_size, bits, mode = embedding
    some = biases[tokens] if isinstance(biases, mx.array) else None
    return mx.dequantize(codes[tokens], scales[tokens], some, group_size, bits, mode)


def for_graph(weight: mx.array | Packed) -> Any:
    """A weight as a compiled function takes it: an array, or a list of a packed one's arrays and
    constants."""
    if not isinstance(weight, Packed):
        return weight
    biases: Any = [] if weight.biases is None else weight.biases
    return [weight.codes, weight.scales, biases, *weight.form]


def weights_of(layers: Sequence[Linear], join: bool, adapted: bool = True) -> Weights:
    """What `multiply` needs of layers that see the same input; `join` copies their weights into
    one. `adapted`: with their adapters."""
    if join and len(layers) > 1 and len({_form(layer) for layer in layers}) == 1:
        biases = [layer.bias for layer in layers if layer.bias is not None]
        weight = _joined([for_graph(layer.weight) for layer in layers])
        mx.eval(weight)
        return [[weight, mx.concatenate(biases) if biases else [], []]]
    return [
        [
            for_graph(layer.weight),
            [] if layer.bias is None else layer.bias,
            _adapter(layer) if adapted else [],
        ]
        for layer in layers
    ]


def _form(layer: Linear) -> Any:
    return layer.weight.form if isinstance(layer.weight, Packed) else None


def _joined(weights: Sequence[Any]) -> Any:
    """Weights of one form, one below the other."""
    if not isinstance(weights[0], list):
        return mx.concatenate(list(weights))
    return [
        mx.concatenate(list(parts)) if isinstance(parts[0], mx.array) else parts[0]
        for parts in zip(*weights, strict=True)
    ]


def may_join(parts: LlamaParts, adapted: bool = False) -> bool:
    """Whether layers that see the same input can be one product: no adapters (unless `adapted`
    layers may be), biases on all of them or none, and room for the copies."""
    joined = [
        layer
        for block in parts.blocks
        for layer in (block.q, block.k, block.v, block.gate, block.up)
    ]
    if not adapted and any(layer.adapter is not None for layer in joined):
        return False
    if any(
        (b.q.bias is None) != (b.v.bias is None) or (b.q.bias is None) != (b.k.bias is None)
        for b in parts.blocks
    ):
        return False
    return sum(layer.weight.nbytes for layer in joined) <= FUSED_SHARE * device_memory().total


def _adapter(layer: Linear) -> list[Any]:
    if layer.adapter is None:
        return []
    down, up, scale = layer.adapter
    kind = layer.weight.dtype
    return [down.astype(kind), up.astype(kind), mx.array(scale, kind)]
