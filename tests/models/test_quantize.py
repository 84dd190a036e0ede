"""`chuk model quantize` and `dequantize`, against MLX and mlx-lm's own conversion."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models import load_model
from chuk_lib.models.create import create_model
from chuk_lib.models.quantize_model import QuantizeConfig, dequantize_model, quantize_model
from chuk_lib.models.quantizing import Packing, Rule, make_packing, read_rule
from chuk_lib.models.verify import verify
from tests.conftest import RunChuk
from tests.models.parity_models import IDS, LLAMA, logits

ROWS = IDS.tolist()
FOUR = Packing(4, 64)


def mlx_lm_s(folder: Path, **settings) -> dict[str, mx.array]:
    """The tensors that mlx-lm's own conversion writes."""
    from mlx_lm.convert import convert

    convert(str(LLAMA), mlx_path=str(folder), quantize=True, dtype="float32", **settings)
    return mx.load(str(folder / "model.safetensors"))


@pytest.mark.parametrize(
    ("packing", "recipe", "theirs"),
    [
        (Packing(4, 64), None, {"q_bits": 4, "q_group_size": 64}),
        (Packing(3, 32), None, {"q_bits": 3, "q_group_size": 32}),
        (Packing(4, 32, "mxfp4"), None, {"q_mode": "mxfp4"}),
        (Packing(8, 32, "mxfp8"), None, {"q_mode": "mxfp8"}),
        (Packing(4, 16, "nvfp4"), None, {"q_mode": "nvfp4"}),
        (Packing(4, 64), "mixed_3_6", {"quant_predicate": "mixed_3_6", "q_group_size": 64}),
    ],
    ids=str,
)
def test_weights_are_those_of_mlx_lm(
    packing: Packing, recipe: str | None, theirs: dict, tmp_path: Path
) -> None:
    from mlx_lm import load

    want = mlx_lm_s(tmp_path / "theirs", **theirs)
    made = quantize_model(LLAMA, tmp_path / "ours", QuantizeConfig(packing, recipe))
    ours = mx.load(str(made.folder / "model.safetensors"))
    assert ours.keys() == want.keys()
    assert all(mx.array_equal(ours[name], want[name]) for name in want)
    configs = [
        json.loads((tmp_path / n / "config.json").read_text())["quantization"]
        for n in ("ours", "theirs")
    ]
    assert resolved(configs[0], ours) == resolved(configs[1], want)
    np.testing.assert_array_equal(
        logits(load_model(made.folder)[0]), logits(load(str(made.folder))[0])
    )
    assert verify(made.folder).problems == ()


def resolved(section: dict, tensors: dict) -> dict:
    """What a config's section says of each packed layer."""
    paths = {name.removesuffix(".scales") for name in tensors if name.endswith(".scales")}
    usual = {key: section[key] for key in ("bits", "group_size")}
    return {path: {key: section.get(path, usual)[key] for key in usual} for path in paths}


def test_rules_are_for_the_layers_they_match_and_the_last_counts(tmp_path: Path) -> None:
    rules = (
        Rule("*_proj", 8),
        Rule("v_proj", 2),
        Rule("lm_head", None),
        Rule("model.layers.0.mlp.*", 6),
    )
    made = quantize_model(LLAMA, tmp_path / "out", QuantizeConfig(FOUR, rules=rules), report=True)
    bits = {layer.path: layer.packing.bits if layer.packing else None for layer in made.layers}
    assert (bits["lm_head"], bits["model.embed_tokens"]) == (None, 4)
    assert (bits["model.layers.0.mlp.up_proj"], bits["model.layers.1.mlp.up_proj"]) == (6, 8)
    assert (bits["model.layers.0.self_attn.v_proj"], bits["model.layers.0.self_attn.q_proj"]) == (
        2,
        8,
    )
    errors = {layer.path: layer.error for layer in made.layers}
    weight = mx.load(str(LLAMA / "model.safetensors"))["model.layers.0.self_attn.v_proj.weight"]
    kept = mx.dequantize(*mx.quantize(weight, group_size=64, bits=2), group_size=64, bits=2)
    exact = float(mx.linalg.norm(kept - weight) / mx.linalg.norm(weight))
    assert errors["model.layers.0.self_attn.v_proj"] == pytest.approx(exact, rel=1e-5)
    assert errors["lm_head"] is None
    load_model(made.folder)
    with pytest.raises(ConfigError, match=r"rule `w_proj` matches no layer"):
        quantize_model(LLAMA, tmp_path / "out2", QuantizeConfig(FOUR, rules=(Rule("w_proj", 8),)))


