"""StarCoder 2: LayerNorm, biases everywhere unless `use_bias` is off, a plain MLP, and a window on
every layer."""

from __future__ import annotations

from chuk_lib.models.architectures.base import Config, everywhere, shared
from chuk_lib.models.architectures.decoder import DecoderConfig


def read(config: Config) -> DecoderConfig:
    """The decoder that a `config.json` asks for."""
    bias = bool(config.get("use_bias", True))
    own = {
        "norm": "layer",
        "norm_eps": float(config.get("norm_epsilon", 1e-5)),
        "activation": config.get("hidden_act") or "gelu_pytorch_tanh",
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", True)),
    }
    return DecoderConfig(
        **shared(config) | own,
        windows=everywhere(config),
        mlp="plain",
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
    )
