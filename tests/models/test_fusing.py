"""`chuk model fuse`: merged in float32, rounded once, and never an adapter lost without a word."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models import LoadConfig, LoRAConfig, adapters_of, load_model, save_pretrained
from chuk_lib.models.fusing import FuseConfig, fuse_model
from chuk_lib.models.verify import verify
from tests.conftest import RunChuk
from tests.models.parity_models import IDS, LLAMA, logits, shake_adapters

TEXTS = IDS.tolist()


def adapter_on(base: Path, folder: Path, size: float = 1.0, **settings) -> Path:
    """An adapter on `base` with B of about 0.05·size."""
    model, tokenizer = load_model(
        base, LoRAConfig(**{"rank": 4, "targets": ("all-linear",), **settings})
    )
    shake_adapters(model)
    layers = adapters_of(model).values()
    for layer in layers:
        layer.lora_b = layer.lora_b * size
    save_pretrained(model, tokenizer, folder)
    return folder


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    model, tokenizer = load_model(LoadConfig(str(LLAMA), use_4bit=True))
    save_pretrained(model, tokenizer, tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.parametrize(
    "settings", [{}, {"use_dora": True}, {"targets": ("embed_tokens", "lm_head", "q_proj")}]
)
def test_a_float_base_gives_the_adapter_s_logits_here_and_in_mlx_lm(
    settings: dict, tmp_path: Path
) -> None:
    from mlx_lm import load

    adapter = adapter_on(LLAMA, tmp_path / "adapter", **settings)
    made = fuse_model(adapter, tmp_path / "fused")
    want = logits(load_model(adapter)[0])
    np.testing.assert_allclose(logits(load_model(made.folder)[0]), want, atol=1e-5)
    np.testing.assert_allclose(logits(load(str(made.folder))[0]), want, atol=1e-5)
    assert verify(made.folder).problems == ()
    assert made.lost == 0
    provenance = json.loads((made.folder / "provenance.json").read_text())
    assert provenance["made_by"] == "chuk model fuse"
    assert [len(one["fingerprint"]) for one in provenance["inputs"]] == [64, 64]
    assert (made.folder / "tokenizer.json").read_bytes() == (LLAMA / "tokenizer.json").read_bytes()


def test_stored_types_stay_unless_told_otherwise(tmp_path: Path) -> None:
    model, tokenizer = load_model(LLAMA, dtype="bfloat16")
    save_pretrained(model, tokenizer, tmp_path / "half")
    adapter = adapter_on(tmp_path / "half", tmp_path / "adapter")
    fuse_model(adapter, tmp_path / "fused")
    fuse_model(adapter, tmp_path / "wide", FuseConfig(dtype="float32"))
    kinds = [
        {v.dtype for v in mx.load(str(tmp_path / n / "model.safetensors")).values()}
        for n in ("fused", "wide")
    ]
    assert kinds == [{mx.bfloat16}, {mx.float32}]


def test_a_packed_base_gets_8_bits_where_it_is_merged_and_stays_where_not(
    packed: Path, tmp_path: Path
) -> None:
    adapter = adapter_on(packed, tmp_path / "adapter", size=0.1, targets=("q_proj", "v_proj"))
    made = fuse_model(adapter, tmp_path / "fused", probe=TEXTS)
    assert made.packings == {
        "4 bits in groups of 64 (affine)": 12,
        "8 bits in groups of 64 (affine)": 4,
    }
    before, after = (mx.load(str(folder / "model.safetensors")) for folder in (packed, made.folder))
    assert mx.array_equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert made.probed is not None
    assert made.base is not None
    assert made.probed.kl < 0.2 * made.base.kl
    section = json.loads((made.folder / "config.json").read_text())["quantization"]
    assert (section["bits"], section["model.layers.0.self_attn.q_proj"]["bits"]) == (4, 8)
    from mlx_lm import load

    np.testing.assert_allclose(
        logits(load(str(made.folder))[0]), logits(load_model(made.folder)[0]), atol=1e-6
    )


def test_keeping_few_bits_stops_when_they_would_lose_the_adapter(
    packed: Path, tmp_path: Path
) -> None:
    adapter = adapter_on(packed, tmp_path / "adapter", size=0.05)
    keep = FuseConfig(keep_quantized=True)
    with pytest.raises(
        ModelError,
        match=r"the adapter would be lost: .* [2-9]\.\d times as much as the adapter does",
    ):
        fuse_model(adapter, tmp_path / "fused", keep)
    with pytest.raises(
        ModelError, match=r"lost: .* the loss would go from .* the KL to the adapter would be"
    ):
        fuse_model(adapter, tmp_path / "fused", keep, probe=TEXTS)
    assert not (tmp_path / "fused").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    large = adapter_on(packed, tmp_path / "large", size=4)
    made = fuse_model(large, tmp_path / "fused", keep)
    assert made.lost < 1
    assert made.packings == {"4 bits in groups of 64 (affine)": 16}


def test_the_error_told_is_that_of_the_weights(packed: Path, tmp_path: Path) -> None:
    from chuk_lib.models.lora import base_layer, merged_weight
    from chuk_lib.models.quantizing import float_weight

    adapter = adapter_on(packed, tmp_path / "adapter", targets=("q_proj",))
    model, _ = load_model(adapter)
    exact = {path: merged_weight(layer) for path, layer in adapters_of(model).items()}
    bases = {path: float_weight(base_layer(layer)) for path, layer in adapters_of(model).items()}
    made = fuse_model(adapter, tmp_path / "fused", FuseConfig(bits=3, group_size=32))
    after, _ = load_model(made.folder)
    layers = dict(after.named_modules())
    error = sum(float(mx.square(float_weight(layers[path]) - exact[path]).sum()) for path in exact)
    change = sum(float(mx.square(exact[path] - bases[path]).sum()) for path in exact)
    assert made.lost == pytest.approx((error / change) ** 0.5, rel=1e-4)
    assert set(made.packings) == {"3 bits in groups of 32 (affine)"}


def test_dequantizing_is_exact(packed: Path, tmp_path: Path) -> None:
    adapter = adapter_on(packed, tmp_path / "adapter", size=0.1)
    made = fuse_model(adapter, tmp_path / "fused", FuseConfig(dequantize=True))
    np.testing.assert_allclose(
        logits(load_model(made.folder)[0]), logits(load_model(adapter)[0]), atol=2e-5
    )
    assert "quantization" not in json.loads((made.folder / "config.json").read_text())


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for config, message in (
        (FuseConfig(bits=4, dequantize=True), "bits and dequantize exclude each other"),
        (FuseConfig(group_size=64), "does nothing without `bits`"),
        (FuseConfig(bits=7), "no 7"),
        (FuseConfig(dtype="float8"), "`dtype` should be"),
    ):
        with pytest.raises(ConfigError, match=message):
            fuse_model(LLAMA, tmp_path / "fused", config)
    with pytest.raises(ModelError, match="has no adapter to merge"):
        fuse_model(LLAMA, tmp_path / "fused")


def test_command_merges_shows_and_leaves_nothing_half(
    packed: Path, tmp_path: Path, run_chuk: RunChuk
) -> None:
    adapter = adapter_on(packed, tmp_path / "adapter", size=0.1)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a fox. " * 20)
    assert run_chuk("model", "fuse", adapter, "-o", "out", "--dry-run").returncode == 0
    assert not (tmp_path / "out").exists()
    answer = json.loads(
        run_chuk("model", "fuse", adapter, "-o", "out", "--probe", text, "--json").stdout
    )
    assert answer["layers"] == 14
    assert answer["probed"]["kl"] < answer["base"]["kl"]
    done = run_chuk("model", "fuse", adapter, "-o", "out")
    assert (done.returncode, "not empty" in done.stderr) == (2, True)
    done = run_chuk(
        "model",
        "fuse",
        packed,
        "--adapter",
        adapter,
        "-o",
        "out",
        "--overwrite",
        "-q",
        "--bits",
        "4",
    )
    assert (done.returncode, done.stdout) == (0, "out\n")
    adapter = adapter_on(packed, tmp_path / "small", size=0.05)
    done = run_chuk("model", "fuse", adapter, "-o", "out2", "--keep-quantized")
    assert done.returncode == 1
    assert "the adapter would be lost" in done.stderr
    assert not (tmp_path / "out2").exists()
