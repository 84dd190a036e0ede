"""Which engine decodes a model here: that in NumPy where it gives the model's own logits, else the
model itself."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.errors import ConfigError
from chuk_lib.inference.decoder.draft import DraftModel
from chuk_lib.inference.decoder.engine import Engine, ModelEngine, NumpyEngine, run_cost
from chuk_lib.inference.decoder.forwards import Decode
from chuk_lib.inference.decoder.llama import Block, Linear, LlamaParts, Norm, read_llama
from chuk_lib.inference.decoder.numpy_llama import NumpyLlama, Remembered
from chuk_lib.inference.decoder.prefill import layer_caches
from chuk_lib.inference.decoder.stores import keeps_all, new_store
from chuk_lib.inference.decoder.unpacked import unpacked, unpacks
from chuk_lib.runtime import on_cpu

_PROBE = 2
_BEFORE = 3


def new_engine(
    model: nn.Module,
    max_tokens: int,
    *,
    together: bool = True,
    kv_bits: int | None = None,
    decode: Decode = "auto",
    ahead: bool = False,
    draft: nn.Module | None = None,
    adapted: Sequence[nn.Module] = (),
) -> Engine:
    """The fastest engine that is right for `model` here. `max_tokens`: what most rows may write at
    most; longer ones cost a copy. `together`: there may be more than one row at a time. `decode`
    other than `auto` names one of `ModelEngine`'s ways. `ahead`: a row alone may be guessed at,
    where that is faster, and by `draft`. `adapted`: the model under adapters, whose rows
    may decode beside its own, if it `holds_adapters`. Raises ConfigError where a draft model is of
    no use."""
    if decode == "auto" and unpacks(model):
        model = unpacked(model)
    if decode == "auto" and kv_bits is None and on_cpu() and keeps_all(model):
        parts = read_llama(model)
        rows = _numpy_llama(model, parts, adapted)
        if parts is not None and rows is not None:
            return NumpyEngine(model, rows, ahead, _draft_of(draft, parts), adapted)
    if draft is not None:
        raise ConfigError(
            "a draft model helps float32 weights of a Llama-like model on a CPU, without `kv_bits`",
            "leave out `--draft`",
        )
    return ModelEngine(model, new_store(model, max_tokens, kv_bits, together), decode)


def holds_adapters(model: nn.Module, adapted: Sequence[nn.Module]) -> bool:
    """Whether rows of the model and of the same model under adapters may decode together: one step
    reads the weights once for all of them, and each row has what its adapter adds."""
    if not on_cpu() or not keeps_all(model):
        return False
    return _numpy_llama(model, read_llama(model), adapted) is not None


def _draft_of(model: nn.Module | None, writer: LlamaParts) -> DraftModel | None:
    """The small model, when there is one. Raises ConfigError for one of another kind."""
    if model is None:
        return None
    parts = read_llama(model)
    if parts is None or _numpy_llama(model, parts) is None:
        raise ConfigError(
            "the draft model is not a Llama-like one with float32 weights",
            "take another, or leave out `--draft`",
        )
    return DraftModel(model, parts, writer, run_cost)


def _all_float32(model: nn.Module) -> bool:
    from mlx.utils import tree_flatten

    return all(leaf.dtype == mx.float32 for _, leaf in tree_flatten(model.parameters()))


def _numpy_llama(
    model: nn.Module, parts: LlamaParts | None, adapted: Sequence[nn.Module] = ()
) -> NumpyLlama | None:
    """An empty batch, when the parts computed one after the other give the logits of the model, and
    of it under each adapter."""
    models = [model, *adapted]
    if parts is None or parts.blocks[0].head_dim % 2 or not all(map(_all_float32, models)):
        return None
    others = [other for one in adapted if (other := read_llama(one)) is not None]
    if len(others) < len(adapted) or not all(_same_but_adapters(parts, other) for other in others):
        return None
    rows = NumpyLlama(parts, others)
    right = all(_right(rows, parts, at, one) for at, one in enumerate(models))
    return rows if right else None


def _right(rows: NumpyLlama, parts: LlamaParts, adapter: int, model: nn.Module) -> bool:
    """Whether both give the same logits for one token after some keys and values: any serve, so
    that one step of each is enough to see rotations, softmax and scale of every layer."""
    chance = np.random.default_rng(0)
    shapes = [(block.kv_heads, _BEFORE, block.head_dim) for block in parts.blocks]
    known = [
        (chance.standard_normal(shape, np.float32), chance.standard_normal(shape, np.float32))
        for shape in shapes
    ]
    rows.admit([Remembered(known)], [1], [adapter])
    got = rows.step(np.array([_PROBE]))
    rows.keep(np.zeros(0, np.int64))
    caches = layer_caches(model)
    for cache, (keys, values) in zip(caches, known, strict=True):
        cache.keys, cache.values = mx.array(keys[None]), mx.array(values[None])
        cache.offset = _BEFORE
    want = np.array(model(mx.array([[_PROBE]]), cache=caches))[0]
    loose = 1e-3 * max(1.0, float(np.abs(want).max()))
    return got.shape == want.shape and np.allclose(got, want, atol=loose)


def _same_but_adapters(one: LlamaParts, other: LlamaParts) -> bool:
    """Whether two models are made of the very same arrays, but for what adapters add."""
    pairs = zip(one.blocks, other.blocks, strict=False)
    return (
        len(one.blocks) == len(other.blocks)
        and one.embedding is other.embedding
        and _same_linear(one.head, other.head)
        and _same_norm(one.norm, other.norm)
        and all(_same_block(*pair) for pair in pairs)
    )


def _same_block(one: Block, other: Block) -> bool:
    linears = ("q", "k", "v", "o", "gate", "up", "down")
    norms = ("before_attention", "before_mlp", "q_norm", "k_norm")
    return all(_same_linear(getattr(one, name), getattr(other, name)) for name in linears) and all(
        _same_norm(getattr(one, name), getattr(other, name)) for name in norms
    )


def _same_linear(one: Linear, other: Linear) -> bool:
    return one.weight is other.weight and one.bias is other.bias


def _same_norm(one: Norm | None, other: Norm | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.weight is other.weight and one.eps == other.eps
