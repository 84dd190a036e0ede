"""Families other than Llama, as tiny random models: default targets, experts, packed projections,
odd heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chuk_lib.models import (
    LoadConfig,
    LoRAConfig,
    adapters_of,
    apply_lora,
    fuse,
    load_model,
    save_pretrained,
)
from chuk_lib.models.headers import read_headers
from chuk_lib.models.targets import default_targets
from tests.models.parity_models import logits, parameters, shake_adapters, writable_copy

COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "vocab_size": 320,
}
LLAMA_LIKE = COMMON | {
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "rope_theta": 1e4,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3_text": LLAMA_LIKE
    | {
        "num_key_value_heads": 1,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window_pattern": 2,
    },
    "gemma2": LLAMA_LIKE | {"head_dim": 16, "query_pre_attn_scalar": 16},
    "mistral": LLAMA_LIKE | {"tie_word_embeddings": False},
    "phi3": LLAMA_LIKE | {"partial_rotary_factor": 1.0},
    "gpt2": {
        "n_ctx": 64,
        "n_embd": 32,
        "n_head": 2,
        "n_layer": 2,
        "n_positions": 64,
        "layer_norm_epsilon": 1e-5,
        "vocab_size": 320,
    },
    "gpt_neox": COMMON
    | {
        "max_position_embeddings": 64,
        "layer_norm_eps": 1e-5,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
    },
    "qwen3_moe": LLAMA_LIKE
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
}
TARGETS = {"gpt2": ("c_attn",), "gpt_neox": ("query_key_value",), "phi3": ("qkv_proj",)}


def random_model(kind: str, folder: Path) -> tuple[Any, Any]:
    path = writable_copy("llama-tiny", folder)
    (path / "config.json").write_text(json.dumps({"model_type": kind, **CONFIGS[kind]}))
    return load_model(LoadConfig(str(path), load_weights=False))


def saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    folder.mkdir()
    save_pretrained(model, tokenizer, folder)
    return folder


@pytest.mark.parametrize("kind", CONFIGS)
def test_default_targets_are_pefts(kind: str, tmp_path: Path) -> None:
    assert default_targets(random_model(kind, tmp_path)[0]) == TARGETS.get(
        kind, ("q_proj", "v_proj")
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_save_adapt_save_and_fuse_come_back(kind: str, tmp_path: Path) -> None:
    model, tokenizer = random_model(kind, tmp_path)
    base = saved(model, tokenizer, tmp_path / "base")
    model, tokenizer = load_model(base)
    apply_lora(model, LoRAConfig(rank=2, targets=("all-linear",)))
    shake_adapters(model)
    adapted = logits(model)
    again, _ = load_model(saved(model, tokenizer, tmp_path / "adapter"))
    np.testing.assert_array_equal(logits(again), adapted)
    fuse(again)
    np.testing.assert_allclose(logits(again), adapted, atol=1e-4)
    fused, _ = load_model(saved(again, tokenizer, tmp_path / "fused"))
    np.testing.assert_array_equal(logits(fused), logits(again))


def test_experts_take_adapters(tmp_path: Path) -> None:
    model, _ = random_model("qwen3_moe", tmp_path)
    apply_lora(model, LoRAConfig(rank=2, targets=("switch_mlp.*",)))
    assert len(adapters_of(model)) == 6
    assert parameters(model)["model.layers.0.mlp.switch_mlp.up_proj.lora_a"].shape == (4, 2, 32)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [("mistral", "pt"), ("gemma3_text", "pt"), ("qwen3_moe", "mlx"), ("gpt2", "mlx")],
)
def test_layout_says_who_can_load_it(kind: str, layout: str, tmp_path: Path) -> None:
    model, tokenizer = random_model(kind, tmp_path)
    path = saved(model, tokenizer, tmp_path / "saved") / "model.safetensors"
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"]["format"] == layout
    tied = kind in ("gemma3_text", "gpt2")
    assert any(tensor.name == "lm_head.weight" for tensor in read_headers(path)) is not tied
