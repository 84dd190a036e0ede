"""Families that transformers 5 saves otherwise than MLX-LM reads them: keys under other names,
tensors under other names or turned, and what MLX-LM computes otherwise.

The logits are those of transformers (tests/fixtures/families)."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ModelError
from chuk_lib.models.loader import open_model
from tests.fixtures.architectures.weights import weight

FIXTURES = Path(__file__).parent.parent / "fixtures" / "families"
FOUND = json.loads((FIXTURES / "cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", FOUND["cases"])
def test_folders_of_transformers_5_give_its_logits(name: str, tmp_path: Path) -> None:
    case = FOUND["cases"][name]
    (tmp_path / "config.json").write_text(json.dumps(case["config"]), encoding="utf-8")
    tensors = {key: mx.array(weight(key, tuple(of), 0)) for key, of in case["tensors"].items()}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors, {"format": "pt"})
    model = open_model(tmp_path)
    want = np.load(FIXTURES / "logits.npz")[name]
    np.testing.assert_allclose(np.array(model(mx.array([FOUND["ids"]])))[0], want, atol=2e-5)


def test_a_family_that_needs_another_package_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "olmo", "hidden_size": 8, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match="without another package"):
        open_model(tmp_path)
