"""A Llama-like model read off its modules: the weights of each block by what they are for.

Llama, Qwen 2 and 3, Mistral, SmolLM and others share one block: RMSNorm, attention with rotary
positions over grouped heads, RMSNorm, SwiGLU. Whoever computes with these parts instead of calling
the model must compare the two on a probe, because a family may differ in what no module shows (a
factor on the residual, a layer without positions)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

_BLOCK = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_ATTENTION = _PROJECTIONS | {"q_norm", "k_norm", "rope"}
_MLP = {"gate_proj", "up_proj", "down_proj"}


@dataclass(frozen=True)
class Packed:
    """A weight (out, in) of few bits, as MLX packs it: `codes` (out, in · bits / 32) uint32, scales
    and biases of each group of `group_size` neighbours."""

    codes: mx.array
    scales: mx.array
    biases: mx.array | None
    group_size: int
    bits: int
    mode: str

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.codes.shape[1] * 32 // self.bits

    @property
    def dtype(self) -> mx.Dtype:
        """What the numbers are once they are unpacked."""
        return self.scales.dtype if self.biases is not None else mx.bfloat16

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        others = 0 if self.biases is None else self.biases.nbytes
        return int(self.codes.nbytes + self.scales.nbytes + others)

    @property
    def form(self) -> tuple[int, int, str]:
        """What two weights have in common that can be one below the other."""
        return self.group_size, self.bits, self.mode


def dense(weight: mx.array | Packed) -> mx.array:
    """A weight that is not packed. Raises TypeError for one that is."""
    if isinstance(weight, Packed):
        raise TypeError("a packed weight has no numbers to look at")
    return weight


@dataclass(frozen=True)
class Linear:
    """y = W·x + bias + scale·(x·A·B): weight (out, in), bias (out,) or None, and a LoRA adapter (A,
    B, scale) or None."""

    weight: mx.array | Packed
    bias: mx.array | None = None
    adapter: tuple[mx.array, mx.array, float] | None = None

    @property
    def dense(self) -> mx.array:
        """The weight of a layer that is not packed. Raises TypeError for one that is."""
        return dense(self.weight)


@dataclass(frozen=True)
class Norm:
    """RMSNorm: weight and epsilon."""

    weight: mx.array
    eps: float


@dataclass(frozen=True)
class Block:
    """One layer; `rope` is the module that rotates queries and keys."""

    before_attention: Norm
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    before_mlp: Norm
    gate: Linear
    up: Linear
    down: Linear
    heads: int
    kv_heads: int
    scale: float
    rope: Any

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return int(self.q.weight.shape[0]) // self.heads


@dataclass(frozen=True)
class LlamaParts:
    """The whole model: embedding (V, H), blocks, last norm and output head."""

    embedding: mx.array | Packed
    blocks: tuple[Block, ...]
    norm: Norm
    head: Linear

    @property
    def packed(self) -> bool:
        """Whether any weight is."""
        layers = [self.head] + [
            layer
            for block in self.blocks
            for layer in (block.q, block.k, block.v, block.o, block.gate, block.up, block.down)
        ]
        weights = [self.embedding, *(layer.weight for layer in layers)]
        return any(isinstance(weight, Packed) for weight in weights)


class _UnlikeError(Exception):
    """The model is not of this kind."""


def read_llama(model: nn.Module) -> LlamaParts | None:
    """The parts of `model`, None when it is built otherwise or has other adapters than LoRA."""
    try:
        body = _module(model, "model")
        _only(body, {"embed_tokens", "layers", "norm"})
        embedding = _weight(_module(body, "embed_tokens"), nn.Embedding, nn.QuantizedEmbedding)
        head = _linear(model, "lm_head") if "lm_head" in model else Linear(embedding)
        blocks = tuple(_block(layer) for layer in body["layers"])
        return LlamaParts(embedding, blocks, _norm(body, "norm"), head)
    except _UnlikeError:
        return None


def _block(layer: nn.Module) -> Block:
    _only(layer, _BLOCK)
    attention, mlp = _module(layer, "self_attn"), _module(layer, "mlp")
    _only(attention, _ATTENTION)
    _only(mlp, _MLP)
    q, k, v, o = (_linear(attention, f"{name}_proj") for name in "qkvo")
    gate, up, down = (_linear(mlp, f"{name}_proj") for name in ("gate", "up", "down"))
    normed = "q_norm" in attention
    return Block(
        before_attention=_norm(layer, "input_layernorm"),
        q=q,
        k=k,
        v=v,
        o=o,
        q_norm=_norm(attention, "q_norm") if normed else None,
        k_norm=_norm(attention, "k_norm") if normed else None,
        before_mlp=_norm(layer, "post_attention_layernorm"),
        gate=gate,
        up=up,
        down=down,
        heads=int(_number(attention, "n_heads")),
        kv_heads=int(_number(attention, "n_kv_heads")),
        scale=_number(attention, "scale"),
        rope=_module(attention, "rope"),
    )


def _linear(owner: nn.Module, name: str) -> Linear:
    module: Any = _module(owner, name)
    adapter = None
    if "linear" in module and "lora_a" in module and "m" not in module:
        adapter = (module["lora_a"], module["lora_b"], float(_number(module, "scale")))
        module = module["linear"]
    weight = _weight(module, nn.Linear, nn.QuantizedLinear)
    return Linear(weight, module.get("bias"), adapter)


def _weight(module: Any, plain: type, packed: Any) -> mx.array | Packed:
    if not isinstance(module, packed):
        weight: mx.array = _exactly(module, plain)["weight"]
        return weight
    _exactly(module, packed)
    return Packed(
        module["weight"],
        module["scales"],
        module.get("biases"),
        module.group_size,
        module.bits,
        module.mode,
    )


def _norm(owner: nn.Module, name: str) -> Norm:
    module = _exactly(_module(owner, name), nn.RMSNorm)
    return Norm(module["weight"], _number(module, "eps"))


def _module(owner: nn.Module, name: str) -> nn.Module:
    module = owner.get(name)
    if not isinstance(module, nn.Module):
        raise _UnlikeError(name)
    return module


def _exactly(module: Any, kind: type) -> Any:
    if type(module) is not kind:
        raise _UnlikeError(kind.__name__)
    return module


def _only(module: nn.Module, names: set[str]) -> None:
    for name, child in module.children().items():
        holds = any(
            isinstance(item, nn.Module) for item in (child if isinstance(child, list) else [child])
        )
        if holds and name not in names:
            raise _UnlikeError(name)


def _number(module: nn.Module, name: str) -> float:
    value = getattr(module, name, None)
    if not isinstance(value, int | float):
        raise _UnlikeError(name)
    return value
