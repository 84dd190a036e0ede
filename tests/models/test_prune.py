"""`chuk model prune` and `grow`: what goes is what does least, what stays is as it was, and the
folders are those of a known family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.data.tokenizers import load_tokenizer
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models import load_model
from chuk_lib.models.growing import grow_model
from chuk_lib.models.importance import measure
from chuk_lib.models.pruning import PruneConfig, prune_model
from chuk_lib.models.writing import planned, write_tensors
from tests.conftest import RunChuk

TEXT = "the sum of two and three is five, and the sum of four and five is nine. " * 4
IDS = [[5, 9, 20, 31, 44, 7, 12, 50, 3, 28]]


def logits(folder: Path, ids: list[list[int]] = IDS) -> np.ndarray:
    """By MLX-LM, with none of chuk's code."""
    from mlx_lm import load

    return np.array(load(str(folder))[0](mx.array(ids)))


def changed(model: Path, folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    shutil.copytree(model, folder)
    values = {
        name: np.array(value) for name, value in mx.load(str(model / "model.safetensors")).items()
    }
    change(values)
    write_tensors(folder, planned(values))
    return folder


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def with_idle_parts(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """Layer 1 does nothing; of layer 0 neither the second group of heads nor every second neuron."""

    def idle(values: dict[str, np.ndarray]) -> None:
        values["model.layers.1.self_attn.o_proj.weight"][:] = 0
        values["model.layers.1.mlp.down_proj.weight"][:] = 0
        out = values["model.layers.0.self_attn.o_proj.weight"]
        out[:, out.shape[1] // 2 :] = 0
        values["model.layers.0.mlp.down_proj.weight"][:, ::2] = 0

    return changed(tiny_model_dir, tmp_path / "idle", idle)


def test_parts_that_do_nothing_go_and_nothing_else_changes(
    with_idle_parts: Path, tmp_path: Path, run_chuk: RunChuk
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    had = config_of(with_idle_parts)
    assert (had["num_hidden_layers"], had["num_attention_heads"]) == (2, 4)
    asked = (
        *("--layers", "1", "--heads", str(had["num_attention_heads"] // 2)),
        *("--mlp", str(had["intermediate_size"] // 2), "--data", "text.txt"),
    )
    made = run_chuk("model", "prune", with_idle_parts, "-o", "small", *asked, "--json")
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert said["dropped_layers"] == [1]
    assert said["influence"][1] == pytest.approx(0, abs=1e-6)
    assert said["loss_after"] == pytest.approx(said["loss_before"], abs=1e-5)
    assert said["parameters_after"] < said["parameters_before"]
    np.testing.assert_allclose(logits(tmp_path / "small"), logits(with_idle_parts), atol=2e-5)
    kept = config_of(tmp_path / "small")
    assert (kept["num_hidden_layers"], kept["num_attention_heads"], kept["head_dim"]) == (1, 2, 8)
    again = run_chuk("model", "prune", with_idle_parts, "-o", "small", *asked, "--dry-run")
    assert "--overwrite" in again.stderr
    assert run_chuk("model", "verify", "small").returncode == 0


def test_layers_go_by_number_too(tiny_model_dir: Path, tmp_path: Path, run_chuk: RunChuk) -> None:
    made = run_chuk("model", "prune", tiny_model_dir, "-o", "small", "--drop", "0")
    assert made.returncode == 0, made.stderr
    assert "without 1 layer: 0" in made.stdout
    whole, left = (
        mx.load(str(one / "model.safetensors")) for one in (tiny_model_dir, tmp_path / "small")
    )
    for name, value in left.items():
        np.testing.assert_array_equal(value, whole[name.replace("layers.0", "layers.1")])
    assert len(left) == len(whole) - sum("layers.0" in name for name in whole)


def test_influence_is_one_minus_the_cosine_of_what_goes_in_and_comes_out(
    tiny_model_dir: Path,
) -> None:
    model, _ = load_model(tiny_model_dir)
    found = measure(model, IDS, 2, 4)
    inner = model.model
    hidden = inner.embed_tokens(mx.array(IDS))
    for index, layer in enumerate(inner.layers):
        out = layer(hidden, "causal", None)
        a, b = (np.array(one)[0].astype(np.float64) for one in (hidden, out))
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert found.layers[index] == pytest.approx(1 - cosine.mean(), abs=1e-5)
        hidden = out


def test_tokens_that_the_data_does_not_need_go(tmp_path: Path, run_chuk: RunChuk) -> None:
    (tmp_path / "train.txt").write_text((TEXT + "seventeen elephants swim, singing.\n") * 9)
    (tmp_path / "some.txt").write_text(TEXT)
    create = ("--preset", "nano", "--tokenizer-data", "train.txt", "--vocab-size", "330")
    assert run_chuk("model", "create", *create, "-o", "big").returncode == 0
    made = run_chuk("model", "prune", "big", "-o", "small", "--vocab-from", "some.txt", "--json")
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert said["tokens_after"] < said["tokens_before"]
    big, small = (load_tokenizer(tmp_path / name) for name in ("big", "small"))
    assert small.tokenize(TEXT) == big.tokenize(TEXT)
    odd = "seventeen elephants ☃ <|im_start|>"
    assert small.decode(small.encode(odd)) == odd
    assert len(small.encode("seventeen")) > len(big.encode("seventeen"))
    ids = [big.encode(TEXT)], [small.encode(TEXT)]
    one, two = logits(tmp_path / "big", ids[0]), logits(tmp_path / "small", ids[1])
    order = big.convert_tokens_to_ids(small.convert_ids_to_tokens(range(two.shape[-1])))
    np.testing.assert_allclose(two, one[..., order], atol=1e-5)
    before, after = config_of(tmp_path / "big"), config_of(tmp_path / "small")
    assert big.convert_ids_to_tokens(before["eos_token_id"]) == small.convert_ids_to_tokens(
        after["eos_token_id"]
    )


def test_experts_answer_as_the_mlp_that_they_were(
    tiny_model_dir: Path, tmp_path: Path, run_chuk: RunChuk
) -> None:
    for name, seed in (("wide", 0), ("other", 1)):
        asked = ("--experts", "4", "--active", "2", "--seed", seed)
        made = run_chuk("model", "grow", tiny_model_dir, "-o", name, *asked, "--json")
        assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["model_type"] == "mixtral"
    config = config_of(tmp_path / "wide")
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (4, 2)
    np.testing.assert_allclose(logits(tmp_path / "wide"), logits(tiny_model_dir), atol=2e-5)
    routers = [
        mx.load(str(tmp_path / name / "model.safetensors"))[
            "model.layers.0.block_sparse_moe.gate.weight"
        ]
        for name in ("wide", "other")
    ]
    assert not np.array_equal(*routers)


def test_layers_are_repeated(tiny_model_dir: Path, tmp_path: Path, run_chuk: RunChuk) -> None:
    made = run_chuk("model", "grow", tiny_model_dir, "-o", "deep", "--slices", "0-2,0-1,1-2")
    assert made.returncode == 0, made.stderr
    whole, deep = (
        mx.load(str(one / "model.safetensors")) for one in (tiny_model_dir, tmp_path / "deep")
    )
    for place, layer in enumerate((0, 1, 0, 1)):
        name = "model.layers.{}.mlp.up_proj.weight"
        np.testing.assert_array_equal(deep[name.format(place)], whole[name.format(layer)])
    assert logits(tmp_path / "deep").shape == logits(tiny_model_dir).shape


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (PruneConfig(), "nothing is to be left out"),
        (PruneConfig(layers=1), "give --data DATA"),
        (PruneConfig(drop=(5,)), "there is no layer 5"),
        (PruneConfig(drop=(0, 1)), "all layers would go"),
        (PruneConfig(layers=1, drop=(0,)), "give --layers or --drop"),
        (PruneConfig(heads=3), "in steps of 2"),
        (PruneConfig(mlp=10_000), "is not below the model's"),
    ],
)
def test_what_a_model_cannot_be_is_refused(
    config: PruneConfig, why: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = None if why.startswith("give --data") else IDS
    with pytest.raises(ConfigError) as refused:
        prune_model(str(tiny_model_dir), tmp_path / "small", config, rows)
    assert why in f"{refused.value.message} {refused.value.hint}"


def test_growing_refuses_what_a_family_does_not_have(tiny_model_dir: Path, tmp_path: Path) -> None:
    source, out = str(tiny_model_dir), tmp_path / "out"
    for settings in ({}, {"slices": ((0, 1),), "experts": 2}, {"slices": ((0, 1),), "active": 1}):
        with pytest.raises(ConfigError):
            grow_model(source, out, **settings)
    with pytest.raises(ConfigError, match="3 of 2 experts"):
        grow_model(source, out, experts=2, active=3)
    with pytest.raises(ConfigError, match="layers 0 to 1"):
        grow_model(source, out, slices=((0, 3),))
    shutil.copytree(tiny_model_dir, tmp_path / "odd")
    config = config_of(tiny_model_dir) | {"hidden_act": "gelu"}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="the activation gelu"):
        grow_model(str(tmp_path / "odd"), out, experts=2)
    assert not out.exists()


def test_a_model_does_not_take_the_place_of_what_it_is_made_from(
    tiny_model_dir: Path, tmp_path: Path, run_chuk: RunChuk
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "m")
    (tmp_path / "text.txt").write_text(TEXT)
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    for words in (
        ("quantize", "m"),
        ("convert", "m", "--to", "hf", "--type", "bf16"),
        ("merge", "m", "--method", "linear"),
        ("merge", tiny_model_dir, "--method", "task_arithmetic", "--base", "m"),
        ("prune", "m", "--drop", "0"),
        ("grow", "m", "--experts", "2"),
        ("create", "--preset", "nano", "--tokenizer", "m"),
    ):
        refused = run_chuk("model", *words, "-o", "m", "--overwrite")
        assert (refused.returncode, "which it is made from" in refused.stderr) == (2, True), words
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
