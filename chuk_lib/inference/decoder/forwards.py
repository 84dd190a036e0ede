"""From the rows' last tokens to logits, in the way that suits device and number of rows.

    plain   the model is called; the cache is written in place
    window  the whole step is one compiled function over the whole buffers, whose copy it returns:
            fewest launches, for few rows
    layers  Llama-like models: what lies between two attentions is one compiled function, the cache
            is written in place between them and attention sees the columns that are written,
            without a mask
    kernels Llama-like models on an NVIDIA GPU: the whole step is one compiled function over kernels
            of chuk's own

`auto` takes `kernels`, else `layers`, where the model's parts give its own logits, else `window` up
to `FEW_ROWS` rows, else `plain`. On a CPU, where nothing is compiled, it takes `plain`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.inference.decoder.cuda import kernels
from chuk_lib.inference.decoder.cuda.forward import KernelForward, UnfitError
from chuk_lib.inference.decoder.llama import Block, LlamaParts, read_llama
from chuk_lib.inference.decoder.plain_store import PlainStore
from chuk_lib.inference.decoder.products import (
    Weights,
    for_graph,
    look_up,
    may_join,
    multiply,
    weights_of,
)
from chuk_lib.inference.decoder.stores import Store
from chuk_lib.runtime import has_values, on_cpu

FEW_ROWS = 8
MOST_RUNS = 8
"""Lengths of rows up to which each gets an attention of its own."""

Decode = Literal["auto", "plain", "window", "layers", "kernels"]
Forward = Callable[[mx.array, int], mx.array]
"""Logits (B, V) of tokens (B,), which the store then holds; the second argument is B."""

_PROBE = (1, 2, 3)


def new_forward(model: nn.Module, store: Store, decode: Decode) -> Forward:
    """A function that runs one token of each of the store's rows. Its weights are those the model
    has now."""
    if decode == "plain" or not isinstance(store, PlainStore) or (decode == "auto" and on_cpu()):
        return lambda tokens, rows: _plain(model, store, tokens)
    for way in (_kernels, _layers):
        if decode == "auto" or decode == way.__name__[1:]:
            found = way(model)
            if found is not None:
                return partial(_call, found, store)
    window = _Window(model, store)
    most = FEW_ROWS if decode == "auto" else 1 << 30
    if not has_values():
        most = 0  # the column to write in is computed on the GPU: nobody knows where that would be
    return lambda tokens, rows: window(tokens) if rows <= most else _plain(model, store, tokens)


def _plain(model: nn.Module, store: Store, tokens: mx.array) -> mx.array:
    logits: mx.array = model(tokens[:, None], cache=store.caches)[:, -1]
    store.advance()
    return logits


class _Window:
    """One compiled function from tokens and buffers to logits and new buffers. A mask hides the
    columns that no row has written, so the same function serves until the buffers change their
    size."""

    def __init__(self, model: nn.Module, store: PlainStore) -> None:
        self._store = store
        self._step = mx.compile(lambda *arrays: _window_step(model, *arrays))

    def __call__(self, tokens: mx.array) -> mx.array:
        """Logits (B, V)."""
        store = self._store
        if store.caches[0].keys is None:  # empty prompts: nothing is known of the shapes
            return _plain(store.model, store, tokens)
        column = mx.array(store.column)
        buffers = [cache.state for cache in store.caches]
        logits: mx.array
        logits, written = self._step(tokens, column, mx.array(store.pads), buffers)
        for cache, (keys, values) in zip(store.caches, written, strict=True):
            cache.keys, cache.values = keys, values
        store.advance()
        return logits


Buffers = Sequence[tuple[mx.array, mx.array]]


def _window_step(
    model: nn.Module, tokens: mx.array, column: mx.array, pads: mx.array, buffers: Buffers
) -> tuple[mx.array, Buffers]:
    caches = [_WindowCache(keys, values, column, pads) for keys, values in buffers]
    logits = model(tokens[:, None], cache=caches)[:, -1]
    return logits, [(cache.keys, cache.values) for cache in caches]


class _WindowCache:
    """Keys and values (B, K, C, D) of one layer whose place to write is an array."""

    def __init__(self, keys: mx.array, values: mx.array, column: mx.array, pads: mx.array) -> None:
        self.keys, self.values = keys, values
        self._column, self._pads = column, pads
        self.offset = column - pads

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write one column and return the whole buffers."""
        self.keys = mx.slice_update(self.keys, keys, self._column, axes=(2,))
        self.values = mx.slice_update(self.values, values, self._column, axes=(2,))
        return self.keys, self.values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """Bool (B, 1, 1, C)."""
        columns = mx.arange(self.keys.shape[2])
        seen = (columns <= self._column) & (columns >= self._pads[:, None])
        if window_size is not None:
            seen = seen & (columns > self._column - window_size)
        return seen[:, None, None]


