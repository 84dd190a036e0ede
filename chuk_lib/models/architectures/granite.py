"""Granite: a Llama with factors on embedding, attention, residuals and logits."""

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
        embedding_scale=float(config.get("embedding_multiplier", 1.0)),
        attention_scale=float(config.get("attention_multiplier", 1.0)),
        residual_scale=float(config.get("residual_multiplier", 1.0)),
        logits_scaling=float(config.get("logits_scaling", 1.0)),
    )
