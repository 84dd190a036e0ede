"""PPO for language models, as TRL 1.12 has it: rewards per token, and the clipped losses of policy
and values.

    r_t = −β·kl_t, and the score once, at the end           (Ziegler et al. 2019)
    policy  max(−A·w, −A·clip(w, 1 − c, 1 + c)), w = exp(logp − old)
    values  ½·max((V − R)², (clip(V, V_old − c, V_old + c) − R)²)

Completions have C tokens (0 to C − 1), values one position more: V_t stands before token t, and V
after the last token of an ended completion is where its score goes. Left out, as in TRL: an entropy
bonus."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from chuk_lib.errors import ConfigError
from chuk_lib.training.algorithm import Arrays, Loss
from chuk_lib.training.utils.gae import gae, whiten

KL_ESTIMATORS = ("k1", "k3")


@dataclass(frozen=True)
class PPOOptions:
    """How far ratio (`cliprange`) and values (`cliprange_value`) may move, and the weight of the
    value loss."""

    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1


def token_kl(logps: np.ndarray, ref_logps: np.ndarray, estimator: str) -> np.ndarray:
    """Estimates of KL(policy ‖ reference) from taken tokens, same shape: k1 = logp − ref, k3 = e^d
    − 1 − d with d = ref − logp. Raises ConfigError on another estimator."""
    if estimator not in KL_ESTIMATORS:
        raise ConfigError(
            f"unknown kl_estimator `{estimator}`", f"one of: {', '.join(KL_ESTIMATORS)}"
        )
    distance = ref_logps - logps
    found: np.ndarray = -distance if estimator == "k1" else np.expm1(distance) - distance
    return found


def penalised_scores(scores: np.ndarray, ended: np.ndarray, penalty: float | None) -> np.ndarray:
    """Scores (B,) less `penalty` for completions that did not end by themselves."""
    return scores if penalty is None else scores - penalty * (1.0 - np.asarray(ended, np.float32))


def score_positions(mask: np.ndarray, limit: int) -> np.ndarray:
    """Where the score of each row stands, int (B,), by the `mask` (B, C) of what the model wrote:
    one after its last token, or on it when it wrote all `limit` that it may. Every row has a token.
    """
    last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1] > 0, axis=1)
    found: np.ndarray = np.where(np.count_nonzero(mask, axis=1) < limit, last + 1, last)
    return found


def value_steps(mask: np.ndarray, limit: int, width: int) -> np.ndarray:
    """Where values stand, float32 (B, width), width C or C + 1: before each token that the model
    wrote (`mask` (B, C)), and where the score stands. What others wrote between is no step: the
    value before the next written token has read it."""
    steps = np.pad(mask, ((0, 0), (0, width - mask.shape[1]))).astype(np.float32)
    steps[np.arange(len(mask)), score_positions(mask, limit)] = 1.0
    return steps


def token_rewards(
    kl: np.ndarray, scores: np.ndarray, positions: np.ndarray, kl_coef: float
) -> np.ndarray:
    """Rewards (B, T): −kl_coef·kl at each token, and each row's score added at its position."""
    rewards = -kl_coef * kl
    rewards[np.arange(len(scores)), positions] += scores
    return rewards


def policy_loss(
    logps: mx.array, old_logps: mx.array, advantages: mx.array, cliprange: float | mx.array
) -> tuple[mx.array, mx.array]:
    """The clipped loss of each token, and where clipping decided it, both float32 of the same
    shape."""
    ratio = mx.exp(logps - old_logps)
    plain, clipped = -advantages * ratio, -advantages * mx.clip(ratio, 1 - cliprange, 1 + cliprange)
    return mx.maximum(plain, clipped), (clipped > plain).astype(mx.float32)


def value_loss(
    values: mx.array, old_values: mx.array, returns: mx.array, cliprange: float
) -> tuple[mx.array, mx.array]:
    """The clipped squared error of each value, and where clipping decided it, both float32 of the
    same shape."""
    near = mx.clip(values, old_values - cliprange, old_values + cliprange)
    plain, clipped = mx.square(values - returns), mx.square(near - returns)
    return 0.5 * mx.maximum(plain, clipped), (clipped > plain).astype(mx.float32)


