"""Families that are MLX-LM's but for a part that it computes otherwise than the config says.

- GPT-NeoX (Pythia): its MLP is always four times as wide as the hidden state there, with the
  approximate GELU
- gpt-oss: the bounds of YaRN's ramp are rounded there, which `truncate: false` forbids
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


MENDED: dict[str, Callable[[], Classes]] = {
    "mlx_lm.models.gpt_neox": _gpt_neox,
    "mlx_lm.models.gpt_oss": _gpt_oss,
}
"""By MLX-LM's module: the model's class and that of its arguments."""
