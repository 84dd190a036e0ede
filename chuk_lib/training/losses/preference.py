"""DPO, the losses of its kind, KTO and reward models: pure functions of what models say about
completions.

DPO and its kind know the log-probs of chosen and rejected completions.

With r = log π(y) − log ref(y) summed over a completion's tokens, S a divergence of r, and D =
S(chosen) − S(rejected); b is beta, e label smoothing, σ the sigmoid:

    sigmoid       −log σ(bD)                                            Rafailov et al. 2023
    hinge         max(0, 1 − bD)                                        Zhao et al. 2023 (SLiC)
    ipo           (S_c/|c| − S_r/|r| − 1/(2b))², a mean over tokens     Azar et al. 2023
    sigmoid_norm  −log σ(b(S_c/|c| − S_r/|r|))                          Lambert et al. 2024 (Tülu 3)
    exo_pair      σ(bD)(log σ(bD) − log(1−e))
                  + σ(−bD)(log σ(−bD) − log e)                      Ji et al. 2024
    robust        (−(1−e) log σ(bD) + e log σ(−bD)) / (1 − 2e)          Chowdhury et al. 2024
    nca_pair      −log σ(b r_c) − ½ log σ(−b r_c) − ½ log σ(−b r_r)     Chen et al. 2024
    bco_pair      −log σ(b r_c) − log σ(−b r_r)                         Jung et al. 2024
    sppo_hard     (r_c − 1/(2b))² + (r_r + 1/(2b))²                     Wu et al. 2024
    aot           as sigmoid, smoothed, on sorted π_c − π_r and ref_c − ref_r  Melnyk et al. 2024
    aot_unpaired  the same on sorted r_c against sorted r_r
    apo_zero      1 − σ(b r_c) + σ(b r_r)                               D'Oosterlinck et al. 2024
    apo_down      σ(b r_c) + 1 − σ(b(r_c − r_r))
    discopop      x = bD, m = σ(x/τ): −log σ(x)(1 − m) + exp(−x) m      Lu et al. 2024
    sft           −Σ log π over the chosen tokens, divided by their number

Sorting and the last mean are over the pairs of a micro-batch and of an update. All as TRL 1.16's
`dpo_trainer.py`. Left out: mixture-of-experts auxiliary losses.

KTO learns from completions that are good or bad on their own. With z = max(0, mean of r over
mismatched prompts and completions), no gradient, each times its weight, the mean over rows, as TRL
1.16's `kto_trainer.py`:

    kto                good: 1 − σ(b(r − z))      bad: 1 − σ(b(z − r))  Ethayarajh et al. 2024
    apo_zero_unpaired  good: 1 − σ(b r)           bad: σ(b r)           D'Oosterlinck et al. 2024

A reward model learns scores s of pairs (Bradley and Terry 1952; Ouyang et al. 2022):

    −log σ(s_c − s_r − margin) + c·(s_c + s_r)²      the second term: Eisenstein et al. 2023
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.training.preference.config import DPOConfig, KTOConfig
from chuk_lib.training.tables import pick

_LARGEST_EXPONENT = 80.0


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


def log_sigmoid(x: mx.array) -> mx.array:
    """log σ(x), element by element."""
    return cast(mx.array, nn.log_sigmoid(x))


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
        losses = pick(_LOSSES, name, "loss_type")(ratios, config)
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


def divergence(ratio: mx.array, config: DPOConfig) -> mx.array:
    """The score S of a log-ratio: r, 1 − exp(−r), log 2 + log σ(r), or (exp((a−1) r) − 1)/(a−1).
    f-DPO, Wang 2023."""
    return pick(_DIVERGENCES, config.f_divergence_type, "f_divergence_type")(ratio, config)


def _alpha_divergence(ratio: mx.array, config: DPOConfig) -> mx.array:
    order = config.f_alpha_divergence_coef - 1.0
    if abs(order) < 1e-6:
        return ratio
    return (mx.exp(mx.minimum(order * ratio, _LARGEST_EXPONENT)) - 1.0) / order


_DIVERGENCES: dict[str, Callable[[mx.array, DPOConfig], mx.array]] = {
    "reverse_kl": lambda ratio, config: ratio,
    "forward_kl": lambda ratio, config: 1.0 - mx.exp(-ratio),
    "js_divergence": lambda ratio, config: math.log(2.0) + log_sigmoid(ratio),
    "alpha_divergence": _alpha_divergence,
}


def _difference(ratios: Ratios, config: DPOConfig) -> mx.array:
    """bD."""
    return config.beta * (
        divergence(ratios.r_chosen, config) - divergence(ratios.r_rejected, config)
    )


def _mean_difference(ratios: Ratios, config: DPOConfig) -> mx.array:
    chosen = divergence(ratios.r_chosen, config) / ratios.chosen_tokens
    return chosen - divergence(ratios.r_rejected, config) / ratios.rejected_tokens


def _sigmoid(ratios: Ratios, config: DPOConfig) -> mx.array:
    return -log_sigmoid(_difference(ratios, config))


def _hinge(ratios: Ratios, config: DPOConfig) -> mx.array:
    return mx.maximum(1.0 - _difference(ratios, config), 0.0)


def _ipo(ratios: Ratios, config: DPOConfig) -> mx.array:
    return mx.square(_mean_difference(ratios, config) - 1.0 / (2.0 * config.beta))


def _sigmoid_norm(ratios: Ratios, config: DPOConfig) -> mx.array:
    return -log_sigmoid(config.beta * _mean_difference(ratios, config))


def _exo_pair(ratios: Ratios, config: DPOConfig) -> mx.array:
    x, e = _difference(ratios, config), config.label_smoothing
    right = mx.sigmoid(x) * (log_sigmoid(x) - math.log1p(-e))
    return right + mx.sigmoid(-x) * (log_sigmoid(-x) - math.log(e))


def _robust(ratios: Ratios, config: DPOConfig) -> mx.array:
    x, e = _difference(ratios, config), config.label_smoothing
    return (e * log_sigmoid(-x) - (1.0 - e) * log_sigmoid(x)) / (1.0 - 2.0 * e)


def _nca_pair(ratios: Ratios, config: DPOConfig) -> mx.array:
    chosen, rejected = config.beta * ratios.r_chosen, config.beta * ratios.r_rejected
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


def _bco_pair(ratios: Ratios, config: DPOConfig) -> mx.array:
    return -log_sigmoid(config.beta * ratios.r_chosen) - log_sigmoid(
        -config.beta * ratios.r_rejected
    )


def _sppo_hard(ratios: Ratios, config: DPOConfig) -> mx.array:
    aim = 0.5 / config.beta
    return mx.square(ratios.r_chosen - aim) + mx.square(ratios.r_rejected + aim)


def _aot(ratios: Ratios, config: DPOConfig) -> mx.array:
    policy, reference = ratios.chosen - ratios.rejected, ratios.ref_chosen - ratios.ref_rejected
    return _sorted_apart(policy, reference, config)


def _aot_unpaired(ratios: Ratios, config: DPOConfig) -> mx.array:
    return _sorted_apart(ratios.r_chosen, ratios.r_rejected, config)


def _sorted_apart(better: mx.array, worse: mx.array, config: DPOConfig) -> mx.array:
    x, e = config.beta * (mx.sort(better) - mx.sort(worse)), config.label_smoothing
    return -(1.0 - e) * log_sigmoid(x) - e * log_sigmoid(-x)


def _apo_zero(ratios: Ratios, config: DPOConfig) -> mx.array:
    return (
        1.0
        - mx.sigmoid(config.beta * ratios.r_chosen)
        + mx.sigmoid(config.beta * ratios.r_rejected)
    )


def _apo_down(ratios: Ratios, config: DPOConfig) -> mx.array:
    apart = mx.sigmoid(config.beta * (ratios.r_chosen - ratios.r_rejected))
    return mx.sigmoid(config.beta * ratios.r_chosen) + 1.0 - apart


def _discopop(ratios: Ratios, config: DPOConfig) -> mx.array:
    x = _difference(ratios, config)
    share = mx.sigmoid(x / config.discopop_tau)
    return -log_sigmoid(x) * (1.0 - share) + mx.exp(-x) * share


def _sft(ratios: Ratios, config: DPOConfig) -> mx.array:
    return mx.broadcast_to(ratios.chosen_nll.mean(), ratios.chosen_nll.shape)


_LOSSES: dict[str, Callable[[Ratios, DPOConfig], mx.array]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "sigmoid_norm": _sigmoid_norm,
    "exo_pair": _exo_pair,
    "robust": _robust,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sft": _sft,
}


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
