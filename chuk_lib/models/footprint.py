"""What a model's config says about attention and memory: RoPE in both config forms, KV cache,
memory to run and train.

Estimates with their assumptions beside them; activations are not in them, since they depend on
batch and length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LORA_RANK = 8
ADAMW_BYTES = 16
"""Bytes a trained parameter costs: float32 weight, gradient and two moments."""


@dataclass(frozen=True)
class RopeSettings:
    """Rotary embedding. `scaling` holds the other values as configured (factor, low_freq_factor,
    …)."""

    theta: float
    type: str
    scaling: dict[str, Any]


@dataclass(frozen=True)
class ModelMemory:
    """Bytes, and what they assume."""

    run: int
    kv_cache_full_context: int
    train_full: int
    train_lora: int
    lora_parameters: int
    assumptions: tuple[str, ...]


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config: models with several modalities nest it."""
    nested = config.get("text_config") or config.get("llm_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def context_length(config: Mapping[str, Any]) -> int | None:
    """The longest text a config names, in tokens."""
    for key in (
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
        "seq_length",
        "model_max_length",
    ):
        if isinstance(config.get(key), int):
            return int(config[key])
    return None


def rope_of(config: dict[str, Any]) -> RopeSettings | None:
    """RoPE from `rope_theta` + `rope_scaling`, or from `rope_parameters` (transformers 5); None
    when it has none.

    Where layer types differ (Gemma 3), the one of full attention.
    """
    new = config.get("rope_parameters")
    if isinstance(new, dict):
        new = new.get("full_attention", new)
    values = {**(config.get("rope_scaling") or {}), **(new or {})}
    theta = values.pop("rope_theta", None) or config.get("rope_theta")
    if theta is None and not values:
        return None
    kind = values.pop("rope_type", None) or values.pop("type", None) or "default"
    values.pop("type", None)
    return RopeSettings(
        float(theta or 10_000.0),
        str(kind),
        {key: value for key, value in values.items() if value is not None},
    )


def kv_layers(config: dict[str, Any]) -> tuple[int, int]:
    """Layers that cache keys and values for the whole context, and those that keep a sliding window
    of them, as MLX-LM computes it."""
    from chuk_lib.models.honoured import ignored_window

    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    if ignored_window(config) is not None:
        return layers, 0
    types = config.get("layer_types")
    if isinstance(types, list):
        return types.count("full_attention"), types.count("sliding_attention")
    pattern = config.get("sliding_window_pattern")
    if config.get("sliding_window") and isinstance(pattern, int) and pattern > 0:
        return layers // pattern, layers - layers // pattern
    windowed = bool(config.get("sliding_window")) and config.get("use_sliding_window", True)
    return (0, layers) if windowed else (layers, 0)


def kv_values_per_token(config: dict[str, Any]) -> int:
    """Numbers one layer caches for one token: keys and values of all KV heads, or the latent of
    MLA."""
    if config.get("kv_lora_rank"):
        return int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0)
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 0)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    return 2 * kv_heads * int(config.get("head_dim") or (hidden // heads if heads else 0))


def kv_cache_bytes(config: dict[str, Any], tokens: int, bytes_each: int) -> int:
    """Size of the KV cache of one sequence; sliding layers hold no more than their window."""
    full, sliding = kv_layers(config)
    window = min(tokens, int(config.get("sliding_window") or tokens))
    return kv_values_per_token(config) * bytes_each * (full * tokens + sliding * window)


def estimate_memory(
    config: dict[str, Any],
    *,
    parameters: int,
    weight_bytes: int,
    context: int,
    kv_bytes: int,
    lora_parameters: int,
) -> ModelMemory:
    """Memory to run one sequence at full context, and to train. `kv_bytes`: bytes of one cached
    number."""
    cache = kv_cache_bytes(config, context, kv_bytes)
    return ModelMemory(
        run=weight_bytes + cache,
        kv_cache_full_context=cache,
        train_full=ADAMW_BYTES * parameters,
        train_lora=weight_bytes + ADAMW_BYTES * lora_parameters,
        lora_parameters=lora_parameters,
        assumptions=(
            (
                f"run: weights as stored, one sequence of {context:,} tokens, {8 * kv_bytes}-bit KV"
                " cache"
            ),
            f"full training: AdamW in float32, {ADAMW_BYTES} bytes a parameter",
            f"LoRA: rank {LORA_RANK} on q_proj and v_proj, the other weights as stored",
            "activations are not counted: they grow with batch size and length",
        ),
    )