class _Layers:
    """A Llama-like model cut at its attentions."""

    def __init__(self, parts: LlamaParts) -> None:
        self._blocks = parts.blocks
        join = may_join(parts)
        self._first = [_before(block, join) for block in parts.blocks]
        self._second = [_after(block, join) for block in parts.blocks]
        self._head = weights_of([parts.head], join)
        self._embedding, self._norm = for_graph(parts.embedding), parts.norm
        shape = parts.blocks[0]
        self._begin = mx.compile(lambda *arrays: _begin(shape, *arrays))
        self._between = mx.compile(lambda *arrays: _between(shape, *arrays))
        self._end = mx.compile(lambda *arrays: _end(shape, parts.norm.eps, *arrays))

    def __call__(self, store: PlainStore, tokens: mx.array) -> mx.array:
        """Logits (B, V)."""
        last = len(self._blocks) - 1
        offset = mx.array(store.offset)
        hidden, q, k, v = self._begin(tokens, offset, self._embedding, self._first[0])
        logits = hidden
        for index, (block, cache) in enumerate(zip(self._blocks, store.caches, strict=True)):
            seen = _attend(store, q, *cache.update_and_fetch(k, v), block.scale)
            if index < last:
                hidden, q, k, v = self._between(
                    hidden, seen, offset, self._second[index], self._first[index + 1]
                )
            else:
                logits = self._end(hidden, seen, self._second[index], self._norm.weight, self._head)
        store.advance()
        return logits


def _attend(
    store: PlainStore, q: mx.array, keys: mx.array, values: mx.array, scale: float
) -> mx.array:
    """Attention (B, N, 1, D). Neighbours of one length attend together without a mask, which MLX's
    fast kernels for one query do not take; one mask for all serves where there are too many
    lengths."""
    attend = mx.fast.scaled_dot_product_attention
    runs = store.runs
    if len(runs) > MOST_RUNS:
        return attend(q, keys, values, scale=scale, mask=store.mask(1, False, None))
    if len(runs) == 1:
        return attend(q, keys, values, scale=scale)
    parts = [
        attend(q[a:b], keys[a:b, :, pad:], values[a:b, :, pad:], scale=scale) for a, b, pad in runs
    ]
    return mx.concatenate(parts)


def _begin(
    shape: Block, tokens: mx.array, offset: mx.array, embedding: Any, first: list[Any]
) -> tuple[mx.array, ...]:
    hidden = look_up(embedding, tokens)
    return (hidden, *_queries_keys_values(shape, hidden, offset, first))


def _between(
    shape: Block,
    hidden: mx.array,
    seen: mx.array,
    offset: mx.array,
    second: list[Any],
    first: list[Any],
) -> tuple[mx.array, ...]:
    hidden = _finish(shape, hidden, seen, second)
    return (hidden, *_queries_keys_values(shape, hidden, offset, first))


def _end(
    shape: Block,
    eps: float,
    hidden: mx.array,
    seen: mx.array,
    second: list[Any],
    norm: mx.array,
    head: Weights,
) -> mx.array:
    return multiply(mx.fast.rms_norm(_finish(shape, hidden, seen, second), norm, eps), head)


