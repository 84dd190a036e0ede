"""A whole step of a Llama-like model as one compiled function over the kernels of `kernels.py`, on
an NVIDIA GPU.

Up to 64 rows every product is a kernel too; above MLX multiplies. What adapters add is computed
beside their layers, never merged into them: in bfloat16 a young adapter is smaller than a weight's
last bit, and would be lost. The store's buffers are written in place by the attention."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.inference.decoder.cuda import kernels as cuda
from chuk_lib.inference.decoder.llama import Block, Linear, LlamaParts, Norm, dense
from chuk_lib.inference.decoder.plain_store import PlainStore
from chuk_lib.inference.decoder.products import low_rank, may_join, multiply, weights_of

MOST_HEAD_ROWS = 16
"""Rows up to which the product with the output head, of very many columns, is a kernel."""


class UnfitError(Exception):
    """The kernels do not take this model."""


class KernelForward:
    """Logits from tokens, for as long as the model keeps its weights. The tokens of a step must
    come from the logits of the step before, or those must have been evaluated: nothing else tells
    MLX that one reads what the other wrote. Raises UnfitError for heads that the kernels do not
    take."""

    def __init__(self, parts: LlamaParts) -> None:
        for block in parts.blocks:
            if not cuda.can_attend(
                block.head_dim, block.heads, block.kv_heads, block.q.weight.dtype
            ):
                raise UnfitError("the kernels do not take heads of this size")
        self._parts = parts
        self._groups = [_groups(block) for block in parts.blocks]
        self._joined = not may_join(parts, adapted=True)
        self._head = LayerGroup([parts.head])
        self._turns: list[mx.array] = []
        self._constants = [_constants(block) for block in parts.blocks]
        mx.eval(self._constants)
        self._step = self._compiled()
        self._pads: np.ndarray | None = None
        self._begins = mx.array([0])

    def _compiled(self) -> Callable[..., mx.array]:
        """A step, without a circle that would keep the weights' copies until Python looks for
        circles."""
        owner = weakref.proxy(self)
        step: Callable[..., mx.array] = mx.compile(lambda *arrays: owner._run(*arrays))
        return step

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
            self._step = self._compiled()
        if rows > cuda.MOST_PRODUCT_ROWS and not self._joined:
            for group in (group for groups in self._groups for group in groups):
                group.join()
            self._joined = True

    def _run(
        self,
        tokens: mx.array,
        column: mx.array,
        begins: mx.array,
        buffers: Sequence[tuple[mx.array, mx.array]],
    ) -> mx.array:
        parts = self._parts
        hidden = dense(parts.embedding)[tokens]
        for index, (block, (keys, values)) in enumerate(zip(parts.blocks, buffers, strict=True)):
            qkv, o, gate_up, down = self._groups[index]
            norms = [norm.weight for norm in (block.q_norm, block.k_norm) if norm is not None]
            seen = cuda.attend(
                qkv(hidden, norm=block.before_attention),
                keys,
                values,
                self._turns[index],
                (column, begins),
                self._constants[index],
                block.heads,
                norms,
            )
            hidden = o(seen, hidden)
            hidden = down(gate_up.gated(hidden, block.before_mlp), hidden)
        hidden = mx.fast.rms_norm(hidden, parts.norm.weight, parts.norm.eps)
        return self._head(hidden, most=MOST_HEAD_ROWS)


class LayerGroup:
    """Layers that see the same input, side by side as one product, with their adapters."""

    def __init__(self, layers: Sequence[Linear]) -> None:
        self._layers = layers
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._alike = len(biases) in (0, len(layers)) and all(
            bias.dtype == layers[0].dense.dtype for bias in biases
        )
        self._bias = mx.concatenate(biases) if len(biases) > 1 else biases[0] if biases else None
        is_half = layers[0].dense.dtype == mx.bfloat16 and layers[0].dense.shape[1] % 8 == 0
        self._low = low_rank(layers) if is_half else None
        widths = [len(layer.dense) for layer in layers]
        self._apart = None if self._low is None else self._low.apart(widths)
        self._weights = weights_of(layers, False, adapted=self._low is None)
        self._is_wide = False  # whether the weights hold the adapters' second factors
        mx.eval([part for part in (self._bias, self._apart) if part is not None])

    def join(self) -> None:
        """Copy weights that see the same input, and what their adapters add, into one."""
        if len(self._layers) == 1 or (
            self._low is None and any(layer.adapter for layer in self._layers)
        ):
            return
        self._weights = weights_of(self._layers, True)
        if self._apart is not None:
            self._weights[0][0] = mx.concatenate([self._weights[0][0], self._apart], axis=1)
            self._is_wide = True
            mx.eval(self._weights)

    def __call__(
        self,
        x: mx.array,
        plus: mx.array | None = None,
        norm: Norm | None = None,
        most: int = cuda.MOST_PRODUCT_ROWS,
    ) -> mx.array:
        """`plus` and x (B, K), normed first, through all layers, (B, all O). Above `most` rows MLX
        multiplies."""
        if len(x) <= most and self._kernel_takes(x):
            weights = [layer.dense for layer in self._layers]
            return cuda.product(self._lowered(x, norm), weights, self._bias, plus, self._ups)
        if self._is_wide:
            return multiply(self._lowered(x, norm), self._weights, plus)
        x = _normed(x, norm)
        alone = len(self._weights) == 1
        made = multiply(x, self._weights, plus if alone else None)
        made = made if alone or plus is None else made + plus
        if self._low is None or self._apart is None:
            return made
        return mx.addmm(made, cuda.lower(x, self._low, None, wide=False), self._apart.T)

    def gated(self, x: mx.array, norm: Norm) -> mx.array:
        """silu of the first layer's times the second's output, of x (B, K) normed."""
        if self._kernel_takes(x) and self._bias is None:
            gate, up = (layer.dense for layer in self._layers)
            return cuda.gated(self._lowered(x, norm), gate, up, self._ups)
        gate, up = mx.split(self(x, norm=norm), 2, axis=-1)
        inner: mx.array = nn.silu(gate) * up
        return inner

    @property
    def _ups(self) -> mx.array | None:
        return None if self._low is None else self._low.ups

    def _lowered(self, x: mx.array, norm: Norm | None) -> mx.array:
        """x normed, and beside it what the adapters' first factors make of it."""
        if self._low is None:
            return _normed(x, norm)
        return cuda.lower(
            x, self._low, None if norm is None else (norm.weight, mx.array([norm.eps])), wide=True
        )

    def _kernel_takes(self, x: mx.array) -> bool:
        """Whether the kernel multiplies x; adapters it takes in bfloat16 only."""
        known = self._low is not None or all(layer.adapter is None for layer in self._layers)
        return (
            self._alike and known and cuda.can_multiply(x, [layer.dense for layer in self._layers])
        )