def ppo_loss(
    logps: mx.array, entropy: mx.array, values: mx.array, arrays: Arrays, options: PPOOptions
) -> Loss:
    """Policy and value loss of a micro-batch, each a mean over its own positions of the whole
    mini-batch.

    `logps`, `entropy` (B, C) and `values` (B, D) are the model's; `arrays` has mask, old_logps and
    advantages (B, C), value_mask, old_values and returns (B, D), and the scalars `token_share` and
    `value_share`: 1 over the mini-batch's tokens and value positions. The weights of a mini-batch's
    micro-batches sum to 1. Metrics are means over the tokens that were written (TRL: over padding
    too); `val/ratio_deviation` is the mean of (w − 1)²."""
    mask, share = arrays["mask"], arrays["token_share"]
    value_mask, value_share = arrays["value_mask"], arrays["value_share"]
    difference = (logps - arrays["old_logps"]) * mask
    per_token, clipped = policy_loss(
        logps, arrays["old_logps"], arrays["advantages"], options.cliprange
    )
    per_value, values_clipped = value_loss(
        values, arrays["old_values"], arrays["returns"], options.cliprange_value
    )
    policy, value = (per_token * mask).sum() * share, (per_value * value_mask).sum() * value_share
    fixed = mx.stop_gradient(difference)
    ratio = mx.exp(fixed)
    sums = {
        "policy/approxkl_avg": 0.5 * mx.square(fixed),
        "policy/clipfrac_avg": clipped,
        "policy/entropy_avg": entropy,
        "val/ratio": ratio,
        "val/ratio_deviation": mx.square(ratio - 1),
    }
    metrics = {name: (per * mask).sum() * share for name, per in sums.items()}
    metrics |= {
        "loss/policy_avg": policy,
        "loss/value_avg": value,
        "val/clipfrac_avg": (values_clipped * value_mask).sum() * value_share,
    }
    return Loss(policy + options.vf_coef * value, mask.sum() * share, metrics)


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
    """A batch of episodes as it was sampled: `mask` (B, C), 1 on what the model wrote (elsewhere
    nothing is read); `logps` and `ref_logps` (B, C; None: no reference was run), `values` (B, D), D
    = C or C + 1; `scores` and `ended` (by themselves, not by their limit), both (B,)."""

    logps: np.ndarray
    ref_logps: np.ndarray | None
    values: np.ndarray
    scores: np.ndarray
    mask: np.ndarray
    ended: np.ndarray


@dataclass(frozen=True)
class Advantages:
    """`kl` and whitened `advantages` are (B, C); `value_mask`, `rewards`, `gae` (advantages before
    whitening) and `returns` are (B, D); all 0 where no step is. `metrics` are TRL's objective/…"""

    kl: np.ndarray
    advantages: np.ndarray
    value_mask: np.ndarray
    rewards: np.ndarray
    gae: np.ndarray
    returns: np.ndarray
    metrics: dict[str, float]


def learn_from(sampled: Sampled, limit: int, options: RewardOptions) -> Advantages:
    """Score, penalise, whiten and estimate, in TRL's order. `limit` is the most tokens that a model
    may write."""
    width, value_width, mask = sampled.logps.shape[1], sampled.values.shape[1], sampled.mask
    value_mask = value_steps(mask, limit, value_width)
    scores = penalised_scores(sampled.scores, sampled.ended, options.missing_eos_penalty)
    logps = np.where(mask > 0, sampled.logps, 0)
    references = logps if sampled.ref_logps is None else np.where(mask > 0, sampled.ref_logps, 0)
    kl = token_kl(logps, references, options.kl_estimator)
    wide = np.pad(kl, ((0, 0), (0, value_width - width)))
    rewards = token_rewards(wide, scores, score_positions(mask, limit), options.kl_coef)
    if options.whiten_rewards:
        rewards = whiten(rewards, value_mask, shift_mean=False)
    estimate = gae(rewards, sampled.values, gamma=options.gamma, lam=options.lam, mask=value_mask)
    advantages = whiten(estimate.advantages[:, :width], mask)
    metrics = _metrics(kl, logps, scores, options.kl_coef)
    if sampled.ref_logps is None:
        del metrics["objective/kl"]  # not 0: nobody knows
    return Advantages(
        kl, advantages, value_mask, rewards, estimate.advantages, estimate.returns, metrics
    )


def _metrics(
    kl: np.ndarray, logps: np.ndarray, scores: np.ndarray, kl_coef: float
) -> dict[str, float]:
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
