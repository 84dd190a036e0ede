"""Score heads: transformers' numbers and layout, and every way to save and load them."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib.errors import ModelError
from chuk_lib.models import (
    LoRAConfig,
    adapters_of,
    is_reward_model,
    load_model,
    load_reward_model,
    make_score_model,
    save_score_model,
    score_rows,
)
from chuk_lib.models.value_head import ends
from tests.conftest import ROOT

PARITY = Path(ROOT) / "tests" / "fixtures" / "parity"
ROWS = [[5, 9, 14, 7, 21], [3, 4], [8] * 9, [11]]


def made(folder, lora=None, seed=0):
    model, tokenizer = load_model(folder, lora, dtype="float32")
    return make_score_model(model, seed), tokenizer


def test_the_head_is_drawn_from_the_seed_and_shares_the_body(tiny_model_dir):
    model, _ = load_model(tiny_model_dir)
    state = mx.random.state[0].tolist()
    first, same, other = (make_score_model(model, seed) for seed in (1, 1, 2))
    assert mx.random.state[0].tolist() == state
    np.testing.assert_array_equal(np.array(first.head.weight), np.array(same.head.weight))
    assert not np.array_equal(np.array(first.head.weight), np.array(other.head.weight))
    assert first["model"] is model.model
    assert 0.0 < float(mx.abs(first.head.weight).max()) < 5 * 0.2


def test_scores_at_every_token_at_ends_and_of_rows_agree(tiny_model_dir):
    model, _ = made(tiny_model_dir)
    ids, lengths = np.zeros((len(ROWS), 9), np.int32), mx.array([len(row) for row in ROWS])
    for at, row in enumerate(ROWS):
        ids[at, : len(row)] = row
    everywhere = np.array(model(mx.array(ids)))
    assert everywhere.shape == (4, 9)
    assert everywhere.dtype == np.float32
    at_ends = np.array(model.score(mx.array(ids), lengths))
    np.testing.assert_allclose(
        at_ends, [everywhere[at, len(row) - 1] for at, row in enumerate(ROWS)], atol=1e-6
    )
    np.testing.assert_allclose(score_rows(model, ROWS, batch_size=3), at_ends, atol=1e-6)


def test_a_score_is_read_before_trailing_padding_tokens_as_transformers_does():
    assert ends([[5, 6, 0], [5, 0, 6], [0, 0], [7]], 0) == [2, 3, 1, 1]
    assert ends([[5, 6, 0]], None) == [3]


@pytest.mark.parametrize("name", ["llama-tiny", "qwen2-tiny", "qwen3-tiny"])
def test_a_saved_model_has_transformers_layout_and_loads_equal(name, tmp_path):
    model, tokenizer = made(PARITY / "models" / name)
    save_score_model(model, tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    family = name.partition("-")[0].capitalize()
    assert config["architectures"] == [f"{family}ForSequenceClassification"]
    assert (config["num_labels"], config["id2label"], config["pad_token_id"]) == (
        1,
        {"0": "LABEL_0"},
        0,
    )
    weights = mx.load(str(tmp_path / "model.safetensors"))
    assert weights["score.weight"].shape == (1, config["hidden_size"])
    assert {key.partition(".")[0] for key in weights} == {"model", "score"}
    assert is_reward_model(tmp_path)
    again, _ = load_reward_model(tmp_path, dtype="float32")
    np.testing.assert_array_equal(score_rows(again, ROWS), score_rows(model, ROWS))


def test_adapters_and_head_are_saved_together(tiny_model_dir, tmp_path):
    model, tokenizer = made(tiny_model_dir, LoRAConfig(rank=2))
    for layer in adapters_of(model).values():
        layer.lora_b = layer.lora_b + 0.1
    save_score_model(model, tokenizer, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
        "score.safetensors",
    ]
    assert is_reward_model(tmp_path)
    again, _ = load_reward_model(tmp_path, dtype="float32")
    np.testing.assert_array_equal(score_rows(again, ROWS), score_rows(model, ROWS))


def test_new_adapters_go_on_a_reward_model(tiny_model_dir, tmp_path):
    model, tokenizer = made(tiny_model_dir)
    save_score_model(model, tokenizer, tmp_path)
    again, _ = load_reward_model(tmp_path, lora=LoRAConfig(rank=2), dtype="float32")
    np.testing.assert_allclose(score_rows(again, ROWS), score_rows(model, ROWS), atol=1e-6)
    assert [name for name, _ in tree_flatten(again.trainable_parameters()) if "lora" in name]


def test_what_is_no_reward_model_says_so(tiny_model_dir, tmp_path):
    assert not is_reward_model(tiny_model_dir)
    with pytest.raises(ModelError, match="is no reward model"):
        load_reward_model(tiny_model_dir)
    model, tokenizer = made(tiny_model_dir)
    save_score_model(model, tokenizer, tmp_path)
    weights = mx.load(str(tmp_path / "model.safetensors"))
    weights["score.weight"] = mx.zeros((3, weights["score.weight"].shape[1]))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    with pytest.raises(ModelError, match="has 3 labels"):
        load_reward_model(tmp_path)


def test_an_adapter_without_a_head_says_so(tiny_model_dir, tmp_path):
    from chuk_lib.models import save_pretrained

    model, tokenizer = load_model(tiny_model_dir, LoRAConfig(rank=2))
    save_pretrained(model, tokenizer, tmp_path)
    with pytest.raises(ModelError, match="has no score head"):
        load_reward_model(tmp_path)