def _queries_keys_values(
    shape: Block, hidden: mx.array, offset: mx.array, first: list[Any]
) -> tuple[mx.array, mx.array, mx.array]:
    """(B, N, 1, D) and (B, K, 1, D) rotated, and (B, K, 1, D), of hidden states (B, H)."""
    norm, head_norms, weights = first
    both = shape.heads + shape.kv_heads
    together = multiply(mx.fast.rms_norm(hidden, norm, shape.before_attention.eps), weights)
    heads = together.reshape(len(hidden), both + shape.kv_heads, 1, shape.head_dim)
    turned = heads[:, :both]
    if shape.q_norm is not None and shape.k_norm is not None:
        q, k = turned[:, : shape.heads], turned[:, shape.heads :]
        q = mx.fast.rms_norm(q, head_norms[0], shape.q_norm.eps)
        turned = mx.concatenate([q, mx.fast.rms_norm(k, head_norms[1], shape.k_norm.eps)], axis=1)
    turned = shape.rope(turned, offset=offset)
    return turned[:, : shape.heads], turned[:, shape.heads :], heads[:, both:]


def _finish(shape: Block, hidden: mx.array, seen: mx.array, second: list[Any]) -> mx.array:
    """The rest of a layer after attention (B, N, 1, D)."""
    norm, o, gate_up, down = second
    hidden = multiply(seen.reshape(len(hidden), -1), o, hidden)
    both = multiply(mx.fast.rms_norm(hidden, norm, shape.before_mlp.eps), gate_up)
    gate, up = mx.split(both, 2, axis=-1)
    return multiply(nn.silu(gate) * up, down, hidden)


def _before(block: Block, join: bool) -> list[Any]:
    norms = [norm.weight for norm in (block.q_norm, block.k_norm) if norm is not None]
    return [block.before_attention.weight, norms, weights_of([block.q, block.k, block.v], join)]


def _after(block: Block, join: bool) -> list[Any]:
    o, down = weights_of([block.o], join), weights_of([block.down], join)
    return [block.before_mlp.weight, o, weights_of([block.gate, block.up], join), down]


def _call(
    found: _Layers | KernelForward, store: PlainStore, tokens: mx.array, rows: int
) -> mx.array:
    return found(store, tokens)


def _kernels(model: nn.Module) -> KernelForward | None:
    """The model over CUDA kernels, when they give its own logits for rows of several lengths."""
    parts = read_llama(model) if kernels.available() else None
    if parts is None or parts.packed:
        return None
    try:
        forward = KernelForward(parts)
        return forward if _right(model, parts, forward) else None
    except (
        UnfitError,
        RuntimeError,
    ):
        # Heads of another size, or a kernel that does not compile here.
        return None


def _layers(model: nn.Module) -> _Layers | None:
    """The model cut at its attentions, when the parts give its own logits."""
    parts = read_llama(model)
    if parts is None:
        return None
    layers = _Layers(parts)
    return layers if _right(model, parts, layers) else None


def _right(model: nn.Module, parts: LlamaParts, forward: _Layers | KernelForward) -> bool:
    """Whether `forward` gives the model's own logits."""
    store = PlainStore(model, len(_PROBE))
    store.admit([[(mx.zeros((1, 1, 0, 1)),) * 2] * len(parts.blocks)], [1])
    steps = []
    for token in _PROBE:
        steps.append(forward(store, mx.array([token])).astype(mx.float32))
        mx.eval(steps)
    got = mx.concatenate(steps)
    want = model(mx.array([_PROBE]))[0].astype(mx.float32)
    if got.shape != want.shape:
        return False
    loose = 1e-3 if parts.embedding.dtype == mx.float32 else 5e-2
    allowed = loose * mx.maximum(1.0, mx.abs(want).max())
    is_right = (mx.abs(got - want).max() <= allowed).item()
    return bool(is_right) or not has_values()
