"""Adapters: the formulas, which modules they go on, what is trained, switching off and merging."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models import (
    LoadConfig,
    LoRAConfig,
    adapters_of,
    adapters_off,
    apply_lora,
    fuse,
    load_model,
    provenance_of,
    resolve_targets,
    set_trainable,
)
from chuk_lib.models.randomness import evaluating
from tests.models.parity_models import (
    IDS,
    LLAMA,
    PARITY,
    logits,
    parameters,
    shake_adapters,
    trainable,
)

X = mx.array(np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32))


def layer_of(config: LoRAConfig, **kwargs: Any) -> Any:
    model, _ = load_model(LLAMA, config, **kwargs)
    shake_adapters(model)
    return model.model.layers[1].self_attn.q_proj


def total_loss(model: Any, ids: mx.array) -> mx.array:
    return nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:]).mean()


@pytest.mark.parametrize(
    ("config", "scale"),
    [(LoRAConfig(rank=4, alpha=8), 2.0), (LoRAConfig(rank=4, alpha=8, use_rslora=True), 4.0)],
)
def test_lora_adds_scale_times_b_a_x(config: LoRAConfig, scale: float) -> None:
    layer = layer_of(config)
    x, weight = np.array(X, np.float64), np.array(layer.linear.weight, np.float64)
    a, b = np.array(layer.lora_a, np.float64), np.array(layer.lora_b, np.float64)
    np.testing.assert_allclose(np.array(layer(X)), x @ weight.T + scale * (x @ a) @ b, atol=1e-5)


def test_dora_scales_rows_to_the_learned_magnitude() -> None:
    layer = layer_of(LoRAConfig(rank=4, alpha=8, use_dora=True))
    weight = np.array(layer.linear.weight, np.float64)
    full = (
        weight + 2.0 * (np.array(layer.lora_a, np.float64) @ np.array(layer.lora_b, np.float64)).T
    )
    full *= (np.array(layer.m, np.float64) / np.linalg.norm(full, axis=1))[:, None]
    np.testing.assert_allclose(np.array(layer(X)), np.array(X, np.float64) @ full.T, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_new_adapters_change_nothing_and_follow_pefts_initialization(dora: bool) -> None:
    base, _ = load_model(LLAMA)
    model, _ = load_model(LLAMA, LoRAConfig(targets=("all-linear",), use_dora=dora))
    np.testing.assert_allclose(logits(model), logits(base), atol=1e-5)
    for layer in adapters_of(model).values():
        a = np.array(layer.lora_a)
        bound = a.shape[0] ** -0.5
        assert 0.9 * bound < np.abs(a).max() <= bound
        assert abs(a.mean()) < 0.1 * bound
        assert not np.array(layer.lora_b).any()


def test_initialization_depends_on_seed_and_module_only() -> None:
    few, many, other = (
        load_model(LLAMA, LoRAConfig(targets=targets), seed=seed)[0]
        .model.layers[0]
        .self_attn.q_proj.lora_a
        for targets, seed in ((("q_proj",), 1), (("all-linear",), 1), (("q_proj",), 2))
    )
    assert mx.array_equal(few, many)
    assert not mx.array_equal(few, other)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, {"self_attn.q_proj", "self_attn.v_proj"}),
        (("v_proj",), {"self_attn.v_proj"}),
        (("mlp.up_proj",), {"mlp.up_proj"}),
        (("[qk]_proj",), {"self_attn.q_proj", "self_attn.k_proj"}),
        (("mlp.*",), {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        (
            ("all-linear",),
            {f"self_attn.{n}_proj" for n in "qkvo"}
            | {f"mlp.{n}_proj" for n in ("gate", "up", "down")},
        ),
    ],
)
def test_targets_in_every_form(targets: tuple[str, ...] | None, expected: set[str]) -> None:
    model, _ = load_model(LLAMA)
    paths = resolve_targets(model, targets)
    assert {path.split(".", 3)[3] for path in paths} == expected
    assert len(paths) == 2 * len(expected)


def test_one_path_and_modules_outside_the_blocks() -> None:
    model, _ = load_model(LLAMA)
    paths = resolve_targets(
        model, ("lm_head", "embed_tokens", "model.layers.1.mlp.up_proj"), num_layers=1
    )
    assert paths == ["lm_head", "model.embed_tokens", "model.layers.1.mlp.up_proj"]


def test_unknown_target_lists_what_exists_and_guesses() -> None:
    model, _ = load_model(LLAMA)
    with pytest.raises(ConfigError, match="no module matches `q_prj`") as caught:
        apply_lora(model, LoRAConfig(targets=("v_proj", "q_prj")))
    assert "did you mean `q_proj`?" in caught.value.hint
    assert "q_proj (2)" in caught.value.hint
    assert "lm_head (1)" in caught.value.hint
    assert not adapters_of(model)


def test_num_layers_adapts_the_last_blocks_and_no_more_than_there_are() -> None:
    model, _ = load_model(LLAMA)
    assert resolve_targets(model, ("q_proj",), num_layers=1) == ["model.layers.1.self_attn.q_proj"]
    for wrong in (0, 3):
        with pytest.raises(ConfigError, match=f"`num_layers` is {wrong}, the model has 2 blocks"):
            apply_lora(model, LoRAConfig(num_layers=wrong))


@pytest.mark.parametrize(
    "bad", [{"rank": 0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"dropout": 1.0}, {"targets": ()}]
)
def test_numbers_that_make_no_adapter_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load_model(LLAMA, LoRAConfig(**bad))


def test_adapters_alone_are_trained() -> None:
    model, _ = load_model(LLAMA, LoRAConfig(rank=2, use_dora=True))
    assert {name.rsplit(".", 1)[-1] for name in trainable(model)} == {"lora_a", "lora_b", "m"}
    assert provenance_of(model).lora == LoRAConfig(rank=2, use_dora=True)
    said = set_trainable(model, lora=True, num_layers=1)
    assert all(name.startswith("model.layers.1.") for name in trainable(model))
    assert str(said).startswith("adapters of the last 1 blocks: ")
    with pytest.raises(ConfigError, match="adapters already"):
        apply_lora(model, LoRAConfig())
    with pytest.raises(ConfigError, match="has adapters, its full weights"):
        set_trainable(model, lora=False)


@pytest.mark.parametrize("name", ["llama-tiny", "qwen2-tiny"])
def test_full_training_trains_every_parameter(name: str) -> None:
    model, _ = load_model(PARITY / "models" / name)
    said = set_trainable(model, lora=False)
    assert trainable(model).keys() == parameters(model).keys()
    assert said.parameters == said.total == sum(value.size for value in parameters(model).values())
    _, gradient = nn.value_and_grad(model, lambda ids: total_loss(model, ids))(IDS)
    assert all(mx.abs(value).max().item() > 0 for _, value in tree_flatten(gradient))


def test_full_training_of_the_last_blocks() -> None:
    model, _ = load_model(LLAMA)
    set_trainable(model, lora=False, num_layers=1)
    assert {name.split(".")[2] for name in trainable(model)} == {"1"}
    assert len(trainable(model)) == 9
    with pytest.raises(ConfigError, match="no adapters to train"):
        set_trainable(model, lora=True)


@pytest.mark.parametrize(("dtype", "trained"), [("auto", mx.float32), ("bfloat16", mx.bfloat16)])
def test_full_training_widens_weights_unless_the_dtype_was_chosen(
    dtype: Any, trained: mx.Dtype
) -> None:
    model, _ = load_model(LLAMA, dtype=dtype)
    model.update(tree_map(lambda value: value.astype(mx.bfloat16), model.parameters()))
    set_trainable(model, lora=False, num_layers=1)
    assert {value.dtype for value in trainable(model).values()} == {trained}
    assert parameters(model)["model.embed_tokens.weight"].dtype == mx.bfloat16


def test_quantized_base_trains_adapters_only() -> None:
    model, _ = load_model(
        LoadConfig(str(LLAMA), use_4bit=True, use_lora=True, lora_config=LoRAConfig(rank=2))
    )
    shake_adapters(model)
    _, gradient = nn.value_and_grad(model, lambda ids: total_loss(model, ids))(IDS)
    found = dict(tree_flatten(gradient))
    assert found.keys() == trainable(model).keys()
    assert all(name.endswith((".lora_a", ".lora_b")) for name in found)
    assert all(mx.abs(value).max().item() > 0 for value in found.values())
    plain, _ = load_model(LoadConfig(str(LLAMA), use_4bit=True))
    with pytest.raises(ConfigError, match="quantized model cannot be trained in full"):
        set_trainable(plain, lora=False)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_dora_counts_the_inputs_of_packed_weights(bits: int) -> None:
    model, _ = load_model(LLAMA)
    nn.quantize(model, group_size=32, bits=bits)
    before = logits(model)
    apply_lora(model, LoRAConfig(rank=2, use_dora=True))
    np.testing.assert_allclose(logits(model), before, atol=1e-4)


def test_dora_on_an_embedding_is_refused() -> None:
    with pytest.raises(ConfigError, match="linear layers only"):
        load_model(LLAMA, LoRAConfig(targets=("embed_tokens",), use_dora=True))


def test_dropout_acts_in_training_and_never_else() -> None:
    model, _ = load_model(LLAMA, LoRAConfig(rank=4, dropout=0.5))
    shake_adapters(model)
    quiet = logits(model)
    np.testing.assert_array_equal(logits(model), quiet)
    model.train()
    mx.random.seed(0)
    first, second = logits(model), logits(model)
    mx.random.seed(0)
    np.testing.assert_array_equal(logits(model), first)
    assert np.abs(first - second).max() > 1e-4
    assert np.abs(first - quiet).max() > 1e-4


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("four_bit", [False, True])
def test_adapters_off_is_the_base_and_on_again_after(dora: bool, four_bit: bool) -> None:
    base, _ = load_model(LoadConfig(str(LLAMA), use_4bit=four_bit))
    lora = LoRAConfig(rank=2, targets=("all-linear", "lm_head"), use_dora=dora)
    model, _ = load_model(
        LoadConfig(str(LLAMA), use_4bit=four_bit, use_lora=True, lora_config=lora)
    )
    shake_adapters(model)
    adapted, names = logits(model), list(parameters(model))
    with adapters_off(model):
        np.testing.assert_array_equal(logits(model), logits(base))
    np.testing.assert_array_equal(logits(model), adapted)
    assert list(parameters(model)) == names
    assert np.abs(adapted - logits(base)).max() > 1e-3


def test_adapters_come_back_after_an_error_and_a_plain_model_has_none_to_switch_off() -> None:
    model, _ = load_model(LLAMA, LoRAConfig())
    with pytest.raises(RuntimeError, match="inside"), adapters_off(model):
        raise RuntimeError("inside")
    assert len(adapters_of(model)) == 4
    with (
        pytest.raises(ModelError, match="no adapters to switch off"),
        adapters_off(load_model(LLAMA)[0]),
    ):
        pass


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("four_bit", [False, True])
def test_fused_model_equals_the_adapted_one(dora: bool, four_bit: bool) -> None:
    lora = LoRAConfig(rank=2, targets=("all-linear", "lm_head"), use_dora=dora)
    model, _ = load_model(
        LoadConfig(str(LLAMA), use_4bit=four_bit, use_lora=True, lora_config=lora)
    )
    plain, _ = load_model(LLAMA)
    shake_adapters(model)
    adapted = logits(model)
    fuse(model)
    np.testing.assert_allclose(logits(model), adapted, atol=2e-4)
    assert {n: v.shape for n, v in parameters(model).items()} == {
        n: v.shape for n, v in parameters(plain).items()
    }
    assert provenance_of(model).lora is None
    assert "quantization" not in provenance_of(model).config
    with pytest.raises(ModelError, match="no adapters to merge"):
        fuse(model)


def test_fused_embedding_and_biases(tmp_path: Any) -> None:
    model, _ = load_model(
        PARITY / "models" / "qwen2-tiny", LoRAConfig(targets=("q_proj", "embed_tokens"))
    )
    shake_adapters(model)
    adapted = logits(model)
    np.testing.assert_allclose(logits(fuse(model)), adapted, atol=2e-5)


def test_fuse_can_quantize_again() -> None:
    model, _ = load_model(LoadConfig(str(LLAMA), use_4bit=True, use_lora=True))
    shake_adapters(model)
    fuse(model, requantize=True)
    assert isinstance(model.model.layers[0].self_attn.q_proj, nn.QuantizedLinear)
    assert provenance_of(model).config["quantization"]["bits"] == 4


@pytest.mark.parametrize("training", [True, False])
def test_a_failure_while_evaluating_leaves_the_mode_as_it_was(training: bool) -> None:
    model = nn.Dropout(0.5)
    model.train(training)
    with pytest.raises(KeyboardInterrupt):
        interrupt(model)
    assert model.training is training


def interrupt(model: nn.Module) -> None:
    with evaluating(model):
        assert not model.training
        raise KeyboardInterrupt
