"""The reference policy: what it is, that it costs no copy where it need not, and how it moves."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from chuk_lib.errors import ConfigError
from chuk_lib.models import LoRAConfig, create_model, load_model, save_pretrained, set_trainable
from chuk_lib.training.reference import Reference

IDS = mx.array([[5, 9, 4, 7, 3]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return create_model("micro", tmp_path_factory.mktemp("reference") / "model")


def logits(model):
    return np.array(model(IDS))


def train_a_little(model):
    model.update(tree_map(lambda leaf: leaf + 0.05, model.trainable_parameters()))


def test_new_adapters_are_switched_off_and_nothing_is_copied(folder):
    model, tokenizer = load_model(folder, LoRAConfig(rank=2))
    set_trainable(model, lora=True, num_layers=None)
    base = logits(load_model(folder)[0])
    reference = Reference.of(model, tokenizer=tokenizer)
    train_a_little(model)
    trained = logits(model)
    assert not np.allclose(trained, base)
    with reference.active() as quiet:
        np.testing.assert_allclose(logits(quiet), base, atol=1e-5)
    np.testing.assert_array_equal(logits(model), trained)
    assert reference.arrays() == {}


def test_adapters_that_were_there_before_are_the_reference(folder, tmp_path):
    model, tokenizer = load_model(folder, LoRAConfig(rank=2))
    set_trainable(model, lora=True, num_layers=None)
    train_a_little(model)
    save_pretrained(model, tokenizer, tmp_path)
    model, tokenizer = load_model(tmp_path)
    set_trainable(model, lora=True, num_layers=None)
    before = logits(model)
    reference = Reference.of(model, tokenizer=tokenizer)
    train_a_little(model)
    with reference.active() as kept:
        np.testing.assert_allclose(logits(kept), before, atol=1e-6)
    sizes = sum(array.size for array in reference.arrays().values())
    assert sizes == sum(leaf.size for _, leaf in tree_flatten(model.trainable_parameters()))


def test_whole_weights_are_kept_as_they_were_and_shared_until_the_first_update(folder):
    model, tokenizer = load_model(folder, dtype="float32")
    before = logits(model)
    reference = Reference.of(model, tokenizer=tokenizer)
    assert all(
        array is dict(tree_flatten(model.parameters()))[name]
        for name, array in reference.arrays().items()
    )
    train_a_little(model)
    with reference.active() as kept:
        np.testing.assert_array_equal(logits(kept), before)


def test_a_reference_moves_towards_the_policy_and_is_restored(folder):
    model, tokenizer = load_model(folder, dtype="float32")
    reference = Reference.of(model, tokenizer=tokenizer, moves=True)
    start = {name: np.array(array) for name, array in reference.arrays().items()}
    train_a_little(model)
    reference.sync(0.25)
    for name, array in reference.arrays().items():
        np.testing.assert_allclose(np.array(array), start[name] + 0.25 * 0.05, atol=1e-6)
    again = Reference.of(load_model(folder, dtype="float32")[0], tokenizer=tokenizer, moves=True)
    again.restore(reference.arrays())
    with again.active() as ours, reference.active() as theirs:
        np.testing.assert_array_equal(logits(ours), logits(theirs))


def test_a_second_model_needs_the_same_vocabulary(folder, tmp_path):
    other = create_model("micro", tmp_path / "other", tokenizer="bytes")
    model, tokenizer = load_model(folder)
    with pytest.raises(ConfigError, match="has another vocabulary"):
        Reference.of(model, str(other), tokenizer)
    same = Reference.of(model, str(folder), tokenizer)
    with same.active() as second:
        assert second is not model
        np.testing.assert_allclose(logits(second), logits(model), atol=1e-5)
