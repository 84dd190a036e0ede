"""Models of few bits in rollouts: the tokens of their unpacked weights, the faster way, and memory
that is bounded and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder import forwards, unpacked
from chuk_lib.inference.decoder.budget import default_token_budget, token_bytes
from chuk_lib.inference.decoder.engine import ModelEngine, NumpyEngine
from chuk_lib.inference.decoder.engines import new_engine
from chuk_lib.inference.decoder.llama import read_llama
from chuk_lib.inference.rollouts import rollouts
from chuk_lib.models.lora import AdapterSpec, adapters_of, add_adapters
from chuk_lib.runtime import computing, cpu_packed, device_memory, users_own
from tests.inference.test_rollouts import loaded
from tests.inference.tiny_models import tiny

FORMS: dict[str, dict[str, Any]] = {
    "4 bits": {"group_size": 32, "bits": 4},
    "6 bits": {"group_size": 32, "bits": 6},
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
}
PROMPTS = [[3, 4, 5, 6], [7, 8], list(range(10, 40))]
GREEDY = SamplingConfig(temperature=0.0, max_tokens=12, seed=0)


def packed(form: str = "4 bits", family: str = "llama", adapters: bool = False) -> Any:
    """A tiny model of few bits whose likeliest token changes with what it has read."""
    model = tiny(family, tie_word_embeddings=form != "6 bits", rms_norm_eps=1e-5)
    fresh = type(model)(model.args)
    fresh.load_weights([(name, 6 * leaf) for name, leaf in tree_flatten(model.parameters())])
    nn.quantize(fresh, **FORMS[form])
    fresh.freeze()
    if adapters:
        paths = [
            path for path, one in fresh.named_modules() if path.endswith(("q_proj", "up_proj"))
        ]
        add_adapters(fresh, dict.fromkeys(paths, AdapterSpec(4, 2.0)))
        for path, layer in adapters_of(fresh).items():
            layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(len(path)))
    fresh.eval()
    mx.eval(fresh.parameters())
    return fresh


def tokens(model: Any, **options: Any) -> list[list[int]]:
    """What three prompts are continued by."""
    found = rollouts(model, loaded()[1], PROMPTS, GREEDY, group_size=2, **options)
    return [row.ids.tolist() for row in found]


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for unpacked weights."""
    monkeypatch.setattr(unpacked, "MEMORY_SHARE", 0.0)


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_tokens_are_those_of_the_unpacked_weights(cpu: Any, form: str, adapters: bool) -> None:
    model = packed(form, adapters=adapters)
    assert isinstance(new_engine(model, 12), NumpyEngine)
    want = tokens(unpacked.unpacked(model), decode="plain")
    assert len({token for row in want for token in row}) > 5
    assert tokens(model) == want
    assert model.model.layers[0].mlp.down_proj.bits == FORMS[form]["bits"]


def test_without_room_weights_are_unpacked_for_one_product(cpu: Any, no_room: None) -> None:
    model = packed()
    want = tokens(unpacked.unpacked(model), decode="plain")
    assert isinstance(new_engine(model, 12), ModelEngine)
    assert tokens(model) == want


def test_other_families_run_unpacked_too(cpu: Any) -> None:
    model = packed(family="gemma3_text")
    found = new_engine(model, 12)
    assert isinstance(found, ModelEngine)
    assert isinstance(found._model.layers[0].mlp.down_proj, nn.Linear)
    assert tokens(model) == tokens(unpacked.unpacked(model), decode="plain")


def test_an_unpacked_model_shares_what_was_not_packed(cpu: Any) -> None:
    model = packed(adapters=True)
    wide = unpacked.unpacked(model)
    first, second = model.model.layers[0], wide.model.layers[0]
    assert second.self_attn.q_proj.lora_a is first.self_attn.q_proj.lora_a
    assert second.input_layernorm.weight is first.input_layernorm.weight
    assert unpacked.unpacked_bytes(wide) == 0
    packed_parts = [name for name, _ in tree_flatten(model.parameters()) if name.endswith("scales")]
    leaves = dict(tree_flatten(wide.parameters()))
    assert unpacked.unpacked_bytes(model) == sum(
        leaves[name.removesuffix("scales") + "weight"].nbytes for name in packed_parts
    )


def test_the_copy_is_part_of_the_budget(cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed()
    plain = default_token_budget(unpacked.unpacked(model))
    free = device_memory().free
    monkeypatch.setattr(unpacked, "unpacked_bytes", lambda model: free // 3)
    assert default_token_budget(model) == pytest.approx(plain * 2 / 3, rel=0.05)
    monkeypatch.setattr(unpacked, "unpacked_bytes", lambda model: free)
    assert unpacked.unpacks(model) == 0
    assert default_token_budget(model) == pytest.approx(plain, rel=0.05)
    assert token_bytes(model) == token_bytes(unpacked.unpacked(model))


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("form", FORMS)
def test_a_gpu_takes_llama_like_ones_layer_by_layer(pretend_mac: Any, form: str, rows: int) -> None:
    pretend_mac("16")
    model = packed(form)
    assert unpacked.unpacks(model) == 0
    layers = forwards._layers(model)
    assert layers is not None
    assert forwards._kernels(model) is None
    parts = read_llama(model)
    assert parts is not None
    assert parts.packed
    assert parts.blocks[0].down.weight.shape == (32, 64)
    assert parts.blocks[0].head_dim == 16
    assert tokens(model, decode="layers") == tokens(model, decode="plain")


@pytest.mark.parametrize("form", FORMS)
def test_products_of_many_rows_and_their_gradients(
    cpu: Any, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = packed(form).model.layers[0].mlp.down_proj
    x = mx.random.normal((2, 5, 64), key=mx.random.key(1))
    calls: list[int] = []
    real = mx.quantized_matmul
    monkeypatch.setattr(mx, "quantized_matmul", lambda *a, **k: calls.append(1) or real(*a, **k))
    loss = mx.value_and_grad(lambda x: (layer(x) ** 2).sum())
    want = loss(x)
    assert calls == [1]
    with computing():
        got = loss(x)
        assert calls == [1]
        layer(x[:1])
        assert calls == [1, 1]  # five rows: MLX's own kernel
        with users_own():
            layer(x)
        assert calls == [1, 1, 1]
        layer(x)
        assert calls == [1, 1, 1]
    assert cpu_packed._switch.original is None
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-4, atol=1e-4)


def test_a_user_is_told(run_chuk: Any, cpu: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "few"
    done = run_chuk("model", "quantize", tiny_model_dir, "--bits", 4, "--output", model)
    assert done.returncode == 0, done.stderr
    asked = ("--prompt", "1+1=", "--temperature", 0, "--max-tokens", 8)
    done = run_chuk("infer", "--model", model, *asked)
    assert done.returncode == 0, done.stderr
    assert "packed weights are unpacked while the model writes: 0.0 GiB as float32" in done.stderr
    assert "unpacked" not in run_chuk("infer", "--model", tiny_model_dir, *asked).stderr
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 4)
    given = ("--data", tmp_path / "rows.jsonl", "--reward", "exact_match", "--max-steps", 1)
    few = ("--batch-size", 2, "--set", "num_generations=2", "--max-completion-length", 4)
    done = run_chuk(
        "train", "grpo", "--model", model, "--lora", *given, *few, "--output", tmp_path / "run"
    )
    assert done.returncode == 0, done.stderr
    assert "packed weights are unpacked" in (tmp_path / "run" / "events.jsonl").read_text()
