"""Loading: the numbers of torch, both forms of RoPE settings, dtypes, quantization, randomness."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models import LoadConfig, LoRAConfig, load_model, provenance_of
from chuk_lib.models.hf_config import both_rope_forms, flatten_rope
from tests.models.parity_models import (
    LLAMA,
    MODELS,
    PARITY,
    edit_json,
    logits,
    parameters,
    writable_copy,
)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str) -> None:
    expected = np.load(PARITY / "expected" / "model_logits.npz")
    model, _ = load_model(PARITY / "models" / name)
    np.testing.assert_allclose(
        logits(model, mx.array(expected["input_ids"])), expected[f"{name}/logits"], atol=1e-4
    )


@pytest.mark.parametrize("name", MODELS)
def test_transformers_5_config_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    folder = writable_copy(name, tmp_path)
    shutil.copyfile(folder / "config.transformers_v5.json", folder / "config.json")
    before = (folder / "config.json").read_bytes()
    expected = np.load(PARITY / "expected" / "model_logits.npz")
    model, _ = load_model(folder)
    np.testing.assert_allclose(
        logits(model, mx.array(expected["input_ids"])), expected[f"{name}/logits"], atol=1e-4
    )
    assert (folder / "config.json").read_bytes() == before


def test_scaling_and_partial_rotation_come_out_of_rope_parameters() -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
    }
    flat = flatten_rope(
        {"model_type": "llama", "rope_parameters": {**rope, "partial_rotary_factor": 0.5}}
    )
    assert flat["rope_theta"] == 5e5
    assert flat["partial_rotary_factor"] == 0.5
    assert flat["rope_scaling"]["type"] == flat["rope_scaling"]["rope_type"] == "llama3"
    assert flat["rope_scaling"]["factor"] == 8.0
    assert "rope_theta" not in flat["rope_scaling"]


def test_per_layer_type_rope_parameters_are_flattened_as_gemma3_needs_them() -> None:
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    flat = flatten_rope(
        {"model_type": "gemma3_text", "rope_parameters": nested, "layer_types": kinds}
    )
    assert (flat["rope_theta"], flat["rope_local_base_freq"], flat["sliding_window_pattern"]) == (
        1e6,
        1e4,
        3,
    )
    assert flat["rope_scaling"]["factor"] == 8.0
    inner = {"model_type": "gemma3_text", "rope_parameters": nested}
    inside = flatten_rope({"model_type": "gemma3", "text_config": inner})
    assert inside["text_config"]["rope_local_base_freq"] == 1e4


def test_an_old_config_gains_the_new_form_and_the_same_meaning() -> None:
    old = {
        "model_type": "llama",
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }
    both = both_rope_forms(old)
    assert both["rope_parameters"] == {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}
    assert {name: both[name] for name in old} == old
    gemma = both_rope_forms(
        {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    )
    assert gemma["rope_parameters"]["sliding_attention"] == {
        "rope_theta": 1e4,
        "rope_type": "default",
    }


def test_gemma3_in_either_form_builds_the_same_model(tmp_path: Path) -> None:
    shape = {
        "model_type": "gemma3_text",
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 320,
        "sliding_window": 8,
        "query_pre_attn_scalar": 16,
        "tie_word_embeddings": True,
    }
    forms = {
        "old": {"rope_theta": 1e5, "rope_local_base_freq": 500.0, "sliding_window_pattern": 2},
        "new": {
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e5, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 500.0, "rope_type": "default"},
            },
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    }
    found = []
    for name, form in forms.items():
        folder = writable_copy("llama-tiny", tmp_path / name)
        (folder / "config.json").write_text(json.dumps(shape | form))
        model, _ = load_model(LoadConfig(str(folder), load_weights=False, seed=3))
        found.append(logits(model))
    np.testing.assert_array_equal(*found)


def test_head_of_its_own_is_kept_when_the_config_is_silent_about_tying(tmp_path: Path) -> None:
    folder = writable_copy("llama-tiny", tmp_path)
    edit_json(folder / "config.json", tie_word_embeddings=None)
    np.testing.assert_array_equal(logits(load_model(folder)[0]), logits(load_model(LLAMA)[0]))


def test_dtype_can_be_chosen_and_adapters_stay_float32() -> None:
    model, _ = load_model(LLAMA, LoRAConfig(rank=2), dtype="bfloat16")
    kinds = {
        name.endswith(("lora_a", "lora_b")): value.dtype
        for name, value in parameters(model).items()
    }
    assert kinds == {True: mx.float32, False: mx.bfloat16}
    with pytest.raises(ConfigError, match="dtype"):
        load_model(LLAMA, dtype="float8")  # type: ignore[arg-type]


def test_four_bit_loading_stays_within_a_quantization_step() -> None:
    model, _ = load_model(LoadConfig(str(LLAMA), use_4bit=True))
    assert sum(name.endswith(".scales") for name in parameters(model)) == 2 * 7 + 2
    assert provenance_of(model).config["quantization"] == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
    }
    layer, exact = (
        model.model.layers[1].mlp.down_proj,
        load_model(LLAMA)[0].model.layers[1].mlp.down_proj.weight,
    )
    near = mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=64, bits=4)
    step = mx.repeat(mx.abs(layer.scales), 64, axis=1)
    assert mx.all(mx.abs(near - exact) <= step).item()
    assert not mx.array_equal(near, exact)


def test_a_quantized_model_is_not_quantized_twice(tmp_path: Path) -> None:
    from chuk_lib.models import save_pretrained

    model, tokenizer = load_model(LoadConfig(str(LLAMA), use_4bit=True))
    save_pretrained(model, tokenizer, tmp_path)
    again, _ = load_model(tmp_path)
    np.testing.assert_array_equal(logits(again), logits(model))
    with pytest.raises(ConfigError, match="quantized already"):
        load_model(LoadConfig(str(tmp_path), use_4bit=True))


def test_loading_leaves_the_random_generator_alone() -> None:
    mx.random.seed(5)
    expected = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(5)
    load_model(LLAMA, LoRAConfig())
    assert mx.random.uniform(shape=(4,)).tolist() == expected


def test_random_weights_follow_the_seed() -> None:
    first, again, other = (
        dict(
            tree_flatten(
                load_model(LoadConfig(str(LLAMA), load_weights=False, seed=seed))[0].parameters()
            )
        )
        for seed in (1, 1, 2)
    )
    assert all(mx.array_equal(first[name], again[name]) for name in first)
    assert not mx.array_equal(
        first["model.embed_tokens.weight"], other["model.embed_tokens.weight"]
    )


def test_tokenizer_ends_where_the_config_says(tmp_path: Path) -> None:
    folder = writable_copy("llama-tiny", tmp_path)
    edit_json(folder / "generation_config.json", eos_token_id=[3, 1])
    _, tokenizer = load_model(folder)
    assert tokenizer.eos_token_ids == {1, 3}
    assert tokenizer.decode(tokenizer.encode("two words")) == "two words"
    assert not load_model(LLAMA)[0].training


def test_a_load_config_stands_alone() -> None:
    model, _ = load_model(LoadConfig(str(LLAMA), use_lora=True, lora_config=LoRAConfig(rank=3)))
    assert provenance_of(model).lora == LoRAConfig(rank=3)
    with pytest.raises(ConfigError, match="stands alone"):
        load_model(LoadConfig(str(LLAMA)), LoRAConfig())


def test_models_made_elsewhere_have_no_provenance() -> None:
    import mlx.nn as nn

    with pytest.raises(ModelError, match="load_model"):
        provenance_of(nn.Linear(2, 2))
