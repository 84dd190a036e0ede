"""PPO for language models, as TRL 1.12 has it: rewards per token, and the clipped losses of policy and values.

    r_t = −β·kl_t, and the score once, at the end           (Ziegler et al. 2019)
    policy  max(−A·w, −A·clip(w, 1 − c, 1 + c)), w = exp(logp − old)
    values  ½·max((V − R)², (clip(V, V_old − c, V_old + c) − R)²)

Completions have C tokens (0 to C − 1), values one position more: V_t stands before token t, and V after the last token
of an ended completion is where its score goes. Left out, as in TRL: an entropy bonus.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from chuk_lib.errors import ConfigError
from chuk_lib.training.algorithm import Arrays, Loss

KL_ESTIMATORS = ("k1", "k3")


@dataclass(frozen=True)
class PPOOptions:
    """How far ratio (`cliprange`) and values (`cliprange_value`) may move, and the weight of the value loss."""

    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1


def token_kl(logps: np.ndarray, ref_logps: np.ndarray, estimator: str) -> np.ndarray:
    """Estimates of KL(policy ‖ reference) from taken tokens, same shape: k1 = logp − ref, k3 = e^d − 1 − d with
    d = ref − logp. Raises ConfigError on another estimator."""
    if estimator not in KL_ESTIMATORS:
        raise ConfigError(f"unknown kl_estimator `{estimator}`", f"one of: {', '.join(KL_ESTIMATORS)}")
    distance = ref_logps - logps
    found: np.ndarray = -distance if estimator == "k1" else np.expm1(distance) - distance
    return found


def penalised_scores(scores: np.ndarray, ended: np.ndarray, penalty: float | None) -> np.ndarray:
    """Scores (B,) less `penalty` for completions that did not end by themselves."""
    return scores if penalty is None else scores - penalty * (1.0 - np.asarray(ended, np.float32))


def score_positions(lengths: np.ndarray, limit: int) -> np.ndarray:
    """Where the score of completions of `lengths` (B,) tokens stands: one after the last token, or on it when the
    completion fills its `limit`. The values of a row are those up to there, included."""
    found: np.ndarray = np.minimum(lengths, limit - 1)
    return found


def up_to(positions: np.ndarray, width: int) -> np.ndarray:
    """A mask (B, width), float32: 1 up to the position of each row, included."""
    return (np.arange(width)[None] <= np.asarray(positions)[:, None]).astype(np.float32)


def token_rewards(kl: np.ndarray, scores: np.ndarray, positions: np.ndarray, kl_coef: float) -> np.ndarray:
    """Rewards (B, T): −kl_coef·kl at each token, and each row's score added at its position."""
    rewards = -kl_coef * kl
    rewards[np.arange(len(scores)), positions] += scores
    return rewards


def policy_loss(
    logps: mx.array, old_logps: mx.array, advantages: mx.array, cliprange: float | mx.array
) -> tuple[mx.array, mx.array]:
    """The clipped loss of each token, and where clipping decided it, both float32 of the same shape."""
    ratio = mx.exp(logps - old_logps)
    plain, clipped = -advantages * ratio, -advantages * mx.clip(ratio, 1 - cliprange, 1 + cliprange)
    return mx.maximum(plain, clipped), (clipped > plain).astype(mx.float32)


def value_loss(
    values: mx.array, old_values: mx.array, returns: mx.array, cliprange: float
) -> tuple[mx.array, mx.array]:
    """The clipped squared error of each value, and where clipping decided it, both float32 of the same shape."""
    near = mx.clip(values, old_values - cliprange, old_values + cliprange)
    plain, clipped = mx.square(values - returns), mx.square(near - returns)
    return 0.5 * mx.maximum(plain, clipped), (clipped > plain).astype(mx.float32)


def ppo_loss(logps: mx.array, entropy: mx.array, values: mx.array, arrays: Arrays, options: PPOOptions) -> Loss:
    """Policy and value loss of a micro-batch, each a mean over its own positions of the whole mini-batch.

    `logps`, `entropy` (B, C) and `values` (B, D) are the model's; `arrays` has mask, old_logps and advantages (B, C),
    value_mask, old_values and returns (B, D), and the scalars `token_share` and `value_share`: 1 over the mini-batch's
    tokens and value positions. The weights of a mini-batch's micro-batches sum to 1. Metrics are means over the tokens
    that were written (TRL: over padding too); `val/ratio_deviation` is the mean of (w − 1)².
    """
    mask, share = arrays["mask"], arrays["token_share"]
    value_mask, value_share = arrays["value_mask"], arrays["value_share"]
    difference = (logps - arrays["old_logps"]) * mask
    per_token, clipped = policy_loss(logps, arrays["old_logps"], arrays["advantages"], options.cliprange)
    per_value, values_clipped = value_loss(values, arrays["old_values"], arrays["returns"], options.cliprange_value)
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
