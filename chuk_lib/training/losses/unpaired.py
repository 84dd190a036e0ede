"""KTO: completions that are good or bad on their own. Pure functions of their log-ratios.

With r = log π(y) − log ref(y), z = max(0, mean of r over mismatched prompts and completions), no gradient:

    kto                good: 1 − σ(b(r − z))      bad: 1 − σ(b(z − r))        Ethayarajh et al. 2024
    apo_zero_unpaired  good: 1 − σ(b r)           bad: σ(b r)                 D'Oosterlinck et al. 2024

each times its weight; the mean over rows. As TRL 1.16's `kto_trainer.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from chuk_lib.training.preference.config import KTOConfig
from chuk_lib.training.tables import pick


def estimate_kl(logps: mx.array, ref_logps: mx.array) -> mx.array:
    """z, a scalar: from log-probs (B,) of completions after the prompts of other rows."""
    return mx.maximum(mx.stop_gradient(logps - ref_logps).mean(), 0.0)


_SHIFTS: dict[str, Callable[[mx.array], mx.array]] = {"kto": lambda kl: kl, "apo_zero_unpaired": mx.zeros_like}
"""What log-ratios are compared with, made of z."""


def unpaired_loss(ratios: mx.array, is_good: mx.array, kl: mx.array, config: KTOConfig) -> mx.array:
    """The weighted loss of each row (B,), from its log-ratio, whether it is good (1 or 0), and z."""
    x = config.beta * (ratios - pick(_SHIFTS, config.loss_type, "loss_type")(kl))
    good, bad = 1.0 - mx.sigmoid(x), 1.0 - mx.sigmoid(-x)
    return mx.where(is_good > 0, config.desirable_weight * good, config.undesirable_weight * bad)
