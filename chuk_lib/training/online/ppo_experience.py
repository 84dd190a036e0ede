"""What PPO learns from a batch of completions: rewards per token, advantages, and the values that should have been.

Pure functions of log-probs, values and scores, float32 NumPy; the order of the work is TRL 1.12's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chuk_lib.training.losses.ppo import penalised_scores, score_positions, token_kl, token_rewards, up_to
from chuk_lib.training.utils.gae import gae, whiten


@dataclass(frozen=True)
class RewardOptions:
    """Settings of PPOConfig that decide what a token was worth."""

    kl_coef: float = 0.05
    kl_estimator: str = "k1"
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    missing_eos_penalty: float | None = None


@dataclass(frozen=True)
class Sampled:
    """A batch of completions as it was sampled: `logps` and `ref_logps` (B, C; None: no reference was run),
    `values` (B, D), D = C or C + 1;
    `scores`, `lengths` (tokens) and `ended` (by themselves, not by their limit), all (B,). What lies behind a
    completion's end is not read."""

    logps: np.ndarray
    ref_logps: np.ndarray | None
    values: np.ndarray
    scores: np.ndarray
    lengths: np.ndarray
    ended: np.ndarray


@dataclass(frozen=True)
class Experience:
    """`mask`, `kl` and whitened `advantages` are (B, C); `value_mask`, `rewards`, `gae` (advantages before whitening)
    and `returns` are (B, D). `metrics` are TRL's objective/…"""

    mask: np.ndarray
    kl: np.ndarray
    advantages: np.ndarray
    value_mask: np.ndarray
    rewards: np.ndarray
    gae: np.ndarray
    returns: np.ndarray
    metrics: dict[str, float]


def learn_from(sampled: Sampled, limit: int, options: RewardOptions) -> Experience:
    """Score, penalise, whiten and estimate. `limit` is the most tokens that a completion may have."""
    width, value_width = sampled.logps.shape[1], sampled.values.shape[1]
    mask = up_to(sampled.lengths - 1, width)
    positions = score_positions(sampled.lengths, limit)
    value_mask = up_to(positions, value_width)
    scores = penalised_scores(sampled.scores, sampled.ended, options.missing_eos_penalty)
    references = sampled.logps if sampled.ref_logps is None else sampled.ref_logps
    kl = token_kl(sampled.logps * mask, references * mask, options.kl_estimator)
    wide = np.pad(kl, ((0, 0), (0, value_width - width)))
    rewards = token_rewards(wide, scores, positions, options.kl_coef)
    if options.whiten_rewards:
        rewards = whiten(rewards, value_mask, shift_mean=False)
    estimate = gae(rewards, sampled.values, gamma=options.gamma, lam=options.lam, mask=value_mask)
    advantages = whiten(estimate.advantages[:, :width], mask)
    metrics = _metrics(kl, sampled.logps * mask, scores, options.kl_coef)
    if sampled.ref_logps is None:
        del metrics["objective/kl"]  # not 0: nobody knows
    return Experience(
        mask, kl, advantages, value_mask, rewards, estimate.advantages, estimate.returns, metrics
    )  # fmt: skip


def _metrics(kl: np.ndarray, logps: np.ndarray, scores: np.ndarray, kl_coef: float) -> dict[str, float]:
    """Sums over tokens, means over completions."""
    held_back, score = -kl_coef * kl.sum(1).mean(), scores.mean()
    named = {
        "objective/kl": kl.sum(1).mean(),
        "objective/entropy": -logps.sum(1).mean(),
        "objective/non_score_reward": held_back,
        "objective/rlhf_reward": held_back + score,
        "objective/scores": score,
    }
    return {name: float(value) for name, value in named.items()}
