"""The losses of GRPO and its relatives: pure functions of token log-probs (B, C), as TRL 1.16 computes them.

With w = exp(logp − old), by token or (GSPO) exp of its mean over the sequence, and A the advantage:

    grpo, bnpo, dr_grpo, dapo, luspo   −min(min(w, delta)·A, clip(w, 1 − ε, 1 + ε_high)·A)
    cispo   −sg(min(w, ε_high))·A·logp                        (ε_high is the cap itself: MiniMax-M1 2025)
    sapo    −(4/τ)·sigmoid(τ·(w − 1))·A, τ by the sign of A   (Gao et al. 2025)
    vespo   −sg(φ)·A·logp, φ = exp(λ + k·log W − λ·W), W = Π w, (k, λ) by the sign of A
    gmpo    −exp(mean of log w, clipped by the sign of A)·A   (Zhao et al. 2025)
    rloo    −min(W·A, clip(W, 1 − ε, 1 + ε_high)·A)           (Ahmadian et al. 2024)

then, where asked for, times the off-policy mask, the high-entropy mask and the weight that corrects for the sampler;
plus beta·k3, times w with bias correction. Sums are over tokens (dapo, cispo, vespo: tokens of the rollout; bnpo: of
the update; dr_grpo: max_completion_length·B), or over rows (luspo), or over row means (the rest). Left out: the loss
that balances experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from chuk_lib.training.losses.sums import Measured, Metric
from chuk_lib.training.utils.kl_divergence import k3

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
LOSS_TYPES = (*CLIPPED, "cispo", "sapo", "vespo", "gmpo", "rloo")
BY_TOKEN = ("dapo", "cispo", "vespo")
BY_SEQUENCE = ("vespo", "gmpo", "rloo")
"""Losses that take one advantage a completion."""
_TINY_LOG, _LARGE_LOG = math.log(1e-8), 20.0


@dataclass(frozen=True)
class PolicyLoss:
    """Which loss, and its constants; names and defaults are those of the settings. `epsilon_high` None: epsilon."""

    loss_type: str = "dapo"
    importance_sampling_level: str = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    beta: float = 0.0
    use_bias_correction_kl: bool = True
    off_policy_mask_threshold: float | None = None
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    max_completion_length: int = 256
    entropy_bonus: bool = False

    @property
    def high(self) -> float:
        """The upper ε."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    def denominator(self, rows: int, tokens: float, rollout_tokens: float) -> float:
        """What the loss of an update is divided by: it has `rows` completions with `tokens` tokens that count, and
        `rollout_tokens` is its share of the tokens of its rollout."""
        if self.loss_type in BY_TOKEN:
            return max(rollout_tokens, 1.0)
        if self.loss_type == "bnpo":
            return max(tokens, 1.0)
        return float(rows * self.max_completion_length if self.loss_type == "dr_grpo" else rows)


class PolicyBatch(NamedTuple):
    """What a loss reads, float32. `logps`, `entropy` and `mask` (B, C); `advantages` (B, 1) or (B, C); `old` (B, C):
    log-probs when the completions were collected (None: those of now); `reference` (B, C) for the KL term; `sampling`
    (B, C): the sampler's own log-probs; `importance` (B, 1) or (B, C): weights that correct for the sampler;
    `entropy_mask` (B, C): 1 on tokens that are learned from."""

    logps: mx.array
    entropy: mx.array
    mask: mx.array
    advantages: mx.array
    old: mx.array | None = None
    reference: mx.array | None = None
    sampling: mx.array | None = None
    importance: mx.array | None = None
    entropy_mask: mx.array | None = None


def policy_loss(options: PolicyLoss, batch: PolicyBatch) -> Measured:
    """The sum over a micro-batch, to be divided by `options.denominator` of its update, and sums for metrics: `kl`,
    `clip_ratio/…`, `cispo_clip_ratio`, `vespo/phi_seq_mean`. Rows and tokens that the mask leaves out add nothing."""
    old = mx.stop_gradient(batch.logps) if batch.old is None else batch.old
    log_ratio = batch.logps - old
    by_row = options.importance_sampling_level == "sequence"
    ratio = mx.exp(row_means(log_ratio, batch.mask) if by_row else log_ratio)
    losses, metrics = _losses(options, batch, log_ratio, ratio)
    if options.off_policy_mask_threshold is not None:
        losses = losses * on_policy_rows(batch, old, options.off_policy_mask_threshold)
    if batch.entropy_mask is not None:
        losses = losses * batch.entropy_mask
    if batch.importance is not None and options.loss_type != "vespo":
        losses = losses * batch.importance
    if options.beta and batch.reference is not None:
        kl = k3(batch.logps, batch.reference) * (ratio if options.use_bias_correction_kl else 1.0)
        losses = losses + options.beta * kl
        metrics["kl"] = Metric.of_tokens(kl, batch.mask)
    return Measured(_summed(options.loss_type, losses, batch.mask), metrics)


def entropy_sum(batch: PolicyBatch) -> tuple[mx.array, mx.array]:
    """Sum of the entropies of the tokens that are learned from, and their number."""
    counted = batch.mask if batch.entropy_mask is None else batch.mask * batch.entropy_mask
    return (batch.entropy * counted).sum(), counted.sum()


def row_means(values: mx.array, mask: mx.array) -> mx.array:
    """Means over the tokens of each row (B, 1); 0 for a row without any."""
    return (values * mask).sum(axis=1, keepdims=True) / mx.maximum(mask.sum(axis=1, keepdims=True), 1.0)