def _normed(x: mx.array, norm: Norm | None) -> mx.array:
    return x if norm is None else mx.fast.rms_norm(x, norm.weight, norm.eps)


def _groups(block: Block) -> tuple[LayerGroup, LayerGroup, LayerGroup, LayerGroup]:
    parts = ([block.q, block.k, block.v], [block.o], [block.gate, block.up], [block.down])
    qkv, o, gate_up, down = map(LayerGroup, parts)
    return qkv, o, gate_up, down


def _constants(block: Block) -> mx.array:
    eps = [0.0 if norm is None else norm.eps for norm in (block.q_norm, block.k_norm)]
    return mx.array([block.scale, *eps], mx.float32)


def _turns(blocks: Sequence[Block], positions: int) -> list[mx.array]:
    """Cosines and sines (positions, D) float32 of each block, asked of the module that rotates:
    whatever its kind, it turns (1, 0) into (cos, sin). Equal ones are the same array."""
    found: list[mx.array] = []
    for block in blocks:
        half = block.head_dim // 2
        probe = mx.concatenate(
            [mx.ones((1, 1, positions, half)), mx.zeros((1, 1, positions, half))], axis=-1
        )
        turns = mx.contiguous(block.rope(probe, offset=0)[0, 0])
        same = found and bool(mx.array_equal(found[-1], turns).item())
        found.append(found[-1] if same else turns)
    mx.eval(found)
    return found
