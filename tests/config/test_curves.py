"""The same settings file gives TRL's curve: whole runs of ten steps, made by TRL itself.

The files, and what TRL makes of them, are in tests/fixtures/curves (`make.py` there)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from chuk_lib.events import read_events
from chuk_lib.models.randomness import noisy
from tests.conftest import RunChuk
from tests.fixtures.architectures.weights import weight

FIXTURES = Path(__file__).parent.parent / "fixtures"
FOUND = json.loads((FIXTURES / "curves" / "curves.json").read_text("utf-8"))
LLAMA = FIXTURES / "parity" / "models" / "llama-tiny"


def mixture(case: dict[str, Any], folder: Path) -> Path:
    """A tiny mixture of experts with the weights that TRL had."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(case["config"]), "utf-8")
    tensors = {key: mx.array(weight(key, tuple(of), 0)) for key, of in case["tensors"].items()}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(LLAMA / name, folder)
    return folder


@pytest.mark.parametrize("name", FOUND["curves"])
def test_the_same_file_gives_trl_s_curve(name: str, run_chuk: RunChuk, tmp_path: Path) -> None:
    kind = name.removeprefix("trl-sft-")
    model = mixture(FOUND["models"][kind], tmp_path / "m") if kind in FOUND["models"] else LLAMA
    data = FIXTURES / "parity" / "data" / f"{FOUND['data'][name]}.jsonl"
    text = (FIXTURES / "curves" / f"{name}.yaml").read_text("utf-8")
    text = text.replace("MODEL", str(model)).replace("DATA", str(data)).replace("OUT", "run")
    (tmp_path / "x.yaml").write_text(text, "utf-8")
    command = "dpo" if "dpo" in name else "sft"
    done = run_chuk("train", command, "--config", "x.yaml")
    assert done.returncode == 0, done.stderr
    steps = [e.data for e in read_events(tmp_path / "run" / "events.jsonl") if e.kind == "step"]
    assert len(steps) == len(FOUND["curves"][name]) == 10
    for got, want in zip(steps, FOUND["curves"][name], strict=True):
        assert {key: got[key] for key in want} == pytest.approx(want, rel=1e-4, abs=1e-7)


def test_noise_is_that_of_transformers_hook() -> None:
    """Uniform, and as wide: the spread of 8,192 values has an error of half a percent."""
    import mlx.nn as nn

    layer = nn.Embedding(8, 32)
    layer.weight = mx.zeros_like(layer.weight)
    ids = mx.zeros((4, 64), mx.int32)
    mx.random.seed(0)
    with noisy(layer, 5.0):
        drawn, again = layer(ids), layer(ids)
        assert not mx.array_equal(drawn, again), "each micro-batch draws its own"
        assert mx.array_equal(layer.as_linear(mx.ones((1, 32))), mx.zeros((1, 8)))
    assert mx.abs(drawn).max().item() == pytest.approx(FOUND["noise"]["largest"], rel=1e-3)
    assert mx.std(drawn).item() == pytest.approx(FOUND["noise"]["spread"], rel=0.03)
    assert mx.abs(mx.mean(drawn)).item() < 0.003
    assert mx.array_equal(layer(ids), mx.zeros((4, 64, 32)))
