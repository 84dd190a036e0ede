"""Advantages against arithmetic written out by hand, and TRL's numbers."""

import numpy as np
import pytest

from chuk_lib import parity
from chuk_lib.training.utils.advantages import (
    Scored,
    combine,
    globally_normalized,
    group_relative,
    leave_one_out,
    normalized_then_summed,
    reward_metrics,
)
from tests.conftest import ROOT

NAN = float("nan")
REWARDS = np.array([1.0, 0.0, 2.0, 1.0, 5.0, 5.0, 5.0, 5.0])


def test_advantages_are_trl_s():
    checks = parity.run(ROOT / "tests" / "fixtures" / "parity", ["advantages"])
    assert len(checks) > 140
    assert [check.name for check in checks if not check.passed] == []


def test_a_completion_is_compared_with_its_group():
    got = group_relative(Scored(REWARDS, 4), "none")
    np.testing.assert_allclose(got, [0, -1, 1, 0, 0, 0, 0, 0], atol=1e-6)
    spread = np.std([1, 0, 2, 1], ddof=1)
    np.testing.assert_allclose(
        group_relative(Scored(REWARDS, 4))[:4], np.array([0, -1, 1, 0]) / (spread + 1e-4)
    )
    whole = np.std(REWARDS, ddof=1)
    np.testing.assert_allclose(
        group_relative(Scored(REWARDS, 4), "batch")[1], -1 / (whole + 1e-4), rtol=1e-6
    )


def test_equal_rewards_give_exactly_nothing():
    rewards = np.full(8, 0.1, np.float64)
    assert not group_relative(Scored(rewards, 8)).any()
    assert not leave_one_out(Scored(rewards, 8)).any()
    assert reward_metrics(Scored(rewards, 4))["frac_reward_zero_std"] == 1.0


def test_leave_one_out_is_the_reward_less_the_mean_of_the_others():
    got = leave_one_out(Scored(REWARDS[:4], 4))
    want = [reward - np.delete(REWARDS[:4], i).mean() for i, reward in enumerate(REWARDS[:4])]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_what_cannot_be_scored_counts_nowhere():
    rewards = np.array([1.0, NAN, 3.0, 2.0])
    for got in (group_relative(Scored(rewards, 4), "none"), leave_one_out(Scored(rewards, 4))):
        assert got[1] == 0
        assert got[3] == pytest.approx(0)
    assert group_relative(Scored(np.full(4, NAN), 4)).tolist() == [0, 0, 0, 0]
    assert reward_metrics(Scored(rewards, 4))["reward"] == 2.0
    assert Scored(np.array([NAN, NAN, 1, 2]), 2).is_flat.tolist() == [True, False]


def test_weights_and_unscorable_parts():
    scores = np.array([[1.0, 2.0], [NAN, 2.0], [NAN, NAN]], np.float32)
    np.testing.assert_allclose(combine(scores, (1.0, 0.5)), [2.0, 1.0, NAN])


def test_gdpo_gives_each_reward_the_same_voice():
    scores = np.array([[0, 0], [1, 0], [0, 100], [1, 100]], np.float32)
    got = normalized_then_summed(scores, (1.0, 1.0), 4)
    assert got[1] == pytest.approx(got[2], abs=1e-3)
    assert got[0] == pytest.approx(-got[3], abs=1e-3)


def test_reinforce_normalises_over_tokens():
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0]], np.float32)
    got = globally_normalized(Scored(np.array([1.0, 0.0]), 1), mask)
    assert got.shape == (2, 1)
    mean, spread = 4 / 5, np.sqrt(4 / 25)
    np.testing.assert_allclose(got[:, 0], [(1 - mean) / spread, (0 - mean) / spread], rtol=1e-5)
    assert (got * mask).sum() == pytest.approx(0, abs=1e-5)


def test_reinforce_pays_for_kl_from_each_token_on():
    mask = np.ones((2, 3), np.float32)
    kl = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], np.float32)
    got = globally_normalized(Scored(np.array([1.0, 1.0]), 1), mask, kl, beta=0.5)
    returns = np.array([[0.5, 1, 1], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(got, (returns - returns.mean()) / returns.std(), rtol=1e-5)


def test_reinforce_with_a_baseline_is_centred_in_each_group_first():
    mask = np.ones((4, 2), np.float32)
    got = globally_normalized(Scored(np.array([1.0, 0.0, 11.0, 10.0]), 2), mask, baseline=True)
    np.testing.assert_allclose(got[:, 0], [1, -1, 1, -1], rtol=1e-5)
