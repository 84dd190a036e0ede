"""The losses of GRPO and its relatives by name: a row says everything about its kind. Imports
nothing heavy until one is computed.

With w = exp(logp − old), by token or (GSPO) exp of its mean over the sequence, and A the advantage:

    grpo, bnpo, dr_grpo, dapo, luspo   −min(min(w, delta)·A, clip(w, 1 − ε, 1 + ε_high)·A)
    cispo   −sg(min(w, ε_high))·A·logp                (ε_high is the cap itself: MiniMax-M1 2025)
    sapo    −(4/τ)·sigmoid(τ·(w − 1))·A, τ by the sign of A   (Gao et al. 2025)
    vespo   −sg(φ)·A·logp, φ = exp(λ + k·log W − λ·W), W = Π w, (k, λ) by the sign of A
    gmpo    −exp(mean of log w, clipped by the sign of A)·A   (Zhao et al. 2025)
    rloo    −min(W·A, clip(W, 1 − ε, 1 + ε_high)·A)           (Ahmadian et al. 2024)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

    from chuk_lib.training.losses.policy_gradient import PolicyBatch
    from chuk_lib.training.losses.sums import Metric
    from chuk_lib.training.online.grpo_config import GRPOConfig

    Found = tuple[mx.array, dict[str, Metric]]
    """Losses before masks and KL, (B, C) or (B, 1), and the metrics of the kind."""
    Losses = Callable[[GRPOConfig, PolicyBatch, mx.array, mx.array], Found]

_TINY_LOG, _LARGE_LOG = math.log(1e-8), 20.0


@dataclass(frozen=True)
class Sizes:
    """What the loss of an update may be divided by: its completions, their tokens that count, its
    share of the tokens of its rollout, and its completions times `max_completion_length`."""

    rows: float
    tokens: float
    rollout_tokens: float
    room: float


@dataclass(frozen=True)
class LossKind:
    """`losses` gets log w by token and w as the settings ask for it. They are summed over tokens
    (`by_token`), or are means over the tokens of each row, summed over rows; and divided by
    `divisor`. `reads`: settings that not every loss reads. `one_ratio`: there is one a sequence,
    whatever importance_sampling_level says. `one_advantage`: a completion has one, not one for each
    token. `weighs`: the weights that correct for the sampler are inside."""

    losses: Losses
    by_token: bool
    divisor: Callable[[Sizes], float]
    reads: tuple[str, ...]
    one_ratio: bool = False
    one_advantage: bool = False
    weighs: bool = False


def _clipped(config: GRPOConfig, batch: PolicyBatch, log_ratio: mx.array, ratio: mx.array) -> Found:
    import mlx.core as mx

    advantages = batch.advantages
    clipped = mx.clip(ratio, 1 - config.epsilon, 1 + config.upper_epsilon)
    ratio = ratio if config.delta is None else mx.minimum(ratio, config.delta)
    low, high = (
        (ratio < 1 - config.epsilon) & (advantages < 0),
        (ratio > 1 + config.upper_epsilon) & (advantages > 0),
    )
    return -mx.minimum(ratio * advantages, clipped * advantages), _clip_metrics(
        low, high, batch.mask
    )


def _rloo(config: GRPOConfig, batch: PolicyBatch, log_ratio: mx.array, ratio: mx.array) -> Found:
    import mlx.core as mx

    whole = mx.exp((log_ratio * batch.mask).sum(axis=1, keepdims=True))
    return _clipped(config, batch, log_ratio, whole)


def _cispo(config: GRPOConfig, batch: PolicyBatch, log_ratio: mx.array, ratio: mx.array) -> Found:
    import mlx.core as mx

    from chuk_lib.training.losses.sums import Metric

    capped = mx.stop_gradient(mx.minimum(ratio, config.upper_epsilon))
    over = (ratio > config.upper_epsilon) & (batch.advantages > 0)
    return -capped * batch.advantages * batch.logps, {
        "cispo_clip_ratio": Metric.of_tokens(over, batch.mask)
    }


def _sapo(config: GRPOConfig, batch: PolicyBatch, log_ratio: mx.array, ratio: mx.array) -> Found:
    import mlx.core as mx

    heat = mx.where(batch.advantages > 0, config.sapo_temperature_pos, config.sapo_temperature_neg)
    return -mx.sigmoid(heat * (ratio - 1)) * 4 / heat * batch.advantages, {}


def _vespo(config: GRPOConfig, batch: PolicyBatch, log_ratio: mx.array, ratio: mx.array) -> Found:
    from chuk_lib.training.losses.sums import Metric

    phi = _gamma_weights(config, batch, log_ratio)
    return -phi * batch.advantages * batch.logps, {
        "vespo/phi_seq_mean": Metric.of_tokens(phi, batch.mask)
    }


def _gamma_weights(config: GRPOConfig, batch: PolicyBatch, log_ratio: mx.array) -> mx.array:
    """φ of each row (B, 1), without gradient."""
    import mlx.core as mx

    log_weight = (mx.clip(log_ratio, -_LARGE_LOG, _LARGE_LOG) * batch.mask).sum(
        axis=1, keepdims=True
    )
    if batch.importance is not None:
        logs = mx.clip(mx.log(batch.importance), _TINY_LOG, _LARGE_LOG)
        log_weight = log_weight + logs.sum(axis=1, keepdims=True)
    log_weight = mx.clip(log_weight, _TINY_LOG, _LARGE_LOG)
    good = batch.advantages >= 0
    power = mx.where(good, config.vespo_k_pos, config.vespo_k_neg)
    rate = mx.where(good, config.vespo_lambda_pos, config.vespo_lambda_neg)
    return mx.stop_gradient(mx.exp(rate + power * log_weight - rate * mx.exp(log_weight)))


def _gmpo(config: GRPOConfig, batch: PolicyBatch, log_ratio: mx.array, ratio: mx.array) -> Found:
    import mlx.core as mx

    advantages = batch.advantages
    clipped = mx.clip(log_ratio, -config.epsilon, config.upper_epsilon)
    kept = mx.where(advantages > 0, mx.minimum(log_ratio, clipped), mx.maximum(log_ratio, clipped))
    low, high = (
        (log_ratio < -config.epsilon) & (advantages < 0),
        (log_ratio > config.upper_epsilon) & (advantages > 0),
    )
    return -mx.exp(row_means(kept, batch.mask)) * advantages, _clip_metrics(low, high, batch.mask)


def row_means(values: mx.array, mask: mx.array) -> mx.array:
    """Means over the tokens of each row (B, 1); 0 for a row without any."""
    import mlx.core as mx

    return (values * mask).sum(axis=1, keepdims=True) / mx.maximum(
        mask.sum(axis=1, keepdims=True), 1.0
    )


def _clip_metrics(low: mx.array, high: mx.array, mask: mx.array) -> dict[str, Metric]:
    import mlx.core as mx

    from chuk_lib.training.losses.sums import Metric, Per

    by_row = low.shape[1] == 1
    rows = [part.astype(mx.float32) if by_row else row_means(part, mask) for part in (low, high)]
    full = mask.sum(axis=1, keepdims=True) > 0
    return {
        "clip_ratio/low_mean": Metric.of_tokens(low, mask),
        "clip_ratio/high_mean": Metric.of_tokens(high, mask),
        "clip_ratio/region_mean": Metric.of_tokens(low | high, mask),
        "clip_ratio/low_min": Metric(mx.where(full, rows[0], 1.0).min(), Per.LEAST),
        "clip_ratio/high_max": Metric(mx.where(full, rows[1], 0.0).max(), Per.MICRO_BATCH),
    }


def _of_rows(sizes: Sizes) -> float:
    return sizes.rows


def _of_rollout(sizes: Sizes) -> float:
    return sizes.rollout_tokens


_CLIP = ("epsilon", "epsilon_high", "delta")
_SAPO = ("sapo_temperature_pos", "sapo_temperature_neg")
_VESPO = ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg")

LOSSES: dict[str, LossKind] = {
    "dapo": LossKind(_clipped, True, _of_rollout, _CLIP),
    "grpo": LossKind(_clipped, False, _of_rows, _CLIP),
    "bnpo": LossKind(_clipped, True, lambda sizes: sizes.tokens, _CLIP),
    "dr_grpo": LossKind(_clipped, True, lambda sizes: sizes.room, _CLIP),
    "cispo": LossKind(_cispo, True, _of_rollout, ("epsilon", "epsilon_high")),
    "sapo": LossKind(_sapo, False, _of_rows, _SAPO),
    "luspo": LossKind(_clipped, True, _of_rows, _CLIP),
    "vespo": LossKind(
        _vespo, True, _of_rollout, _VESPO, one_ratio=True, one_advantage=True, weighs=True
    ),
    "gmpo": LossKind(
        _gmpo, False, _of_rows, ("epsilon", "epsilon_high"), one_ratio=True, one_advantage=True
    ),
    "rloo": LossKind(_rloo, False, _of_rows, _CLIP, one_ratio=True, one_advantage=True),
}
"""Every value of `loss_type`."""

IMPORTANCE_MODES = {
    "token_truncate": (False, True),
    "token_mask": (False, False),
    "sequence_truncate": (True, True),
    "sequence_mask": (True, False),
}
"""Values of `importance_sampling_mode`: whether a sequence has one weight, and whether it is
clipped (else 0)."""
