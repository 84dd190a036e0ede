"""GAE and whitening against slow versions written from their definitions."""

import numpy as np
import pytest

from chuk_lib.training.utils.gae import gae, whiten


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sum_of_discounted_errors(rewards, values, gamma, lam):
    """A_t = Σ_k (γλ)^k·δ_{t+k} for one row, by the definition."""
    following = [*values[1:], 0.0]
    errors = [
        reward + gamma * after - value
        for reward, value, after in zip(rewards, values, following, strict=True)
    ]
    return [
        sum((gamma * lam) ** (later - step) * errors[later] for later in range(step, len(errors)))
        for step in range(len(errors))
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_discounted_sums_of_errors(gamma, lam):
    rewards, values = noise(3, 7), noise(3, 7, seed=1)
    got = gae(rewards, values, gamma=gamma, lam=lam)
    want = [sum_of_discounted_errors(*row, gamma, lam) for row in zip(rewards, values, strict=True)]
    np.testing.assert_allclose(got.advantages, want, atol=1e-5)
    np.testing.assert_allclose(got.returns, got.advantages + values, atol=1e-6)


def test_with_lambda_1_returns_are_the_discounted_rewards():
    rewards = noise(2, 5)
    got = gae(rewards, noise(2, 5, seed=1), gamma=0.5, lam=1.0)
    want = [
        [sum(0.5 ** (k - t) * row[k] for k in range(t, 5)) for t in range(5)] for row in rewards
    ]
    np.testing.assert_allclose(got.returns, want, atol=1e-5)


def test_what_lies_behind_a_mask_is_not_there():
    rewards, values = noise(2, 6), noise(2, 6, seed=1)
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    got = gae(rewards, values, gamma=0.9, lam=0.8, mask=mask)
    short = gae(rewards[:1, :4], values[:1, :4], gamma=0.9, lam=0.8)
    np.testing.assert_allclose(got.advantages[0, :4], short.advantages[0], atol=1e-6)
    assert not got.advantages[0, 4:].any()
    assert not got.returns[0, 4:].any()


def test_an_episode_that_ended_learns_nothing_from_the_next():
    rewards, values = noise(1, 6), noise(1, 6, seed=1)
    dones = np.array([[0, 0, 1, 0, 0, 1]])
    got = gae(rewards, values, gamma=0.9, lam=0.8, dones=dones)
    parts = [
        gae(rewards[:, part], values[:, part], gamma=0.9, lam=0.8)
        for part in (slice(0, 3), slice(3, 6))
    ]
    np.testing.assert_allclose(
        got.advantages, np.concatenate([part.advantages for part in parts], axis=1), atol=1e-6
    )


def test_a_row_that_was_cut_goes_on_with_its_last_value():
    rewards, values = noise(2, 6), noise(2, 6, seed=1)
    whole = gae(rewards, values, gamma=0.9, lam=0.0)
    cut = gae(rewards[:, :4], values[:, :4], gamma=0.9, lam=0.0, last_values=values[:, 4])
    np.testing.assert_allclose(cut.advantages, whole.advantages[:, :4], atol=1e-6)


def test_whitening_is_over_what_the_mask_keeps():
    values, mask = noise(4, 5) * 3 + 2, noise(4, 5, seed=2) > -0.5
    got = whiten(values, mask)
    assert got[mask].mean() == pytest.approx(0, abs=1e-6)
    assert got[mask].std(ddof=1) == pytest.approx(1, abs=1e-5)
    assert not got[~mask].any()
    kept = whiten(values, mask, shift_mean=False)
    assert kept[mask].mean() == pytest.approx(values[mask].mean(), abs=1e-5)


@pytest.mark.parametrize(("mask", "want"), [([[1, 0]], [[0.0, 0.0]]), ([[0, 0]], [[0.0, 0.0]])])
def test_whitening_one_value_or_none(mask, want):
    np.testing.assert_array_equal(whiten(np.array([[3.0, 4.0]]), np.array(mask)), want)


def test_a_hole_in_a_row_is_as_if_it_were_not_there():
    rewards, values = noise(2, 6), noise(2, 6, seed=1)
    mask = np.array([[1, 0, 0, 1, 1, 1], [1, 1, 0, 1, 0, 0]])
    got = gae(rewards, values, gamma=0.9, lam=0.8, mask=mask)
    for row, kept in enumerate(mask > 0):
        alone = gae(rewards[row : row + 1, kept], values[row : row + 1, kept], gamma=0.9, lam=0.8)
        np.testing.assert_array_equal(got.advantages[row, kept], alone.advantages[0])
        np.testing.assert_array_equal(got.returns[row, kept], alone.returns[0])
        assert not got.advantages[row, ~kept].any()
        assert not got.returns[row, ~kept].any()
