"""What an expert does: actions and their log-probabilities, saving and loading, presets, the
registry."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.experts import (
    ExpertConfig,
    ExpertRegistry,
    GRUExpert,
    create_expert,
    create_preset,
    load_expert,
)
from chuk_lib.experts.actions import Actions
from chuk_lib.experts.base import RunningNorm
from chuk_lib.experts.config import KINDS
from chuk_lib.experts.registry import PRESETS

CART = ExpertConfig(
    name="cart", obs_dim=4, discrete_actions=True, num_actions=2, hidden_dim=8, num_layers=1
)
ARM = ExpertConfig(
    name="arm",
    obs_dim=3,
    action_dim=1,
    action_low=-2.0,
    action_high=3.0,
    hidden_dim=8,
    num_layers=1,
)


def test_the_density_of_bounded_actions_integrates_to_one() -> None:
    """Exact: with what tanh and the bounds take off. Summed over a fine grid of the actions
    themselves."""
    actions, spread = Actions(ARM), np.array([0.3])
    grid = np.linspace(-2, 3, 200_001)[1:-1]
    raw = np.arctanh((grid + 2) / 5 * 2 - 1)[:, None]
    np.testing.assert_allclose(actions.of(raw)[:, 0], grid, atol=1e-5)
    logps = actions.judge(np.full_like(raw, 0.7), spread, raw).logps
    assert np.trapezoid(np.exp(logps), grid) == pytest.approx(1, abs=1e-3)


def test_log_probabilities_are_those_of_mlx_and_choices_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(6, 2)).astype(np.float32)
    choices = Actions(CART)
    both = [choices.judge(outputs, None, np.full(6, number)) for number in (0, 1)]
    np.testing.assert_allclose(np.exp(both[0].logps) + np.exp(both[1].logps), 1, atol=1e-6)
    theirs = choices.judge_mlx(mx.array(outputs), None, mx.array(np.full(6, 1)))
    np.testing.assert_allclose(np.array(theirs[0]), both[1].logps, atol=1e-6)
    np.testing.assert_allclose(np.array(theirs[1]), both[1].entropy, atol=1e-6)
    numbers, spread = Actions(ARM), np.array([-0.4], np.float32)
    raw = rng.normal(size=(6, 1)).astype(np.float32) * 3
    ours = numbers.judge(outputs[:, :1], spread, raw)
    found = numbers.judge_mlx(mx.array(outputs[:, :1]), mx.array(spread), mx.array(raw))
    np.testing.assert_allclose(np.array(found[0]), ours.logps, atol=1e-4)


def test_actions_are_drawn_with_their_probabilities() -> None:
    outputs = np.log(np.tile([[0.2, 0.8]], (20_000, 1)))
    drawn = Actions(CART).sample(outputs, None, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [CART, ARM], ids=["discrete", "continuous"])
def test_saved_and_read_it_does_the_same(kind: str, config: ExpertConfig, tmp_path: Path) -> None:
    expert = create_expert(kind, config, seed=1)
    expert.norm = RunningNorm(config.obs_dim)
    rows = np.random.default_rng(0).normal(2, 3, size=(5, config.obs_dim))
    expert.norm.see(rows)
    expert.about = {"env": "gym:CartPole-v1"}
    expert.save(tmp_path)
    other = load_expert(tmp_path)
    assert (other.kind, other.config, other.about) == (kind, config, expert.about)
    state = expert.initial_state(5)
    for _ in range(3):
        mine, theirs = (
            expert(rows, state, deterministic=True),
            other(rows, state, deterministic=True),
        )
        for part in mine._fields:
            np.testing.assert_array_equal(getattr(mine, part), getattr(theirs, part))
        state = mine.state


def test_a_folder_without_an_expert_and_weights_of_another_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no expert"):
        load_expert(tmp_path)
    GRUExpert(CART).save(tmp_path)
    with pytest.raises(ModelError, match="does not fit"):
        GRUExpert(ARM).read(tmp_path)
    with pytest.raises(ConfigError, match="takes observations of 4 numbers, not 3"):
        GRUExpert(CART)(np.zeros((1, 3)))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_experts(name: str) -> None:
    expert = create_preset(name, hidden_dim=16)
    choice = expert(np.zeros((2, expert.config.obs_dim)), deterministic=True)
    assert choice.action.shape == (
        (2,) if expert.config.discrete_actions else (2, expert.config.action_dim)
    )
    assert choice.state.shape == (2, expert.state_size)
    with pytest.raises(ConfigError, match="unknown preset"):
        create_preset("none")
    with pytest.raises(ConfigError, match="unknown expert"):
        create_expert("rnn", expert.config)


def test_a_registry_plays_its_experts_and_keeps_them(tmp_path: Path) -> None:
    registry = ExpertRegistry()
    registry.create("gru", CART, seed=2)
    assert "cart" in registry
    first = registry.step("cart", np.ones(4))
    second = registry.step("cart", np.ones(4))
    assert not np.array_equal(first.state, second.state)
    registry.reset()
    np.testing.assert_array_equal(registry.step("cart", np.ones(4)).state, first.state)
    with pytest.raises(ConfigError, match="already"):
        registry.create("gru", CART)
    with pytest.raises(ConfigError, match="registered: cart"):
        registry.step("other", np.ones(4))
    registry.save(tmp_path)
    loaded = ExpertRegistry.load(tmp_path)
    assert list(loaded) == ["cart"]
    np.testing.assert_array_equal(loaded.step("cart", np.ones(4)).state, first.state)