@pytest.mark.parametrize("target", [4.0, 5.3, 7.0])
def test_a_target_is_reached_from_below_and_beats_even_bits(target: float, tmp_path: Path) -> None:
    made = quantize_model(
        LLAMA, tmp_path / "out", QuantizeConfig(Packing(4, 32), target_bpw=target), calibration=ROWS
    )
    stored = sum(value.nbytes for value in mx.load(str(made.folder / "model.safetensors")).values())
    numbers = sum(value.size for value in mx.load(str(LLAMA / "model.safetensors")).values())
    assert made.bits_per_weight == pytest.approx(8 * stored / numbers)
    # Scales are float32 here, half of it is usual.
    assert target - 0.7 < made.bits_per_weight <= target + 1.1
    assert made.losses is not None
    assert len({layer.packing.bits for layer in made.layers if layer.packing}) > 1


def test_impossible_targets_say_what_is_possible(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be packed to 1.5 bits"):
        quantize_model(
            LLAMA, tmp_path / "out", QuantizeConfig(FOUR, target_bpw=1.5), calibration=ROWS
        )
    with pytest.raises(ConfigError, match="needs text to measure on"):
        quantize_model(LLAMA, tmp_path / "out", QuantizeConfig(FOUR, target_bpw=5))


def test_float_again_is_what_the_packed_weights_stand_for(tmp_path: Path) -> None:
    quantize_model(LLAMA, tmp_path / "packed", QuantizeConfig(FOUR))
    made = dequantize_model(tmp_path / "packed", tmp_path / "float")
    np.testing.assert_allclose(
        logits(load_model(made.folder)[0]), logits(load_model(tmp_path / "packed")[0]), atol=2e-5
    )
    assert "quantization" not in json.loads((made.folder / "config.json").read_text())
    half = dequantize_model(tmp_path / "packed", tmp_path / "half", "bfloat16")
    assert {value.dtype for value in mx.load(str(half.folder / "model.safetensors")).values()} == {
        mx.bfloat16
    }
    with pytest.raises(ModelError, match="is not quantized"):
        dequantize_model(LLAMA, tmp_path / "again")
    with pytest.raises(ModelError, match="is quantized already"):
        quantize_model(tmp_path / "packed", tmp_path / "again", QuantizeConfig(FOUR))


def test_what_mlx_has_not_is_refused() -> None:
    assert make_packing(None, None) == FOUR
    assert make_packing(None, None, "nvfp4") == Packing(4, 16, "nvfp4")
    for given, message in (
        ((7, None), "no bits 7"),
        ((4, 48), "no group size 48"),
        ((8, None, "mxfp4"), "no bits 8"),
        ((4, 64, "int4"), "unknown mode `int4`"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_packing(*given)
    assert read_rule("*.v_proj=6") == Rule("*.v_proj", 6)
    assert read_rule("lm_head=float") == Rule("lm_head", None)
    for text in ("v_proj", "=4", "v_proj=7", "v_proj=four"):
        with pytest.raises(ConfigError, match="should be PATTERN=BITS"):
            read_rule(text)


def test_groups_that_do_not_fit_are_named(tmp_path: Path, run_chuk: RunChuk) -> None:
    create_model("nano", tmp_path / "nano")  # 32 wide
    done = run_chuk("model", "quantize", "nano", "-o", "asked", "--group-size", "64")
    assert done.returncode == 0
    assert "warning: groups of 64 do not fit the width of `model." in done.stderr
    for more in (("--group-size", "32"), ()):
        done = run_chuk("model", "quantize", "nano", "-o", "other", "--overwrite", *more)
        assert (done.returncode, "warning" in done.stderr) == (0, False), done.stderr


def test_commands(tmp_path: Path, run_chuk: RunChuk) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a fox. " * 20)
    done = run_chuk("model", "quantize", LLAMA, "-o", "out", "--dry-run", "--json")
    assert json.loads(done.stdout)["written"] is False
    assert not (tmp_path / "out").exists()
    done = run_chuk(
        "model",
        "quantize",
        LLAMA,
        "-o",
        "out",
        "--rule",
        "v_proj=6",
        "--rule",
        "lm_head=float",
        "--calibration",
        text,
        "--report",
        "--json",
    )
    answer = json.loads(done.stdout)
    assert {layer["bits"] for layer in answer["layers"]} == {4, 6, None}
    assert answer["loss_after"] != answer["loss_before"]
    assert run_chuk("model", "dequantize", "out", "-o", "back", "-q").stdout == "back\n"
    done = run_chuk("model", "quantize", LLAMA, "-o", "x", "--target-bpw", "5", "--bits", "4")
    assert (done.returncode, "chooses the bits itself" in done.stderr) == (2, True)
    done = run_chuk("model", "quantize", LLAMA, "-o", "x", "--recipe", "mixed_9_9")
    assert (done.returncode, "unknown recipe" in done.stderr) == (2, True)
    assert not (tmp_path / "x").exists()
