"""Rotary positions as a config says them. The rotations are MLX-LM's, but for LongRoPE: it always
takes the long factors, where transformers takes the short ones up to the original context; and for
YaRN with `truncate: false`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.errors import ModelError


@dataclass(frozen=True)
class Rope:
    """`theta` is the base; `scaling` a config's `rope_scaling`; `share` of each head's width is
    rotated; `original_context` is what LongRoPE's short factors were made for."""

    theta: float = 10_000.0
    scaling: Mapping[str, Any] | None = None
    share: float = 1.0
    context: int | None = None
    original_context: int | None = None

    @staticmethod
    def of(config: Mapping[str, Any], theta: float = 10_000.0) -> Rope:
        """As the flattened keys of a `config.json` say; `theta` is the family's default."""
        return Rope(
            float(config.get("rope_theta") or theta),
            config.get("rope_scaling"),
            float(config.get("partial_rotary_factor") or 1.0),
            config.get("max_position_embeddings"),
            config.get("original_max_position_embeddings"),
        )

    def module(self, width: int) -> nn.Module:
        """The module that rotates heads of `width`."""
        from mlx_lm.models.rope_utils import YarnRoPE, initialize_rope

        rotated = int(width * self.share)
        scaling = dict(self.scaling) if self.scaling else None
        if scaling and (scaling.get("rope_type") or scaling.get("type")) in ("longrope", "su"):
            return LongRope(rotated, self, scaling)
        made = cast(
            nn.Module,
            initialize_rope(
                rotated,
                self.theta,
                False,
                scaling_config=scaling,
                max_position_embeddings=self.context,
            ),
        )
        if isinstance(made, YarnRoPE) and scaling and scaling.get("truncate") is False:
            made._freqs = _unrounded_yarn(rotated, self.theta, scaling)
        return made


def _unrounded_yarn(width: int, theta: float, scaling: Mapping[str, Any]) -> mx.array:
    """Inverse frequencies of YaRN (Peng et al. 2023) whose ramp begins and ends between two
    dimensions, where MLX-LM rounds to whole ones."""
    original = scaling.get("original_max_position_embeddings", 4096)

    def dimension(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(dimension(scaling.get("beta_fast", 32)), 0)
    high = min(dimension(scaling.get("beta_slow", 1)), width - 1)
    places = mx.arange(width // 2, dtype=mx.float32)
    kept = 1 - mx.clip((places - low) / max(high - low, 0.001), 0, 1)
    plain = theta ** (mx.arange(0, width, 2, dtype=mx.float32) / width)
    slow = scaling["factor"] * plain
    found: mx.array = slow * plain / (slow * kept + plain * (1 - kept))
    return found


class LongRope(nn.Module):
    """LongRoPE (Ding et al. 2024): the frequencies are divided by short factors while all positions
    lie within the original context, by long ones as soon as one lies beyond it, and the rotated
    part is scaled.

    A text that grows beyond the original context while it is written would need all of its cached
    keys again, rotated otherwise (transformers starts over there): that is refused."""

    def __init__(self, width: int, rope: Rope, scaling: Mapping[str, Any]) -> None:
        super().__init__()
        self._width = width
        self._original = (
            scaling.get("original_max_position_embeddings")
            or rope.original_context
            or rope.context
            or 0
        )
        base = rope.theta ** (mx.arange(0, width, 2, dtype=mx.float32) / width)
        self._short = base * mx.array(scaling["short_factor"], mx.float32)
        self._long = base * mx.array(scaling["long_factor"], mx.float32)
        factor = scaling.get("factor") or (rope.context or self._original) / self._original
        usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(self._original))
        self._scale = float(scaling.get("attention_factor") or usual)

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        """(B, N, T, D), rotated from position `offset` on: a number, or one a row (B,). Raises
        ModelError when cached positions lie within the original context and new ones beyond it."""
        first = int(np.max(offset))
        is_long = first + x.shape[-2] > self._original
        if is_long and 0 < np.min(offset) <= self._original:
            raise ModelError(
                f"the text grows beyond {self._original:,} tokens, where LongRoPE rotates all"
                " positions otherwise",
                "let answers end before that, or begin with a prompt that is longer",
            )
        rotated = x[..., : self._width] * self._scale
        turned = mx.fast.rope(
            rotated,
            self._width,
            traditional=False,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self._long if is_long else self._short,
        )
        return mx.concatenate([turned, x[..., self._width :]], axis=-1)
