"""What the mappings of all families share: reading sizes, windows and positions out of a
`config.json`."""

from __future__ import annotations

from typing import Any

from chuk_lib.errors import ModelError
from chuk_lib.models.architectures import Config
from chuk_lib.models.architectures.rope import Rope


def shared(config: Config, theta: float = 10_000.0) -> dict[str, Any]:
    """The arguments of `DecoderConfig` that are read alike in every family. `theta` is the family's
    default base. Raises ModelError when the config lacks a size."""
    heads, hidden = size(config, "num_attention_heads"), size(config, "hidden_size")
    return {
        "model_type": config["model_type"],
        "vocab_size": size(config, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": size(config, "intermediate_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or hidden // heads,
        "max_position_embeddings": config.get("max_position_embeddings"),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "norm_eps": float(config.get("rms_norm_eps") or 1e-6),
        "activation": config.get("hidden_act") or "silu",
        "rope": Rope.of(config, theta),
    }


def everywhere(config: Config, default: int | None = None) -> tuple[int | None, ...]:
    """The window of `sliding_window` on every layer; `default` when the config does not name it."""
    window = config.get("sliding_window", default)
    return (window or None,) * size(config, "num_hidden_layers")


def by_layer(config: Config, usual: list[bool], window: int | None) -> tuple[int | None, ...]:
    """The window on the layers that `layer_types` calls sliding, else on those of `usual`.
    Raises ModelError for another number of layers."""
    kinds = config.get("layer_types")
    sliding = usual if kinds is None else [kind == "sliding_attention" for kind in kinds]
    if len(sliding) != size(config, "num_hidden_layers"):
        raise ModelError(
            f"config.json: {len(sliding)} layer_types for {config['num_hidden_layers']} layers",
            "take the config.json that belongs to the weights",
        )
    return tuple(window if is_sliding else None for is_sliding in sliding)


def size(config: Config, name: str) -> int:
    """The whole number of that name. Raises ModelError when the config lacks it."""
    if name not in config:
        raise ModelError(
            f"config.json lacks `{name}`", "take the config.json that belongs to the weights"
        )
    return int(config[name])
