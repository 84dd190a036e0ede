"""The losses of GRPO and its relatives: pure functions of token log-probs (B, C), as TRL 1.16
computes them.

`policy_kinds` has the kinds. What a kind gives is, where asked for, multiplied by the off-policy
mask, the high-entropy mask and the weight that corrects for the sampler; then beta·k3 is added,
times w with bias correction. Left out: the loss that balances experts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx

from chuk_lib.training.losses.policy_kinds import IMPORTANCE_MODES, Sizes, row_means
from chuk_lib.training.losses.sums import Measured, Metric
from chuk_lib.training.tables import pick

if TYPE_CHECKING:
    from chuk_lib.training.online.grpo_config import GRPOConfig


class PolicyBatch(NamedTuple):
    """What a loss reads, float32. `logps`, `entropy` and `mask` (B, C); `advantages` (B, 1) or (B,
    C); `old` (B, C): log-probs when the completions were collected (None: those of now);
    `reference` (B, C) for the KL term; `sampling` (B, C): the sampler's own log-probs; `importance`
    (B, 1) or (B, C): weights that correct for the sampler; `entropy_mask` (B, C): 1 on tokens that
    are learned from."""

    logps: mx.array
    entropy: mx.array
    mask: mx.array
    advantages: mx.array
    old: mx.array | None = None
    reference: mx.array | None = None
    sampling: mx.array | None = None
    importance: mx.array | None = None
    entropy_mask: mx.array | None = None


def denominator(config: GRPOConfig, sizes: Sizes) -> float:
    """What the loss of an update is divided by, 1 at least."""
    return max(float(config.loss_kind.divisor(sizes)), 1.0)


def policy_loss(config: GRPOConfig, batch: PolicyBatch) -> Measured:
    """The sum over a micro-batch, to be divided by `denominator` of its update, and sums for
    metrics: `kl`, `clip_ratio/…`, `cispo_clip_ratio`, `vespo/phi_seq_mean`. Rows and tokens that
    the mask leaves out add nothing."""
    old = mx.stop_gradient(batch.logps) if batch.old is None else batch.old
    log_ratio = batch.logps - old
    by_row = config.importance_sampling_level == "sequence"
    ratio = mx.exp(row_means(log_ratio, batch.mask) if by_row else log_ratio)
    kind = config.loss_kind
    losses, metrics = kind.losses(config, batch, log_ratio, ratio)
    if config.chosen_threshold is not None:
        losses = losses * on_policy_rows(batch, old, config.chosen_threshold)
    if batch.entropy_mask is not None:
        losses = losses * batch.entropy_mask
    if batch.importance is not None and not kind.weighs:
        losses = losses * batch.importance
    if config.kl_in_loss and batch.reference is not None:
        kl = k3(batch.logps, batch.reference) * (ratio if config.use_bias_correction_kl else 1.0)
        losses = losses + config.chosen_beta * kl
        metrics["kl"] = Metric.of_tokens(kl, batch.mask)
    total = (losses * batch.mask).sum() if kind.by_token else _row_sum(losses, batch.mask)
    return Measured(total, metrics)


def _row_sum(losses: mx.array, mask: mx.array) -> mx.array:
    """Losses (B, C) or (B, 1) as means over the tokens of each row, summed."""
    return row_means(mx.broadcast_to(losses, mask.shape), mask).sum()


def entropy_sum(batch: PolicyBatch) -> tuple[mx.array, mx.array]:
    """Sum of the entropies of the tokens that are learned from, and their number."""
    counted = batch.mask if batch.entropy_mask is None else batch.mask * batch.entropy_mask
    return (batch.entropy * counted).sum(), counted.sum()


def on_policy_rows(batch: PolicyBatch, old: mx.array, threshold: float) -> mx.array:
    """1 for rows (B, 1) with A ≥ 0, and for those whose policy has not moved further than
    `threshold` from the one that sampled (mean k1), else 0 (DeepSeek-V3.2, 2025)."""
    sampled = old if batch.sampling is None else batch.sampling
    moved = row_means(sampled - mx.stop_gradient(batch.logps), batch.mask)
    return ((batch.advantages >= 0) | (moved <= threshold)).astype(mx.float32)


def importance_weights(
    old: mx.array,
    sampling: mx.array,
    mask: mx.array,
    mode: str,
    least: float | None,
    most: float | None,
) -> mx.array:
    """Weights that correct for a sampler that computes otherwise than training does: exp(old −
    sampling), a token (B, C) or a sequence (B, 1) each by `mode`; outside least..most they are
    clipped (`…_truncate`) or 0 (`…_mask`)."""
    gap = (old - sampling) * mask
    by_row, clips = pick(IMPORTANCE_MODES, mode, "importance_sampling_mode")
    ratio = mx.exp(gap.sum(axis=1, keepdims=True) if by_row else gap)
    low, high = 0.0 if least is None else least, math.inf if most is None else most
    if clips:
        return mx.clip(ratio, low, high)
    return mx.where((ratio >= low) & (ratio <= high), ratio, 0.0)


def k3(policy: mx.array, reference: mx.array) -> mx.array:
    """The estimate exp(d) − d − 1 of KL(policy ‖ reference) for each token, with d = reference −
    policy: unbiased and never negative (Schulman, "Approximating KL divergence", 2020)."""
    gap = reference - policy
    return mx.exp(gap) - gap - 1
