"""Families that transformers 5 saves otherwise than MLX-LM reads them: keys under other names,
tensors under other names or turned, and what MLX-LM computes otherwise.

The logits are those of transformers (tests/fixtures/families)."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

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
    # Relative to the largest logit. Llama 4's norm of queries has an eps of its own in MLX-LM.
    near = max(2e-5, float(np.abs(want).max()) * (5e-5 if name == "llama4_text" else 1e-5))
    ids = mx.array([FOUND["ids"]])
    np.testing.assert_allclose(np.array(model(ids))[0], want, atol=near)
    cache = make_prompt_cache(model)
    steps = [model(ids[:, :5], cache=cache)]
    steps += [model(ids[:, at : at + 1], cache=cache) for at in range(5, ids.shape[1])]
    np.testing.assert_allclose(np.array(mx.concatenate(steps, axis=1))[0], want, atol=near)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"no_rope_layers": [1, 0, 1, 0]}, "no_rope_layers"), ({"num_experts_per_tok": 2}, "expert")],
)
def test_what_mlx_lm_would_compute_otherwise_of_llama_4_is_refused(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    config = FOUND["cases"]["llama4_text"]["config"] | changes
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=words):
        open_model(tmp_path)


def test_a_family_that_needs_another_package_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "olmo", "hidden_size": 8, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match="without another package"):
        open_model(tmp_path)
