"""Gemma 1, 2 and 3 (text): norms that multiply by 1 + weight, embeddings scaled by √H; from 2 on
norms on both sides, every second layer (2) or five of six (3) with a window, soft caps (2), norms
on queries and keys (3)."""

from __future__ import annotations

from typing import Any

from chuk_lib.errors import ModelError
from chuk_lib.models.architectures.base import Config, by_layer, shared
from chuk_lib.models.architectures.decoder import DecoderConfig
from chuk_lib.models.architectures.rope import Rope


def read(config: Config) -> DecoderConfig:
    """The decoder that a `config.json` asks for. Raises ModelError for attention in both
    directions."""
    if config.get("use_bidirectional_attention"):
        raise ModelError(
            "config.json: use_bidirectional_attention", "chuk runs causal language models"
        )
    kind = config["model_type"]
    layers, bias = int(config["num_hidden_layers"]), bool(config.get("attention_bias", False))
    named = (
        config.get("hidden_act" if kind == "gemma" else "hidden_activation") or "gelu_pytorch_tanh"
    )
    own: dict[str, Any] = {
        "head_dim": int(config.get("head_dim") or 256),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", True)),
        # The first release said "gelu" and meant the approximation; transformers reads it so.
        "activation": "gelu_pytorch_tanh" if kind == "gemma" and named == "gelu" else named,
        "norm": "rms+1",
        "embedding_scale": float(config["hidden_size"]) ** 0.5,
        "windows": (None,) * layers,
    }
    if kind != "gemma":
        period = 2 if kind == "gemma2" else int(config.get("sliding_window_pattern") or 6)
        usual = [bool((layer + 1) % period) for layer in range(layers)]
        caps = (50.0, 30.0) if kind == "gemma2" else (None, None)
        own |= {
            "windows": by_layer(config, usual, config.get("sliding_window", 4096)),
            "sandwich": True,
            "attention_scale": float(config.get("query_pre_attn_scalar", 256)) ** -0.5,
            "attn_logit_softcapping": config.get("attn_logit_softcapping", caps[0]),
            "final_logit_softcapping": config.get("final_logit_softcapping", caps[1]),
        }
    if kind == "gemma3_text":
        own |= {
            "qk_norm": True,
            "local_rope": Rope(float(config.get("rope_local_base_freq") or 10_000.0)),
        }
    theta = 1_000_000.0 if kind == "gemma3_text" else 10_000.0
    return DecoderConfig(**shared(config, theta) | own, qkv_bias=bias, o_bias=bias)
