"""Adapter and model folders: what we write others read, what others write we read, all bit for
bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models import (
    LoadConfig,
    LoRAConfig,
    adapters_of,
    fuse,
    load_model,
    load_trained_weights,
    provenance_of,
    save_peft_adapter,
    save_pretrained,
)
from chuk_lib.models.headers import read_headers
from tests.models.parity_models import (
    LLAMA,
    MODELS,
    PARITY,
    PEFT_ADAPTER,
    edit_json,
    logits,
    parameters,
    shake_adapters,
)

CONFIGS = {
    "default": LoRAConfig(rank=4, alpha=8),
    "rslora": LoRAConfig(rank=4, alpha=8, use_rslora=True),
    "dora": LoRAConfig(rank=4, alpha=8, use_dora=True, targets=("all-linear",)),
    "last block and head": LoRAConfig(rank=2, targets=("q_proj", "mlp.*", "lm_head"), num_layers=1),
    "head only": LoRAConfig(rank=2, targets=("lm_head",)),
    "embedding": LoRAConfig(rank=2, targets=("embed_tokens",)),
    "one path": LoRAConfig(rank=2, targets=("model.layers.0.self_attn.q_proj",)),
    "two paths": LoRAConfig(
        rank=2, targets=("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj")
    ),
}


def trained(lora: LoRAConfig, base: Path = LLAMA, **load: Any) -> tuple[Any, Any]:
    model, tokenizer = load_model(LoadConfig(str(base), use_lora=True, lora_config=lora, **load))
    shake_adapters(model)
    return model, tokenizer


def test_peft_adapter_gives_the_logits_of_torch() -> None:
    expected = np.load(PARITY / "expected" / "lora_adapter_logits.npz")
    model, _ = load_model(PEFT_ADAPTER)
    np.testing.assert_allclose(
        logits(model, mx.array(expected["input_ids"])), expected["logits"], atol=1e-4
    )
    assert len(adapters_of(model)) == 6
    lora = provenance_of(model).lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.scale) == (4, 8.0, 2.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_adapter_folder_comes_back_exactly_here_and_in_mlx_lm(name: str, tmp_path: Path) -> None:
    from mlx_lm import load

    model, tokenizer = trained(CONFIGS[name])
    save_pretrained(model, tokenizer, tmp_path)
    again, _ = load_model(tmp_path)
    assert provenance_of(again).lora == CONFIGS[name]
    assert parameters(again).keys() == parameters(model).keys()
    np.testing.assert_array_equal(logits(again), logits(model))
    theirs, _ = load(str(LLAMA), adapter_path=str(tmp_path))
    np.testing.assert_array_equal(logits(theirs), logits(model))


def test_adapter_folder_holds_adapters_only(tmp_path: Path) -> None:
    model, tokenizer = trained(LoRAConfig(rank=2))
    save_pretrained(model, tokenizer, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
    ]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    keys = ["self_attn.q_proj", "self_attn.v_proj"]
    assert config["lora_parameters"] == {"rank": 2, "scale": 8.0, "dropout": 0.0, "keys": keys}
    assert config["num_layers"] == 2


def test_adapter_of_a_model_quantized_on_load_finds_the_same_base(tmp_path: Path) -> None:
    model, tokenizer = trained(LoRAConfig(rank=2), use_4bit=True)
    save_pretrained(model, tokenizer, tmp_path)
    again, _ = load_model(tmp_path)
    np.testing.assert_array_equal(logits(again), logits(model))


def test_going_on_with_an_adapter_takes_its_settings_or_says_what_differs(tmp_path: Path) -> None:
    model, tokenizer = trained(LoRAConfig(rank=2, alpha=4))
    save_pretrained(model, tokenizer, tmp_path)
    again, _ = load_model(tmp_path, LoRAConfig(rank=2, alpha=4, dropout=0.1))
    np.testing.assert_array_equal(logits(again), logits(model))
    assert adapters_of(again)["model.layers.0.self_attn.q_proj"].dropout.p == 0.1
    with pytest.raises(ConfigError, match="has rank 2, not 8"):
        load_model(tmp_path, LoRAConfig(alpha=4))
    with pytest.raises(ConfigError, match="on other modules"):
        load_model(tmp_path, LoRAConfig(rank=2, alpha=4, targets=("k_proj",)))


@pytest.mark.parametrize("name", ["default", "rslora", "dora"])
def test_peft_form_comes_back(name: str, tmp_path: Path) -> None:
    model, _ = trained(CONFIGS[name])
    save_peft_adapter(model, tmp_path)
    np.testing.assert_allclose(logits(load_model(tmp_path)[0]), logits(model), atol=1e-6)


def test_peft_form_has_pefts_names_and_shapes(tmp_path: Path) -> None:
    model, _ = load_model(PEFT_ADAPTER)
    save_peft_adapter(model, tmp_path)
    ours, theirs = (
        {tensor.name: tensor.shape for tensor in read_headers(folder / "adapter_model.safetensors")}
        for folder in (tmp_path, PEFT_ADAPTER)
    )
    assert ours == theirs
    saved, original = (
        mx.load(str(f / "adapter_model.safetensors")) for f in (tmp_path, PEFT_ADAPTER)
    )
    assert all(mx.array_equal(saved[name], original[name]) for name in original)


def test_adapter_that_does_not_fit_is_named(tmp_path: Path) -> None:
    qwen2 = PARITY / "models" / "qwen2-tiny"
    with pytest.raises(
        ModelError, match=r"`\S*0.self_attn.v_proj.lora_b` is \[4, 32\], the model needs \[4, 64\]"
    ):
        load_model(qwen2, adapter=PEFT_ADAPTER)
    model, tokenizer = trained(LoRAConfig(targets=("lm_head",)))
    save_pretrained(model, tokenizer, tmp_path)
    with pytest.raises(ModelError, match="the model has no `lm_head`"):
        load_model(qwen2, adapter=tmp_path)


@pytest.mark.parametrize("change", [{"r": None}, {"lora_alpha": "much"}])
def test_incomplete_peft_settings_are_named(change: dict[str, Any], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(PEFT_ADAPTER, adapter, copy_function=shutil.copyfile)
    edit_json(adapter / "adapter_config.json", **change)
    with pytest.raises(ModelError, match="make no adapter"):
        load_model(LLAMA, adapter=adapter)


def test_damaged_adapters_are_named(tmp_path: Path) -> None:
    model, tokenizer = trained(LoRAConfig(rank=2))
    save_pretrained(model, tokenizer, tmp_path)
    weights = tmp_path / "adapters.safetensors"
    tensors = mx.load(str(weights))
    tensors.pop("model.layers.0.self_attn.q_proj.lora_b")
    mx.save_safetensors(str(weights), tensors)
    with pytest.raises(
        ModelError, match=r"`model.layers.0.self_attn.q_proj` needs lora_a and lora_b"
    ):
        load_model(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match="cut short"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_saved_model_has_the_original_names_shapes_and_numbers(name: str, tmp_path: Path) -> None:
    source = PARITY / "models" / name
    model, tokenizer = load_model(source)
    save_pretrained(model, tokenizer, tmp_path)
    ours, theirs = (
        {
            tensor.name: (tensor.shape, tensor.dtype)
            for tensor in read_headers(folder / "model.safetensors")
        }
        for folder in (tmp_path, source)
    )
    assert ours == theirs
    again, words = load_model(tmp_path)
    np.testing.assert_array_equal(logits(again), logits(model))
    assert words.encode("Some text") == tokenizer.encode("Some text")
    assert words.chat_template == tokenizer.chat_template
    with (tmp_path / "model.safetensors").open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    assert header["__metadata__"] == {"format": "pt"}


def test_saved_config_has_both_rope_forms_and_the_dtype_saved(tmp_path: Path) -> None:
    model, tokenizer = load_model(LLAMA, dtype="bfloat16")
    save_pretrained(model, tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in read_headers(tmp_path / "model.safetensors")} == {"BF16"}
    names = {path.name for path in tmp_path.iterdir()}
    assert {
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= names


def test_saved_model_loads_in_transformers_config_and_mlx_lm(tmp_path: Path) -> None:
    from mlx_lm import load
    from transformers import AutoConfig

    model, tokenizer = trained(LoRAConfig(rank=2), base=PARITY / "models" / "qwen2-tiny")
    adapted = logits(model)
    fuse(model)
    save_pretrained(model, tokenizer, tmp_path)
    theirs, _ = load(str(tmp_path))
    np.testing.assert_allclose(logits(theirs), adapted, atol=2e-5)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 10000.0


def test_large_models_are_written_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chuk_lib.models import writing

    monkeypatch.setattr(writing, "SHARD_BYTES", 200_000)
    model, tokenizer = load_model(LLAMA)
    save_pretrained(model, tokenizer, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {
        path.name for path in tmp_path.glob("model-*.safetensors")
    }
    assert index["metadata"]["total_size"] == sum(
        value.nbytes for value in parameters(model).values()
    )
    np.testing.assert_array_equal(logits(load_model(tmp_path)[0]), logits(model))


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2, use_dora=True)])
def test_trained_weights_come_back_into_a_fresh_model(
    lora: LoRAConfig | None, tmp_path: Path
) -> None:
    model, tokenizer = load_model(LLAMA, lora)
    changed = {
        name: value * 1.1
        for name, value in parameters(model).items()
        if lora is None or "lora" in name
    }
    model.load_weights(list(changed.items()), strict=False)
    save_pretrained(model, tokenizer, tmp_path)
    fresh, _ = load_model(LLAMA, lora, seed=9)
    load_trained_weights(fresh, tmp_path)
    np.testing.assert_array_equal(logits(fresh), logits(model))


def test_trained_weights_of_another_kind_or_shape_are_refused(tmp_path: Path) -> None:
    full, adapted = tmp_path / "full", tmp_path / "adapted"
    full.mkdir()
    adapted.mkdir()
    plain, tokenizer = load_model(LLAMA)
    save_pretrained(plain, tokenizer, full)
    model, _ = trained(LoRAConfig(rank=2))
    save_pretrained(model, tokenizer, adapted)
    with pytest.raises(ModelError, match="no adapter, but the model has"):
        load_trained_weights(model, full)
    with pytest.raises(ModelError, match="no full weights, but the model has no adapters"):
        load_trained_weights(plain, adapted)
    with pytest.raises(
        ModelError, match=r"`\S*0.self_attn.q_proj.lora_a` is \[64, 2\], the model needs \[64, 4\]"
    ):
        load_trained_weights(load_model(LLAMA, LoRAConfig(rank=4))[0], adapted)
    with pytest.raises(
        ModelError, match=r"do not fit the model: `\S*0.self_attn.k_proj.bias` and 5 more missing"
    ):
        load_trained_weights(load_model(PARITY / "models" / "qwen2-tiny")[0], full)
