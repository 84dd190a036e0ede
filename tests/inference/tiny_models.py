"""Tiny models of mlx-lm's families with random weights: one for each kind of cache."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import mlx.core as mx

VOCABULARY = 97
_COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, sliding": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    "gemma2": {
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "query_pre_attn_scalar": 16,
    },
    "gpt2": {
        "n_ctx": 512,
        "n_embd": 32,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 512,
        "layer_norm_epsilon": 1e-5,
    },
    "mamba2": {
        "num_heads": 8,
        "head_dim": 8,
        "state_size": 16,
        "conv_kernel": 4,
        "n_groups": 1,
        "expand": 2,
        "time_step_limit": (0.0, 100.0),
        "use_bias": False,
        "use_conv_bias": True,
        "layer_norm_epsilon": 1e-5,
        "residual_in_fp32": False,
        "time_step_rank": 4,
        "rms_norm": True,
        "norm_before_gate": False,
        "hidden_act": "silu",
        "chunk_size": 8,
    },
    "qwen3_next": {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 32,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "max_position_embeddings": 512,
        "full_attention_interval": 2,
        "norm_topk_prob": True,
        "attention_bias": False,
    },
}
FAMILIES = tuple(_FAMILIES)


@cache
def tiny(family: str, **changes: Any) -> Any:
    """A model of that family; shared, do not change it."""
    kind = family.split(",")[0]
    module = import_module(f"mlx_lm.models.{kind}")
    mx.random.seed(3)
    model = module.Model(
        module.ModelArgs.from_dict(
            {"model_type": kind, **_COMMON, **_FAMILIES.get(family, {}), **changes}
        )
    )
    model.eval()
    mx.eval(model.parameters())
    return model
