"""Gradients by hand against finite differences and against MLX's autograd, and the cells against
MLX's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib.experts.base import RNNExpertBase, RunningNorm
from chuk_lib.experts.cells import gru_forward, lstm_forward
from chuk_lib.experts.config import KINDS, ExpertConfig, ExpertPPOConfig
from chuk_lib.experts.learner import NumpyLearner, losses_and_gradients
from chuk_lib.experts.module import ExpertModule
from chuk_lib.experts.ppo import ExpertPPO
from chuk_lib.experts.registry import create_expert
from chuk_lib.training.algorithm import Update
from chuk_lib.training.optimizers import build_optimizer, decayed_parameters
from chuk_lib.training.updater import Updater

STEPS, ROWS, WIDTH = 7, 5, 6
SETTINGS = ExpertPPOConfig(env="gym:CartPole-v1", entropy_coef=0.02, cliprange_value=0.3)
CONTINUOUS = {"action_dim": 2, "action_low": (-2.0, 0.0), "action_high": (2.0, 1.0)}
DISCRETE = {"discrete_actions": True, "num_actions": 3}


def expert_of(kind: str, head: dict[str, Any], layers: int = 2) -> RNNExpertBase:
    """An expert whose heads are no longer as small as they begin."""
    config = ExpertConfig(name="test", obs_dim=4, hidden_dim=WIDTH, num_layers=layers, **head)
    expert = create_expert(kind, config, seed=3)
    expert.flat += np.random.default_rng(1).normal(size=expert.flat.size).astype(np.float32) * 0.2
    return expert


def batch_of(expert: RNNExpertBase, dtype: Any = np.float64) -> dict[str, Any]:
    """A rollout with episodes that begin inside, of a policy that is not quite the present one."""
    rng = np.random.default_rng(5)
    seen = rng.normal(size=(STEPS, ROWS, 4)).astype(dtype)
    keep = (rng.random((STEPS, ROWS)) > 0.25).astype(dtype)
    state = rng.normal(size=(ROWS, expert.state_size)).astype(dtype)
    made = expert.to(dtype).forward(seen, state, keep)
    spread = expert.weights.get("log_std")
    flat = made.policy.reshape(-1, made.policy.shape[-1])
    raw = expert.actions.sample(flat, spread, rng)
    raw = raw.reshape(STEPS, ROWS) if spread is None else raw.reshape(STEPS, ROWS, -1).astype(dtype)
    logps = (
        expert.actions.judge(made.policy, spread, raw).logps + rng.normal(size=(STEPS, ROWS)) * 0.3
    )
    values = made.values + rng.normal(size=(STEPS, ROWS)) * 0.5
    found = {
        "seen": seen,
        "raw": raw,
        "keep": keep,
        "state": state,
        "logps": logps,
        "values": values,
        "advantages": rng.normal(size=(STEPS, ROWS)),
        "returns": values + rng.normal(size=(STEPS, ROWS)),
    }
    typed = {
        name: value.astype(dtype) if value.dtype.kind == "f" else value
        for name, value in found.items()
    }
    return typed | {"cliprange": dtype(0.2)}


@pytest.mark.parametrize("head", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(kind: str, head: dict[str, Any]) -> None:
    expert = expert_of(kind, head).to(np.float64)
    batch = batch_of(expert)
    _, gradients = losses_and_gradients(expert, batch, SETTINGS)
    size, step = STEPS * ROWS, 1e-6
    for name, weights in expert.weights.items():
        flat, slope = weights.reshape(-1), gradients[name].reshape(-1)
        for place in np.random.default_rng(0).permutation(flat.size)[:25]:
            was = flat[place]
            sides = []
            for moved in (was + step, was - step):
                flat[place] = moved
                sides.append(losses_and_gradients(expert, batch, SETTINGS)[0]["total"] / size)
            flat[place] = was
            assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(
                slope[place], abs=1e-4, rel=1e-4
            ), name
    assert all(np.abs(value).max() > 1e-4 for value in gradients.values())


@pytest.mark.parametrize("head", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_updates_are_those_of_mlx(kind: str, head: dict[str, Any]) -> None:
    """Losses, metrics, gradient norm and weights after some updates, by hand in NumPy and by the
    engine in MLX."""
    settings = replace(SETTINGS, optimizer="adamw", weight_decay=0.01)
    expert, twin = expert_of(kind, head), expert_of(kind, head)
    batch = batch_of(expert, np.float32)
    module = ExpertModule(twin)
    algorithm = ExpertPPO.__new__(ExpertPPO)
    algorithm.expert, algorithm.config, algorithm.model = twin, settings, module
    ours = NumpyLearner(expert, settings, decayed_parameters(module))
    theirs = Updater(algorithm, build_optimizer(settings, module), settings.max_grad_norm)
    for _ in range(5):
        mine = ours(Update([batch], float(STEPS * ROWS), {}), 3e-3)
        other = theirs(
            Update([{k: mx.array(v) for k, v in batch.items()}], float(STEPS * ROWS), {}), 3e-3
        )
        assert set(mine) == set(other)
        for name, value in mine.items():
            assert value == pytest.approx(other[name], rel=1e-4, abs=1e-4), name
    for name, value in tree_flatten(module.parameters()):
        np.testing.assert_allclose(expert.weights[name], np.array(value), atol=2e-5, err_msg=name)
    module.write_back()
    np.testing.assert_allclose(twin.flat, expert.flat, atol=2e-5)


@pytest.mark.parametrize(("kind", "forward"), [("gru", gru_forward), ("lstm", lstm_forward)])
def test_a_cell_is_that_of_mlx(kind: str, forward: Any) -> None:
    cell = nn.GRU(4, WIDTH) if kind == "gru" else nn.LSTM(4, WIDTH)
    weights = {name: np.array(value) for name, value in tree_flatten(cell.parameters())}
    x = np.random.default_rng(0).normal(size=(STEPS, ROWS, 4)).astype(np.float32)
    state = np.zeros((ROWS, WIDTH * (1 if kind == "gru" else 2)), np.float32)
    found = forward(weights, x, state, np.ones((STEPS, ROWS), np.float32))
    theirs = cell(mx.array(x.swapaxes(0, 1)))
    outputs = theirs if kind == "gru" else theirs[0]
    np.testing.assert_allclose(found.outputs.swapaxes(0, 1), np.array(outputs), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_goes_over_the_beginning_of_an_episode(kind: str) -> None:
    """What came before it changes neither outputs nor, through them, gradients."""
    expert = expert_of(kind, DISCRETE)
    batch = batch_of(expert, np.float32)
    keep = np.ones_like(batch["keep"])
    keep[3] = 0
    other = batch["seen"].copy()
    other[:3] += 1
    found = [expert.forward(seen, batch["state"], keep) for seen in (batch["seen"], other)]
    np.testing.assert_array_equal(found[0].policy[3:], found[1].policy[3:])
    slope = np.zeros_like(found[0].policy)
    slope[3:] = 1
    slopes = [expert.backward(one.kept, slope, np.zeros_like(keep)) for one in found]
    for name, value in slopes[0].items():
        np.testing.assert_allclose(value, slopes[1][name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_step_by_step_is_the_whole_sequence(kind: str) -> None:
    expert = expert_of(kind, DISCRETE)
    batch = batch_of(expert, np.float32)
    whole = expert.forward(batch["seen"], batch["state"], batch["keep"])
    state = batch["state"]
    for t in range(STEPS):
        made = expert.forward(batch["seen"][t : t + 1], state, batch["keep"][t : t + 1])
        state = made.state
        np.testing.assert_allclose(made.policy[0], whole.policy[t], atol=1e-5)
    np.testing.assert_allclose(state, whole.state, atol=1e-5)


def test_the_running_norm_is_that_of_all_rows() -> None:
    rows = np.random.default_rng(0).normal(3, 5, size=(300, 4))
    norm = RunningNorm(4)
    for part in np.split(rows, 50):
        norm.see(part)
    np.testing.assert_allclose(norm.mean, rows.mean(0), rtol=1e-4)
    np.testing.assert_allclose(norm.var, rows.var(0), rtol=1e-4)
