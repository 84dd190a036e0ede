"""Phi-3 and 4: queries, keys and values in one matrix, gate and up in one, partial and LongRoPE
positions."""

from __future__ import annotations

from chuk_lib.models.architectures.base import Config, everywhere, shared
from chuk_lib.models.architectures.decoder import DecoderConfig


def read(config: Config) -> DecoderConfig:
    """The decoder that a `config.json` asks for."""
    return DecoderConfig(
        **shared(config) | {"norm_eps": float(config.get("rms_norm_eps") or 1e-5)},
        windows=everywhere(config),
        mlp="fused_gated",
        fused_qkv=True,
    )
