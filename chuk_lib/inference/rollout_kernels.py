"""A whole step of a Llama-like model as one compiled function over the kernels of `rollout_cuda`, on an NVIDIA GPU.

Up to 64 rows every product is a kernel too; above, or with adapters, MLX multiplies. The store's buffers are written in
place by the attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.inference import rollout_cuda as cuda
from chuk_lib.inference.rollout_llama import Block, Linear, LlamaParts
from chuk_lib.inference.rollout_plain import PlainStore
from chuk_lib.inference.rollout_products import Weights, may_join, multiply, weights_of

MOST_HEAD_ROWS = 16
"""Rows up to which the product with the output head, of very many columns, is a kernel."""


class KernelForward:
    """Logits from tokens, for as long as the model keeps its weights. The tokens of a step must come from the logits of
    the step before, or those must have been evaluated: nothing else tells MLX that one reads what the other wrote.
    Raises ValueError for heads that the kernels do not take."""

    def __init__(self, parts: LlamaParts) -> None:
        for block in parts.blocks:
            if not cuda.can_attend(block.head_dim, block.heads, block.kv_heads, block.q.weight.dtype):
                raise ValueError("the kernels do not take heads of this size")
        self._parts = parts
        self._weights = [_weights(block, join=False) for block in parts.blocks]
        self._joined = not may_join(parts)
        self._head = weights_of([parts.head], False)
        self._turns: list[mx.array] = []
        self._constants = [_constants(block) for block in parts.blocks]
        mx.eval(self._constants)
        self._step = mx.compile(self._run)
        self._pads: np.ndarray | None = None
        self._begins = mx.array([0])

    def __call__(self, store: PlainStore, tokens: mx.array) -> mx.array:
        """Logits (B, V)."""
        self._prepare(store, len(tokens))
        buffers = [cache.buffers for cache in store.caches]
        logits: mx.array = self._step(tokens, mx.array([store.column]), self._begins, buffers)
        store.advance()
        return logits

    def _prepare(self, store: PlainStore, rows: int) -> None:
        """Have all that does not change from step to step."""
        if store.pads is not self._pads:
            self._pads, self._begins = store.pads, mx.array(store.pads.astype(np.int32))
        for block, cache in zip(self._parts.blocks, store.caches, strict=True):
            if cache.keys is None:
                shape = (rows, block.kv_heads, store.capacity, block.head_dim)
                cache.keys, cache.values = (mx.zeros(shape, block.q.weight.dtype) for _ in range(2))
        if not self._turns or len(self._turns[0]) < store.capacity:
            self._turns = _turns(self._parts.blocks, store.capacity)
            self._step = mx.compile(self._run)
        if rows > cuda.MOST_PRODUCT_ROWS and not self._joined:
            self._weights = [_weights(block, join=True) for block in self._parts.blocks]
            self._joined = True

    def _run(
        self, tokens: mx.array, column: mx.array, begins: mx.array, buffers: Sequence[tuple[mx.array, mx.array]]
    ) -> mx.array:
        parts = self._parts
        hidden = parts.embedding[tokens]
        for index, (block, (keys, values)) in enumerate(zip(parts.blocks, buffers, strict=True)):
            qkv, o, gate_up, down = self._weights[index]
            x = mx.fast.rms_norm(hidden, block.before_attention.weight, block.before_attention.eps)
            norms = [norm.weight for norm in (block.q_norm, block.k_norm) if norm is not None]
            seen = cuda.attend(
                _through(x, [block.q, block.k, block.v], qkv), keys, values, self._turns[index], (column, begins),
                self._constants[index], block.heads, norms,
            )  # fmt: skip
            hidden = _through(seen, [block.o], o, hidden)
            x = mx.fast.rms_norm(hidden, block.before_mlp.weight, block.before_mlp.eps)
            hidden = _through(_inner(x, block, gate_up), [block.down], down, hidden)
        hidden = mx.fast.rms_norm(hidden, parts.norm.weight, parts.norm.eps)
        if len(hidden) > MOST_HEAD_ROWS:
            return multiply(hidden, self._head)
        return _through(hidden, [parts.head], self._head)


def _through(x: mx.array, layers: Sequence[Linear], weights: Weights, plus: mx.array | None = None) -> mx.array:
    """`plus` and x (B, in) through `layers` side by side; `weights` are theirs for MLX."""
    if not _kernel_takes(x, layers):
        return multiply(x, weights, plus)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    bias = mx.concatenate(biases) if len(biases) > 1 else biases[0] if biases else None
    return cuda.product(x, [layer.weight for layer in layers], bias, plus)


def _inner(x: mx.array, block: Block, weights: Weights) -> mx.array:
    """silu(gate) * up of x (B, in)."""
    if _kernel_takes(x, [block.gate, block.up]) and block.gate.bias is None:
        return cuda.gated(x, block.gate.weight, block.up.weight)
    gate, up = mx.split(multiply(x, weights), 2, axis=-1)
    inner: mx.array = nn.silu(gate) * up
    return inner


def _kernel_takes(x: mx.array, layers: Sequence[Linear]) -> bool:
    biases = [layer.bias for layer in layers if layer.bias is not None]
    alike = len(biases) in (0, len(layers)) and all(bias.dtype == x.dtype for bias in biases)
    plain = alike and all(layer.adapter is None for layer in layers)
    return plain and cuda.can_multiply(x, [layer.weight for layer in layers])


def _weights(block: Block, join: bool) -> list[Weights]:
    parts = ([block.q, block.k, block.v], [block.o], [block.gate, block.up], [block.down])
    weights = [weights_of(layers, join) for layers in parts]
    mx.eval(weights)
    return weights


def _constants(block: Block) -> mx.array:
    eps = [0.0 if norm is None else norm.eps for norm in (block.q_norm, block.k_norm)]
    return mx.array([block.scale, *eps], mx.float32)


def _turns(blocks: Sequence[Block], positions: int) -> list[mx.array]:
    """Cosines and sines (positions, D) float32 of each block, asked of the module that rotates: whatever its kind, it
    turns (1, 0) into (cos, sin). Equal ones are the same array."""
    found: list[mx.array] = []
    for block in blocks:
        half = block.head_dim // 2
        probe = mx.concatenate([mx.ones((1, 1, positions, half)), mx.zeros((1, 1, positions, half))], axis=-1)
        turns = mx.contiguous(block.rope(probe, offset=0)[0, 0])
        same = found and bool(mx.array_equal(found[-1], turns).item())
        found.append(found[-1] if same else turns)
    mx.eval(found)
    return found
