"""Families that are MLX-LM's but for a part that it computes otherwise than the config says.

- GPT-NeoX (Pythia): its MLP is always four times as wide as the hidden state there, with the
  approximate GELU
- ERNIE 4.5 with experts: what is added to their scores when some are chosen is left out there
- gpt-oss: the bounds of YaRN's ramp are rounded there, which `truncate: false` forbids
- GLM-4 (`glm`): all of a head is rotated there, whatever `partial_rotary_factor` says
- Jamba: the scores of the chosen experts are made to add up to 1 there
- MiniCPM3: a tied head leaves out the scale of the logits there
- Phi-3.5 MoE: it has biases there, whatever the config says
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.models.architectures.mlps import Activation, activation
from chuk_lib.models.architectures.rope import Rope

Classes = tuple[Any, Any]


class _NeoXMLP(nn.Module):
    def __init__(self, act: Activation, hidden: int, inner: int) -> None:
        super().__init__()
        self._act = act
        self.dense_h_to_4h = nn.Linear(hidden, inner)
        self.dense_4h_to_h = nn.Linear(inner, hidden)

    def __call__(self, x: mx.array) -> mx.array:
        return cast(mx.array, self.dense_4h_to_h(self._act(self.dense_h_to_4h(x))))


@cache
def _gpt_neox() -> Classes:
    from mlx_lm.models import gpt_neox

    @dataclass
    class Arguments(gpt_neox.ModelArgs):
        intermediate_size: int | None = None
        hidden_act: str = "gelu"

    class GPTNeoX(gpt_neox.Model):
        def __init__(self, args: Arguments) -> None:
            super().__init__(args)
            inner = args.intermediate_size or 4 * args.hidden_size
            for block in self.layers:
                block.mlp = _NeoXMLP(activation(args.hidden_act), args.hidden_size, inner)

    return GPTNeoX, Arguments


@cache
def _gpt_oss() -> Classes:
    from mlx_lm.models import gpt_oss

    class GPTOss(gpt_oss.Model):
        def __init__(self, args: gpt_oss.ModelArgs) -> None:
            super().__init__(args)
            rope = Rope(float(args.rope_theta), args.rope_scaling)
            for block in self.layers:
                block.self_attn.rope = rope.module(args.head_dim)

    return GPTOss, gpt_oss.ModelArgs


class _Statics(nn.Module):
    """What is added to the experts' scores when some are chosen, (1, experts); never trained."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.e_score_correction_bias = mx.zeros((1, experts))
        self.freeze()


@cache
def _ernie_moe() -> Classes:
    from mlx_lm.models import ernie4_5_moe

    class ErnieExperts(ernie4_5_moe.Ernie4_5_MoeMLP):
        def __init__(self, args: ernie4_5_moe.ModelArgs) -> None:
            super().__init__(args)
            self.moe_statics = _Statics(args.moe_num_experts)

        def __call__(self, x: mx.array) -> mx.array:
            gates = self.gate_act(self.gate(x).astype(mx.float32))
            wanted = gates + self.moe_statics.e_score_correction_bias[0]
            chosen = mx.stop_gradient(mx.argpartition(-wanted, self.k - 1)[..., : self.k])
            scores = mx.take_along_axis(gates, chosen, axis=-1)
            scores = scores / mx.maximum(scores.sum(axis=-1, keepdims=True), 1e-12)
            y = self.switch_mlp(x, chosen)
            y = (y * scores[..., None]).sum(axis=-2).astype(y.dtype)
            return cast(mx.array, y if self.shared_experts is None else y + self.shared_experts(x))

    class ErnieMoe(ernie4_5_moe.Model):
        def __init__(self, args: ernie4_5_moe.ModelArgs) -> None:
            super().__init__(args)
            for block in self.layers:
                if isinstance(block.mlp, ernie4_5_moe.Ernie4_5_MoeMLP):
                    block.mlp = ErnieExperts(args)

        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            kept = {
                name: value.astype(mx.float32)
                for name, value in weights.items()
                if name.endswith(".mlp.moe_statics.e_score_correction_bias")
            }
            made: dict[str, mx.array] = super().sanitize(weights)
            return made | kept

    return ErnieMoe, ernie4_5_moe.ModelArgs


@cache
def _glm() -> Classes:
    from mlx_lm.models import glm

    @dataclass
    class GLMArguments(glm.ModelArgs):
        partial_rotary_factor: float = 0.5

    class GLM(glm.Model):
        def __init__(self, args: GLMArguments) -> None:
            super().__init__(args)
            width = int(args.head_dim * args.partial_rotary_factor)
            for block in self.layers:
                block.self_attn.rope = nn.RoPE(width, traditional=True, base=args.rope_theta)

    return GLM, GLMArguments


@cache
def _jamba() -> Classes:
    from mlx_lm.models import jamba

    class JambaExperts(jamba.JambaSparseMoeBlock):
        def __call__(self, x: mx.array) -> mx.array:
            gates = mx.softmax(self.router(x), axis=-1, precise=True)
            k = self.num_experts_per_tok
            chosen = mx.stop_gradient(mx.argpartition(-gates, kth=k - 1, axis=-1)[..., :k])
            scores = mx.take_along_axis(gates, chosen, axis=-1)
            return cast(mx.array, (self.switch_mlp(x, chosen) * scores[..., None]).sum(axis=-2))

    class Jamba(jamba.Model):
        def __init__(self, args: jamba.ModelArgs) -> None:
            super().__init__(args)
            for at, block in enumerate(self.layers):
                of_experts = at % args.expert_layer_period == args.expert_layer_offset
                has_experts = args.num_experts > 1 and of_experts
                kind = JambaExperts if has_experts else jamba.JambaMLP
                block.feed_forward = kind(args)

    return Jamba, jamba.ModelArgs


@cache
def _minicpm3() -> Classes:
    from mlx_lm.models import minicpm3

    class MiniCPM3(minicpm3.Model):
        def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
            scale = self.args.dim_model_base / self.args.hidden_size
            hidden = self.model(inputs, cache=cache) * scale
            tied = self.args.tie_word_embeddings
            head = self.model.embed_tokens.as_linear if tied else self.lm_head
            return cast(mx.array, head(hidden))

    return MiniCPM3, minicpm3.ModelArgs


@cache
def _phimoe() -> Classes:
    from mlx_lm.models import phimoe

    @dataclass
    class PhiArguments(phimoe.ModelArgs):
        attention_bias: bool = False
        lm_head_bias: bool = False

    class PhiMoE(phimoe.Model):
        def __init__(self, args: PhiArguments) -> None:
            super().__init__(args)
            names = () if args.attention_bias else ("q_proj", "k_proj", "v_proj", "o_proj")
            unbiased = [block.self_attn[name] for block in self.layers for name in names]
            for module in unbiased + ([] if args.lm_head_bias else [self.lm_head]):
                module.pop("bias", None)

    return PhiMoE, PhiArguments


MENDED: dict[str, Callable[[], Classes]] = {
    "mlx_lm.models.ernie4_5_moe": _ernie_moe,
    "mlx_lm.models.gpt_neox": _gpt_neox,
    "mlx_lm.models.gpt_oss": _gpt_oss,
    "mlx_lm.models.glm": _glm,
    "mlx_lm.models.jamba": _jamba,
    "mlx_lm.models.minicpm3": _minicpm3,
    "mlx_lm.models.phimoe": _phimoe,
}
"""By MLX-LM's module: the model's class and that of its arguments."""
