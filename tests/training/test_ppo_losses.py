"""PPO's numbers: TRL's fixtures through the parity suite, and properties that need no model."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib import parity
from chuk_lib.errors import ConfigError
from chuk_lib.training.losses.ppo import (
    PPOOptions,
    RewardOptions,
    Sampled,
    learn_from,
    penalised_scores,
    ppo_loss,
    score_positions,
    token_kl,
    value_steps,
)
from tests.conftest import ROOT

FIXTURES = Path(ROOT) / "tests" / "fixtures" / "parity"


def test_rollouts_updates_and_whitening_are_trl_s():
    checks = parity.run(FIXTURES, ["ppo"])
    assert len(checks) > 70
    assert [check.name for check in checks if not check.passed] == []


def written(lengths, width):
    """Masks of completions that the model wrote alone."""
    return (np.arange(width)[None] < np.array(lengths)[:, None]).astype(np.float32)


def batch(rows=6, width=8, seed=0):
    """Arrays of a mini-batch that differs from its old policy and values."""
    noise = np.random.default_rng(seed)
    mask = written(noise.integers(0, width, rows) + 1, width)
    value_mask = np.pad(mask, ((0, 0), (1, 0)), constant_values=1.0)
    draw = lambda *shape: noise.normal(size=shape).astype(np.float32)  # noqa: E731
    given = {
        "mask": mask,
        "old_logps": draw(rows, width) * mask,
        "advantages": draw(rows, width) * mask,
        "value_mask": value_mask,
        "old_values": draw(rows, width + 1),
        "returns": draw(rows, width + 1),
        "token_share": np.float32(1 / mask.sum()),
        "value_share": np.float32(1 / value_mask.sum()),
    }
    model = [draw(rows, width) * mask, np.abs(draw(rows, width)) * mask, draw(rows, width + 1)]
    return {name: mx.array(value) for name, value in given.items()}, [
        mx.array(part) for part in model
    ]


def test_micro_batches_add_up_to_their_mini_batch():
    arrays, model = batch()
    whole = ppo_loss(*model, arrays, PPOOptions())
    parts = []
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        some = {name: value if value.ndim == 0 else value[rows] for name, value in arrays.items()}
        parts.append(ppo_loss(*(part[rows] for part in model), some, PPOOptions()))
    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item(), rel=1e-5)
    assert sum(part.weight.item() for part in parts) == pytest.approx(1.0)
    for name, value in whole.metrics.items():
        assert sum(part.metrics[name].item() for part in parts) == pytest.approx(
            value.item(), rel=1e-4, abs=1e-6
        )


def test_a_policy_that_has_not_moved_has_ratio_1_and_the_plain_gradient():
    arrays, (logps, entropy, values) = batch()
    arrays["old_logps"] = logps
    loss = lambda now: ppo_loss(now, entropy, values, arrays, PPOOptions(vf_coef=0.0)).total  # noqa: E731
    gradient = mx.grad(loss)(logps)
    want = -arrays["advantages"] * arrays["mask"] * arrays["token_share"]
    np.testing.assert_allclose(np.array(gradient), np.array(want), atol=1e-6)
    metrics = ppo_loss(logps, entropy, values, arrays, PPOOptions()).metrics
    assert metrics["val/ratio"].item() == pytest.approx(1.0)
    assert metrics["policy/approxkl_avg"].item() == 0.0


def test_a_ratio_beyond_its_range_has_no_gradient():
    arrays, (logps, entropy, values) = batch()
    arrays["advantages"], arrays["old_logps"] = mx.ones_like(logps), logps - 1.0
    loss = lambda now: ppo_loss(now, entropy, values, arrays, PPOOptions(vf_coef=0.0)).total  # noqa: E731
    assert not np.array(mx.grad(loss)(logps)).any()


def test_values_beyond_their_range_are_learned_only_where_that_is_worse():
    arrays, (logps, entropy, values) = batch()
    arrays["returns"], arrays["old_values"] = values + 2.0, values - 1.0
    loss = lambda now: ppo_loss(logps, entropy, now, arrays, PPOOptions()).total  # noqa: E731
    assert not np.array(mx.grad(loss)(values)).any()


def sampled(lengths, width=6, values_wider=1, seed=0):
    noise = np.random.default_rng(seed)
    rows = len(lengths)
    draw = lambda *shape: noise.normal(size=shape).astype(np.float32)  # noqa: E731
    ended = np.array([length < width for length in lengths])
    return Sampled(
        draw(rows, width),
        draw(rows, width),
        draw(rows, width + values_wider),
        draw(rows),
        written(lengths, width),
        ended,
    )


def test_the_score_stands_behind_an_ended_completion_and_on_the_last_token_of_a_full_one():
    assert score_positions(written([3, 6], 6), limit=6).tolist() == [3, 5]
    found = learn_from(sampled([3, 6]), 6, RewardOptions(kl_coef=0.0))
    scores = sampled([3, 6]).scores
    assert found.rewards[0].tolist() == [0, 0, 0, pytest.approx(scores[0]), 0, 0, 0]
    assert found.rewards[1].tolist() == [0, 0, 0, 0, 0, pytest.approx(scores[1]), 0]
    assert found.value_mask.sum(1).tolist() == [4, 6]


def test_a_completion_s_experience_does_not_depend_on_how_wide_its_batch_is():
    short = sampled([3, 2], width=4)
    widened = Sampled(
        *(
            np.pad(part, ((0, 0), (0, 5)), constant_values=9.0)
            for part in (short.logps, short.ref_logps, short.values)
        ),
        short.scores,
        written([3, 2], 9),
        short.ended,
    )
    one, other = learn_from(short, 8, RewardOptions()), learn_from(widened, 8, RewardOptions())
    np.testing.assert_allclose(one.advantages, other.advantages[:, :4], atol=1e-6)
    np.testing.assert_allclose(one.returns, other.returns[:, :5], atol=1e-6)


def test_what_a_tool_wrote_is_no_step_of_an_episode():
    """The numbers of an episode with a tool's words in between are those of the model's words side
    by side."""
    alone, places = sampled([4], width=4), [0, 1, 4, 6]
    wide = [
        np.full((1, 8), np.nan, np.float32),
        np.full((1, 8), np.nan, np.float32),
        np.full((1, 9), 99, np.float32),
    ]
    for part, of in zip(wide, (alone.logps, alone.ref_logps, alone.values), strict=True):
        part[0, [*places, 7][: of.shape[1]]] = of
    mask = np.zeros((1, 8), np.float32)
    mask[0, places] = 1
    one = learn_from(alone, 8, RewardOptions(whiten_rewards=True))
    other = learn_from(
        Sampled(*wide, alone.scores, mask, alone.ended), 8, RewardOptions(whiten_rewards=True)
    )
    assert value_steps(mask, 8, 9)[0].tolist() == [1, 1, 0, 0, 1, 0, 1, 1, 0]
    np.testing.assert_allclose(other.advantages[0, places], one.advantages[0], rtol=1e-5)
    np.testing.assert_allclose(other.returns[0, [*places, 7]], one.returns[0], rtol=1e-5)
    assert other.metrics == pytest.approx(one.metrics)
    assert not other.kl[0, [2, 3, 5, 7]].any()
    assert not other.advantages[0, [2, 3, 5, 7]].any()


def test_both_kl_estimates_are_zero_at_home_and_k3_never_negative():
    logps, ref = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    assert not token_kl(logps, logps, "k1").any()
    assert not token_kl(logps, logps, "k3").any()
    assert token_kl(logps, ref, "k3").min() >= 0
    with pytest.raises(ConfigError, match="unknown kl_estimator"):
        token_kl(logps, ref, "k2")


def test_only_completions_without_an_end_are_penalised():
    scores = penalised_scores(np.array([1.0, 1.0]), np.array([True, False]), 0.5)
    assert scores.tolist() == [1.0, 0.5]
    assert penalised_scores(np.array([1.0]), np.array([False]), None).tolist() == [1.0]
