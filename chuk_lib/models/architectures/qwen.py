"""Qwen 2, 2.5 and 3: biases on queries, keys and values (2), or norms on queries and keys (3);
windows only with `use_sliding_window`, on the layers from `max_window_layers` on."""

from __future__ import annotations

from chuk_lib.models.architectures.base import Config, by_layer, shared
from chuk_lib.models.architectures.decoder import DecoderConfig


def read(config: Config) -> DecoderConfig:
    """The decoder that a `config.json` asks for."""
    is_3 = config["model_type"] == "qwen3"
    layers = int(config["num_hidden_layers"])
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    late = [layer >= int(config.get("max_window_layers", 28)) for layer in range(layers)]
    bias = bool(config.get("attention_bias", False)) if is_3 else True
    sizes = shared(config) | ({"head_dim": config.get("head_dim") or 128} if is_3 else {})
    return DecoderConfig(
        **sizes,
        windows=by_layer(config, late, window),
        qk_norm=is_3,
        qkv_bias=bias,
        o_bias=bias and is_3,
    )
