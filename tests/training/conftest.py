"""Small data sets that a tiny model learns, and a short way to train on them."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib.models import load_model
from chuk_lib.training import SFTConfig, train_sft

WORDS = ["red", "green", "blue", "black", "white", "brown", "grey", "pink"]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def toy_rows(count, offset=0):
    """Prompts and completions of varied length, no two alike."""
    return [
        {
            "prompt": f"{WORDS[i % 8]} {i + offset}: ",
            "completion": " ".join(WORDS[(i + k) % 8] for k in range(1 + i % 5)),
        }
        for i in range(count)
    ]


@pytest.fixture
def toy_data(tmp_path):
    """A folder with 37 training rows (no multiple of any batch size) and 9 validation rows."""
    folder = tmp_path / "toy"
    folder.mkdir()
    write_rows(folder / "train.jsonl", toy_rows(37))
    write_rows(folder / "valid.jsonl", toy_rows(9, offset=100))
    return folder


@pytest.fixture
def sft_config(tiny_model_dir, toy_data, tmp_path):
    """Makes an SFTConfig for the tiny model and the toy data; keyword arguments change it."""

    def make(name="run", **changes):
        config = SFTConfig(
            model=str(tiny_model_dir),
            data=str(toy_data),
            output=str(tmp_path / name),
            max_steps=12,
            batch_size=4,
            learning_rate=3e-3,
            log_interval=1,
            checkpoint_interval=1000,
        )
        return replace(config, **changes)

    return make


@pytest.fixture
def train(sft_config):
    """Train with changed settings; returns the result."""
    return lambda name="run", **changes: train_sft(sft_config(name, **changes))


def weights_of(source):
    """All parameters of a run or model folder, by name, as NumPy arrays."""
    model, _ = load_model(source, dtype="float32")
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


def logits_of(source, ids=(5, 9, 14, 7, 21)):
    """Logits of a run or model folder on a fixed row."""
    model, _ = load_model(source, dtype="float32")
    return np.array(model(mx.array([list(ids)])))


def assert_same_bits(first, second):
    """Two dictionaries of arrays hold the same bits under the same names."""
    assert set(first) == set(second)
    different = [name for name in first if first[name].tobytes() != second[name].tobytes()]
    assert different == []
