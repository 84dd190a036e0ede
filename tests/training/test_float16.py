"""float16 on Macs without bfloat16: it learns alike, and what goes beyond its range is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from chuk_lib.errors import TrainingError
from chuk_lib.events import read_events
from chuk_lib.models import load_model, save_pretrained
from chuk_lib.training import SFTConfig, train_sft
from tests.training.conftest import toy_rows, write_rows


def run(model: Path, folder: Path, dtype: str, **changes: Any) -> list[float]:
    """The losses of twelve LoRA steps."""
    data = write_rows(folder / "rows.jsonl", toy_rows(24))
    settings = {
        "max_steps": 12,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "log_interval": 1,
        "lora_rank": 4,
    } | changes
    config = SFTConfig(
        model=str(model),
        data=str(data),
        output=str(folder / dtype),
        use_lora=True,
        dtype=dtype,
        **settings,
    )
    done = train_sft(config)
    return [e.data["loss"] for e in read_events(done.run_dir / "events.jsonl") if e.kind == "step"]


def test_both_short_types_learn_what_float32_learns(
    tiny_model_dir: Path, tmp_path: Path, pretend_mac: Any
) -> None:
    pretend_mac("16:M1")
    exact = run(tiny_model_dir, tmp_path, "float32")
    assert exact[-1] < exact[0] - 0.05
    for dtype, near in (("bfloat16", 2e-2), ("float16", 2e-3)):
        assert run(tiny_model_dir, tmp_path, dtype) == pytest.approx(exact, rel=near)


def test_what_is_beyond_float16_stops_the_run_and_is_named(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_model(tiny_model_dir, dtype="float32")
    layer = model.layers[0].mlp
    layer.update(tree_map(lambda leaf: 300 * leaf, layer.parameters()))
    save_pretrained(model, tokenizer, tmp_path / "wide")
    mx.eval(model.parameters())
    assert all(loss < 1e4 for loss in run(tmp_path / "wide", tmp_path, "bfloat16", max_steps=2))
    with pytest.raises(TrainingError, match="is not finite") as caught:
        run(tmp_path / "wide", tmp_path, "float16", max_steps=2)
    assert "float16 ends at 65,504: dtype=bfloat16 or dtype=float32" in caught.value.hint
