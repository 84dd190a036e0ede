"""Gradient checkpointing: the same loss and gradients, for one model and not its class, dropout
included."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib.models import (
    LoRAConfig,
    checkpoint_layers,
    load_model,
    set_trainable,
    uncheckpoint_layers,
)
from tests.models.parity_models import IDS, LLAMA, logits, parameters, shake_adapters, trainable


def loss_and_gradient(model: Any) -> tuple[float, dict[str, np.ndarray]]:
    def loss(ids: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:]).mean()

    value, gradient = nn.value_and_grad(model, loss)(IDS)
    return value.item(), {name: np.array(value) for name, value in tree_flatten(gradient)}


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2, targets=("all-linear",))])
def test_loss_and_gradients_are_the_same(lora: LoRAConfig | None) -> None:
    model, _ = load_model(LLAMA, lora)
    if lora is None:
        set_trainable(model, lora=False)
    else:
        shake_adapters(model)
    model.train()
    names = list(parameters(model))
    loss, gradient = loss_and_gradient(model)
    assert checkpoint_layers(model) == 2
    again, recomputed = loss_and_gradient(model)
    assert again == pytest.approx(loss, abs=1e-6)
    assert recomputed.keys() == gradient.keys()
    for name, value in gradient.items():
        np.testing.assert_allclose(recomputed[name], value, atol=1e-6)
    assert list(parameters(model)) == names


def test_other_models_and_eval_mode_are_left_alone() -> None:
    model, other = load_model(LLAMA)[0], load_model(LLAMA)[0]
    plain = type(other.model.layers[0])
    checkpoint_layers(model)
    checkpoint_layers(model)
    assert type(model.model.layers[0]) is not plain
    assert isinstance(model.model.layers[0], plain)
    assert type(other.model.layers[0]) is plain
    np.testing.assert_array_equal(logits(model), logits(other))
    uncheckpoint_layers(model)
    assert type(model.model.layers[0]) is plain


def test_two_passes_in_one_loss() -> None:
    """As a preference loss does: the second pass must see the parameters that the gradient is taken
    for."""
    model, _ = load_model(LLAMA)
    set_trainable(model, lora=False)
    model.train()

    def gradient() -> dict[str, Any]:
        def loss() -> mx.array:
            return (model(IDS[:1]) * 0.1).sum() - (model(IDS[1:]) ** 2).mean()

        return dict(tree_flatten(nn.value_and_grad(model, loss)()[1]))

    expected = gradient()
    checkpoint_layers(model)
    for name, value in gradient().items():
        np.testing.assert_allclose(np.array(value), np.array(expected[name]), rtol=1e-4, atol=1e-4)


def test_dropout_is_the_same_in_both_runs_of_a_block() -> None:
    """The gradient with dropout is that of the loss with the same drops: compared with finite
    differences."""
    model, _ = load_model(LLAMA, LoRAConfig(rank=4, dropout=0.5))
    shake_adapters(model)
    checkpoint_layers(model)
    model.train()

    def loss_at(weights: list[tuple[str, mx.array]]) -> float:
        model.load_weights(weights, strict=False)
        mx.random.seed(7)
        return loss_and_gradient(model)[0]

    start = list(trainable(model).items())
    mx.random.seed(7)
    _, gradient = loss_and_gradient(model)
    generator = np.random.default_rng(0)
    for _ in range(3):
        way = {name: generator.normal(size=value.shape).astype(np.float32) for name, value in start}
        step = 1e-3
        up, down = (
            loss_at([(n, v + sign * step * mx.array(way[n])) for n, v in start]) for sign in (1, -1)
        )
        slope = sum(float((gradient[name] * way[name]).sum()) for name in way)
        assert (up - down) / (2 * step) == pytest.approx(slope, rel=0.01, abs=1e-3)


@pytest.mark.slow
def test_compiled_training_step_with_dropout() -> None:
    model, _ = load_model(LLAMA, LoRAConfig(rank=4, dropout=0.3))
    shake_adapters(model)
    checkpoint_layers(model)
    model.train()

    def loss(ids: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:]).mean()

    step, state = nn.value_and_grad(model, loss), [model.state, mx.random.state]
    compiled = mx.compile(lambda ids: step(ids), inputs=state, outputs=state)
    first, second = (compiled(IDS)[0].item() for _ in range(2))
    assert first != second
    mx.random.seed(1)
    third = compiled(IDS)[0].item()
    mx.random.seed(1)
    assert compiled(IDS)[0].item() == third
