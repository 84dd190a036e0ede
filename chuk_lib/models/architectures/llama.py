"""Llama: RMSNorm, grouped heads, SwiGLU; every key in sight (SmolLM, TinyLlama, Yi and others are
Llamas too)."""

from __future__ import annotations

from chuk_lib.models.architectures.base import Config, shared
from chuk_lib.models.architectures.decoder import DecoderConfig


def read(config: Config) -> DecoderConfig:
    """The decoder that a `config.json` asks for."""
    bias = bool(config.get("attention_bias", False))
    return DecoderConfig(
        **shared(config),
        windows=(None,) * int(config["num_hidden_layers"]),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
    )
