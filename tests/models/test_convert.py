"""`chuk model convert` for folders and adapters: what comes out is what went in, and what does not
go is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from chuk_lib.models import LoRAConfig, load_model
from chuk_lib.models.adapters import save_mlx_adapter
from tests.conftest import RunChuk
from tests.models.test_gguf import folder_of

IDS = mx.array([[5, 9, 12, 3, 8, 20, 7]])


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """An mlx-lm adapter that changes what the tiny model says."""
    model, _ = load_model(
        str(tiny_model_dir), lora=LoRAConfig(rank=4, targets=("q_proj", "down_proj"))
    )
    mx.random.seed(0)
    changed = [
        (name, mx.random.normal(value.shape) * 0.2)
        for name, value in _flat(model)
        if "lora_" in name
    ]
    model.load_weights(changed, strict=False)
    save_mlx_adapter(model, tmp_path / "adapter")
    return tmp_path / "adapter"


def _flat(model: Any) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return list(tree_flatten(model.parameters()))


def test_adapters_go_to_peft_and_back(
    tiny_model_dir: Path, adapter: Path, tmp_path: Path, run_chuk: RunChuk
) -> None:
    base = ("--base", str(tiny_model_dir))
    made = run_chuk("model", "convert", adapter, "-o", "peft", "--to", "peft", *base, "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["to"] == "peft"
    assert (tmp_path / "peft" / "adapter_model.safetensors").is_file()
    assert (
        run_chuk("model", "convert", "peft", "-o", "back", "--to", "mlx-adapter", *base).returncode
        == 0
    )
    models = [
        load_model(str(tiny_model_dir), adapter=one)[0]
        for one in (adapter, tmp_path / "peft", tmp_path / "back")
    ]
    plain = load_model(str(tiny_model_dir))[0](IDS)
    first, *others = (model(IDS) for model in models)
    assert mx.abs(first - plain).max().item() > 0.01
    for other in others:
        assert mx.abs(first - other).max().item() < 1e-5


def test_a_folder_takes_another_type(
    tiny_model_dir: Path, tmp_path: Path, run_chuk: RunChuk
) -> None:
    made = run_chuk(
        "model", "convert", tiny_model_dir, "-o", "half", "--to", "hf", "--type", "bf16"
    )
    assert made.returncode == 0, made.stderr
    dtypes = {
        value.dtype for value in mx.load(str(tmp_path / "half" / "model.safetensors")).values()
    }
    assert dtypes == {mx.bfloat16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert run_chuk("model", "verify", "half").returncode == 0


def test_a_dry_run_writes_nothing_and_says_what_it_would(tmp_path: Path, run_chuk: RunChuk) -> None:
    folder_of("llama", tmp_path / "llama")
    asked = ("model", "convert", "llama", "-o", "x.gguf", "--to", "gguf", "--type", "q8_0")
    planned = run_chuk(*asked, "--dry-run", "--json")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]
    said = json.loads(planned.stdout)
    done = json.loads(run_chuk(*asked, "--json").stdout)
    assert {**said, "dry_run": False} == done
    assert 0 <= (tmp_path / "x.gguf").stat().st_size - said["bytes"] < 100_000
    assert run_chuk(*asked, "-q", "--overwrite").stdout == "x.gguf\n"
    assert "--overwrite" in run_chuk(*asked).stderr


@pytest.mark.parametrize(
    ("options", "why", "code"),
    [
        (("-o", "x", "--to", "onnx"), "there is no form `onnx`", 2),
        (("-o", "x.gguf", "--to", "gguf", "--type", "q9"), "there is no type `q9`", 2),
        (("-o", "x", "--to", "gguf"), "should end in .gguf", 2),
        (("-o", "x", "--to", "hf", "--type", "q8_0"), "does not hold `q8_0`", 2),
        (("-o", "x", "--to", "hf", "--base", "y"), "--base is for adapters", 2),
        (("-o", "x", "--to", "peft"), "is not an adapter", 1),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: tuple[str, ...],
    why: str,
    code: int,
    tiny_model_dir: Path,
    tmp_path: Path,
    run_chuk: RunChuk,
) -> None:
    refused = run_chuk("model", "convert", tiny_model_dir, *options)
    assert refused.returncode == code
    assert why in refused.stderr
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_files_cannot_hold_is_refused(
    tiny_model_dir: Path, tmp_path: Path, run_chuk: RunChuk
) -> None:
    refused = run_chuk("model", "convert", tiny_model_dir, "-o", "x.gguf", "--to", "gguf")
    assert refused.returncode == 1
    assert "GGUF files cannot hold" in refused.stderr
    assert not list(tmp_path.iterdir())