def on_policy_rows(batch: PolicyBatch, old: mx.array, threshold: float) -> mx.array:
    """1 for rows (B, 1) with A ≥ 0, and for those whose policy has not moved further than `threshold` from the one
    that sampled (mean k1), else 0 (DeepSeek-V3.2, 2025)."""
    sampled = old if batch.sampling is None else batch.sampling
    moved = row_means(sampled - mx.stop_gradient(batch.logps), batch.mask)
    return ((batch.advantages >= 0) | (moved <= threshold)).astype(mx.float32)


def importance_weights(
    old: mx.array, sampling: mx.array, mask: mx.array, mode: str, least: float | None, most: float | None
) -> mx.array:
    """Weights that correct for a sampler that computes otherwise than training does: exp(old − sampling), a token
    (B, C) or a sequence (B, 1) each by `mode`; outside least..most they are clipped (`…_truncate`) or 0 (`…_mask`)."""
    gap = (old - sampling) * mask
    ratio = mx.exp(gap.sum(axis=1, keepdims=True) if mode.startswith("sequence") else gap)
    low, high = 0.0 if least is None else least, math.inf if most is None else most
    if mode.endswith("truncate"):
        return mx.clip(ratio, low, high)
    return mx.where((ratio >= low) & (ratio <= high), ratio, 0.0)


def _losses(
    options: PolicyLoss, batch: PolicyBatch, log_ratio: mx.array, ratio: mx.array
) -> tuple[mx.array, dict[str, Metric]]:
    """Losses before masks and KL, (B, C) or (B, 1), and the metrics of the kind."""
    kind, advantages = options.loss_type, batch.advantages
    if kind == "cispo":
        capped = mx.stop_gradient(mx.minimum(ratio, options.high))
        over = (ratio > options.high) & (advantages > 0)
        return -capped * advantages * batch.logps, {"cispo_clip_ratio": Metric.of_tokens(over, batch.mask)}
    if kind == "sapo":
        heat = mx.where(advantages > 0, options.sapo_temperature_pos, options.sapo_temperature_neg)
        return -mx.sigmoid(heat * (ratio - 1)) * 4 / heat * advantages, {}
    if kind == "vespo":
        phi = _gamma_weights(options, batch, log_ratio)
        return -phi * advantages * batch.logps, {"vespo/phi_seq_mean": Metric.of_tokens(phi, batch.mask)}
    if kind == "gmpo":
        return _geometric(options, batch, log_ratio)
    if kind == "rloo":
        ratio = mx.exp((log_ratio * batch.mask).sum(axis=1, keepdims=True))
    clipped = mx.clip(ratio, 1 - options.epsilon, 1 + options.high)
    ratio = ratio if options.delta is None else mx.minimum(ratio, options.delta)
    low, high = (ratio < 1 - options.epsilon) & (advantages < 0), (ratio > 1 + options.high) & (advantages > 0)
    return -mx.minimum(ratio * advantages, clipped * advantages), _clip_metrics(low, high, batch.mask)


def _gamma_weights(options: PolicyLoss, batch: PolicyBatch, log_ratio: mx.array) -> mx.array:
    """φ of each row (B, 1), without gradient."""
    log_weight = (mx.clip(log_ratio, -_LARGE_LOG, _LARGE_LOG) * batch.mask).sum(axis=1, keepdims=True)
    if batch.importance is not None:
        logs = mx.clip(mx.log(batch.importance), _TINY_LOG, _LARGE_LOG)
        log_weight = log_weight + logs.sum(axis=1, keepdims=True)
    log_weight = mx.clip(log_weight, _TINY_LOG, _LARGE_LOG)
    good = batch.advantages >= 0
    power = mx.where(good, options.vespo_k_pos, options.vespo_k_neg)
    rate = mx.where(good, options.vespo_lambda_pos, options.vespo_lambda_neg)
    return mx.stop_gradient(mx.exp(rate + power * log_weight - rate * mx.exp(log_weight)))


def _geometric(options: PolicyLoss, batch: PolicyBatch, log_ratio: mx.array) -> tuple[mx.array, dict[str, Metric]]:
    advantages = batch.advantages
    clipped = mx.clip(log_ratio, -options.epsilon, options.high)
    kept = mx.where(advantages > 0, mx.minimum(log_ratio, clipped), mx.maximum(log_ratio, clipped))
    low, high = (log_ratio < -options.epsilon) & (advantages < 0), (log_ratio > options.high) & (advantages > 0)
    return -mx.exp(row_means(kept, batch.mask)) * advantages, _clip_metrics(low, high, batch.mask)


def _clip_metrics(low: mx.array, high: mx.array, mask: mx.array) -> dict[str, Metric]:
    by_row = low.shape[1] == 1
    rows = [part.astype(mx.float32) if by_row else row_means(part, mask) for part in (low, high)]
    full = mask.sum(axis=1, keepdims=True) > 0
    return {
        "clip_ratio/low_mean": Metric.of_tokens(low, mask),
        "clip_ratio/high_mean": Metric.of_tokens(high, mask),
        "clip_ratio/region_mean": Metric.of_tokens(low | high, mask),
        "clip_ratio/low_min": Metric(mx.where(full, rows[0], 1.0).min(), "least"),
        "clip_ratio/high_max": Metric(mx.where(full, rows[1], 0.0).max(), "once"),
    }


def _summed(kind: str, losses: mx.array, mask: mx.array) -> mx.array:
    """The sum over a micro-batch."""
    if kind in (*BY_TOKEN, "bnpo", "dr_grpo", "luspo"):
        return (losses * mask).sum()
    return row_means(mx.broadcast_to(losses, mask.shape), mask).sum()
