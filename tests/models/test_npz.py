"""NPZ checkpoints of the predecessor: what it wrote becomes a folder, bit for bit; what does not fit
or is damaged is refused in one line, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ChukError
from chuk_lib.models import create_model, load_model
from chuk_lib.models.conversion import plan_conversion
from tests.conftest import RunChuk

Weights = dict[str, mx.array]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return create_model("nano", tmp_path / "base", seed=1)


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    """Of the same shape as the base, with other numbers."""
    folder = create_model("nano", tmp_path / "trained", seed=2)
    return dict(mx.load(str(folder / "model.safetensors")).items())


def converted(npz: Path, base: Path | None, kind: str | None = None) -> Path:
    output = npz.parent / "made"
    plan_conversion(str(npz), output, "hf", kind, None if base is None else str(base)).write()
    return output


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_weights_become_a_folder_bit_for_bit(
    dtype: mx.Dtype, tmp_path: Path, base: Path, weights: Weights
) -> None:
    given = {name: value.astype(dtype) for name, value in weights.items()}
    tables = {"model.layers.0.self_attn.rotary_emb.inv_freq": mx.zeros(4)}
    mx.savez(str(tmp_path / "old.npz"), **given, **tables)
    folder = converted(tmp_path / "old.npz", base)
    made = mx.load(str(folder / "model.safetensors"))
    assert made.keys() == given.keys()
    assert all(
        made[name].dtype == dtype and (made[name] == given[name]).all().item() for name in given
    )
    name = str(dtype).removeprefix("mlx.core.")
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == name
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_compressed_files_other_types_and_a_tied_head(
    tmp_path: Path, base: Path, weights: Weights
) -> None:
    given = {name: np.array(value).astype(np.float64) for name, value in weights.items()}
    given["lm_head.weight"] = given["model.embed_tokens.weight"]
    np.savez_compressed(tmp_path / "old.npz", **given)
    folder = converted(tmp_path / "old.npz", base, "f32")
    model, _ = load_model(folder)
    assert (
        model.layers[1].mlp.up_proj.weight == weights["model.layers.1.mlp.up_proj.weight"]
    ).all()


def test_the_command_takes_config_and_tokenizer_from_where_the_file_lies(
    base: Path, weights: Weights, run_chuk: RunChuk
) -> None:
    mx.savez(str(base / "final_model_checkpoint.npz"), **weights)
    made = ("final_model_checkpoint.npz", "-o", "../made", "--to", "hf", "--json")
    done = run_chuk("model", "convert", *made, cwd=base)
    assert json.loads(done.stdout)["types"] == {"f32": 20}
    assert run_chuk("infer", "-m", "made", "-p", "1+1=", "--max-tokens", 2).returncode == 0


def _obj(weights: Weights) -> dict[str, np.ndarray]:
    return {"a": np.array([{}], dtype=object)}


def _numpy(weights: Weights, **more: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in weights.items()} | more


WRONG = {
    "`hidden_state` not of this model": lambda weights: _numpy(weights, hidden_state=np.zeros(3)),
    "lacks `model.layers.0.input_layernorm.weight` and 17 more": lambda weights: _numpy(
        {name: value for name, value in weights.items() if "layers" not in name}
    ),
    "Python objects": _obj,
    "is <i4: weights are floats": lambda weights: {"a": np.zeros(3, np.int32)},
    "is [33], in the config's model [32]": lambda weights: _numpy(
        weights, **{"model.norm.weight": np.zeros(33, np.float32)}
    ),
    "a head of its own": lambda weights: _numpy(
        weights, **{"lm_head.weight": np.zeros((262, 32), np.float32)}
    ),
    "Fortran's order": lambda weights: {"a": np.asfortranarray(np.ones((3, 4), np.float32))},
}


@pytest.mark.parametrize("words", WRONG)
def test_what_does_not_fit_is_refused_by_name(
    words: str, tmp_path: Path, base: Path, weights: Weights
) -> None:
    np.savez(tmp_path / "old.npz", **WRONG[words](weights))
    with pytest.raises(ChukError) as refused:
        converted(tmp_path / "old.npz", base)
    assert words in refused.value.message
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer header", "no zip"])
def test_damage_is_told_and_nothing_is_written(
    damage: str, tmp_path: Path, base: Path, weights: Weights
) -> None:
    path = tmp_path / "old.npz"
    mx.savez(str(path), **weights)
    raw = bytearray(path.read_bytes())
    if damage == "flipped":
        raw[5000] ^= 4
    elif damage == "longer header":
        at = raw.index(b"(262, 32")
        raw[at + 1 : at + 4] = b"999"
    path.write_bytes(raw[:9000] if damage == "cut" else b"text" if damage == "no zip" else raw)
    with pytest.raises(ChukError, match="cannot be read"):
        converted(path, base)
    assert not (tmp_path / "made").exists()


def test_weights_alone_ask_for_a_base(tmp_path: Path, weights: Weights) -> None:
    mx.savez(str(tmp_path / "old.npz"), **weights)
    with pytest.raises(ChukError, match="weights alone"):
        converted(tmp_path / "old.npz", None)
