"""DPO and its kind, KTO and reward models: pure functions of what models say about completions.

DPO and its kind know the log-probs of chosen and rejected completions; what each loss makes of them
stands in `preference_kinds`.

KTO learns from completions that are good or bad on their own. With z = max(0, mean of r over
mismatched prompts and completions), no gradient, each times its weight, the mean over rows, as TRL
1.16's `kto_trainer.py`:

    kto                good: 1 − σ(b(r − z))      bad: 1 − σ(b(z − r))  Ethayarajh et al. 2024
    apo_zero_unpaired  good: 1 − σ(b r)           bad: σ(b r)           D'Oosterlinck et al. 2024

A reward model learns scores s of pairs (Bradley and Terry 1952; Ouyang et al. 2022):

    −log σ(s_c − s_r − margin) + c·(s_c + s_r)²      the second term: Eisenstein et al. 2023
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from chuk_lib.training.losses.preference_kinds import DPO_LOSSES, log_sigmoid
from chuk_lib.training.preference.config import DPOConfig, KTOConfig
from chuk_lib.training.tables import pick


class Ratios(NamedTuple):
    """What the losses are made of, (B,) float32 each: summed log-probs of policy and reference on
    chosen and rejected, how many tokens those have, and each chosen completion's negative log-prob
    over the mean number of chosen tokens of a pair in the whole update."""

    chosen: mx.array
    rejected: mx.array
    ref_chosen: mx.array
    ref_rejected: mx.array
    chosen_tokens: mx.array
    rejected_tokens: mx.array
    chosen_nll: mx.array

    @property
    def r_chosen(self) -> mx.array:
        """log π − log ref of the chosen."""
        return self.chosen - self.ref_chosen

    @property
    def r_rejected(self) -> mx.array:
        """log π − log ref of the rejected."""
        return self.rejected - self.ref_rejected


def halves(rows: mx.array) -> tuple[mx.array, mx.array]:
    """Chosen and rejected out of (2B, …)."""
    size = rows.shape[0] // 2
    return rows[:size], rows[size:]


def token_weights(mask: mx.array, ld_alpha: float | None = None) -> mx.array:
    """How much each token's log-prob counts in its sequence's, (2B, C): `mask` of chosen then
    rejected; with `ld_alpha` less beyond the length that both completions of a pair have (LD-DPO,
    Liu et al. 2024)."""
    if ld_alpha is None:
        return mask
    lengths = mask.sum(axis=1)
    chosen, rejected = halves(lengths)
    shared = mx.minimum(chosen, rejected)
    is_shared = mx.cumsum(mask, axis=1) <= mx.concatenate([shared, shared])[:, None]
    return mask * mx.where(is_shared, 1.0, ld_alpha)


def sequence_logps(logps: mx.array, mask: mx.array, ld_alpha: float | None = None) -> mx.array:
    """Log-probs of whole completions (2B,) from those of their tokens (2B, C)."""
    return (logps * token_weights(mask, ld_alpha)).sum(axis=1)


def make_ratios(
    logps: mx.array,
    ref_sums: mx.array,
    mask: mx.array,
    ld_alpha: float | None = None,
    chosen_tokens: mx.array | None = None,
) -> Ratios:
    """From token log-probs (2B, C) of chosen then rejected, the reference's sequence log-probs
    (2B,), and the mask.

    `chosen_tokens`: chosen tokens for one pair in the whole update, its mean; None: in this batch.
    """
    chosen, rejected = halves(sequence_logps(logps, mask, ld_alpha))
    ref_chosen, ref_rejected = halves(ref_sums)
    sizes = halves(mx.maximum(mask.sum(axis=1), 1.0))
    nll = -halves((logps * mask).sum(axis=1))[0]
    per_pair = sizes[0].mean() if chosen_tokens is None else chosen_tokens
    return Ratios(chosen, rejected, ref_chosen, ref_rejected, sizes[0], sizes[1], nll / per_pair)


def preference_loss(ratios: Ratios, config: DPOConfig, weights: mx.array | None = None) -> mx.array:
    """The loss of each pair, (B,): the weighted sum of the losses in `config.loss_type`.

    `weights` (B,) are WPO's. Raises ConfigError for a loss that does not exist.
    """
    total = mx.zeros_like(ratios.chosen)
    for name, factor in zip(
        config.loss_type, config.loss_weights or [1.0] * len(config.loss_type), strict=True
    ):
        losses = pick(DPO_LOSSES, name, "loss_type").losses(ratios, config)
        total = total + factor * (losses if weights is None else losses * weights)
    return total


def policy_weights(logps: mx.array, log_sum_sq: mx.array, mask: mx.array) -> mx.array:
    """WPO's weight of each pair, (B,), without gradient: how likely the policy is to write both
    completions.

    w = exp(mean over tokens of log p − log Σ p²) for each completion; a pair's is the product (Zhou
    et al. 2024)."""
    likely = (mx.stop_gradient(logps - log_sum_sq) * mask).sum(axis=1) / mx.maximum(
        mask.sum(axis=1), 1.0
    )
    chosen, rejected = halves(mx.exp(likely))
    return chosen * rejected


def estimate_kl(logps: mx.array, ref_logps: mx.array) -> mx.array:
    """z, a scalar: from log-probs (B,) of completions after the prompts of other rows."""
    return mx.maximum(mx.stop_gradient(logps - ref_logps).mean(), 0.0)


_SHIFTS: dict[str, Callable[[mx.array], mx.array]] = {
    "kto": lambda kl: kl,
    "apo_zero_unpaired": mx.zeros_like,
}
"""What log-ratios are compared with, made of z."""


def unpaired_loss(ratios: mx.array, is_good: mx.array, kl: mx.array, config: KTOConfig) -> mx.array:
    """The weighted loss of each row (B,), from its log-ratio, whether it is good (1 or 0), and
    z."""
    x = config.beta * (ratios - pick(_SHIFTS, config.loss_type, "loss_type")(kl))
    good, bad = 1.0 - mx.sigmoid(x), 1.0 - mx.sigmoid(-x)
    return mx.where(is_good > 0, config.desirable_weight * good, config.undesirable_weight * bad)


def reward_loss(
    chosen: mx.array,
    rejected: mx.array,
    margin: mx.array | None = None,
    center_coefficient: float | None = None,
) -> mx.array:
    """The loss of each pair, (B,), from the scores (B,) of chosen and rejected."""
    apart = chosen - rejected if margin is None else chosen - rejected - margin
    loss = -log_sigmoid(apart)
    if center_coefficient:
        loss = loss + center_coefficient * mx.square(chosen + rejected)
    return loss
