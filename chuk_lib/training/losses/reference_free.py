"""Preference losses without a reference: ORPO, CPO, SimPO, AlphaPO. Pure functions of completion
log-probs.

With m a completion's mean token log-prob, s its sum, b beta, e label smoothing:

    ORPO     NLL − b·log σ((m_c − m_r) − (log(1 − exp m_c) − log(1 − exp m_r)))  Hong et al. 2024
    sigmoid  x = s_c − s_r:  −(1−e) log σ(bx) − e log σ(−bx)                   Xu et al. 2024 (CPO)
    hinge    x = s_c − s_r:  max(0, 1 − bx)
    ipo      x = m_c − m_r:  (x − 1/(2b))²
    simpo    x = m_c − m_r − γ/b, as sigmoid                                   Meng et al. 2024
    alphapo  simpo with m replaced by (1 − exp(−α m))/α                        Gupta et al. 2025

CPO and SimPO add `cpo_alpha` times the NLL of the chosen completions, ORPO that of prompt and
completion: sums over the update's tokens, divided by their number. As TRL 1.16's
`experimental/orpo` and `experimental/cpo`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from chuk_lib.training.losses.preference_kinds import log_sigmoid
from chuk_lib.training.preference.config import CPOConfig
from chuk_lib.training.tables import pick

_AVERAGED = ("ipo", "simpo", "alphapo")


class OddsRatio(NamedTuple):
    """ORPO's part beside the NLL, (B,) each: log σ(log odds), and the log odds themselves."""

    log_sigmoid: mx.array
    log_odds: mx.array


def odds_ratio(chosen: mx.array, rejected: mx.array) -> OddsRatio:
    """From mean token log-probs (B,) of chosen and rejected completions."""
    log_odds = (chosen - rejected) - (_log1m_exp(chosen) - _log1m_exp(rejected))
    return OddsRatio(log_sigmoid(log_odds), log_odds)


def _log1m_exp(x: mx.array) -> mx.array:
    """log(1 − exp(x)) for x < 0, without cancellation near 0."""
    x = mx.minimum(x, -1e-7)
    near = mx.log(-mx.expm1(mx.maximum(x, -0.6931472)))
    return mx.where(x > -0.6931472, near, mx.log1p(-mx.exp(mx.minimum(x, -0.6931472))))


def is_averaged(config: CPOConfig) -> bool:
    """Whether a loss compares mean token log-probs, not sums."""
    return config.loss_type in _AVERAGED


def cpo_rewards(logps: mx.array, config: CPOConfig) -> mx.array:
    """What CPO's losses compare: log-probs of completions, or AlphaPO's reward of them."""
    if config.alpha == 0.0:
        return logps
    return (1.0 - mx.exp(-config.alpha * logps)) / config.alpha


def cpo_loss(chosen: mx.array, rejected: mx.array, config: CPOConfig) -> mx.array:
    """The loss of each pair, (B,), from `cpo_rewards` of chosen and rejected; the NLL is added by
    the caller."""
    return pick(_LOSSES, config.loss_type, "loss_type")(chosen - rejected, config)


def _sigmoid(x: mx.array, config: CPOConfig) -> mx.array:
    return _smoothed(config.beta * x, config)


def _with_margin(x: mx.array, config: CPOConfig) -> mx.array:
    return _smoothed(config.beta * x - config.simpo_gamma, config)


def _smoothed(x: mx.array, config: CPOConfig) -> mx.array:
    e = config.label_smoothing
    return -(1.0 - e) * log_sigmoid(x) - e * log_sigmoid(-x)


_LOSSES: dict[str, Callable[[mx.array, CPOConfig], mx.array]] = {
    "sigmoid": _sigmoid,
    "hinge": lambda x, config: mx.maximum(1.0 - config.beta * x, 0.0),
    "ipo": lambda x, config: mx.square(x - 1.0 / (2.0 * config.beta)),
    "simpo": _with_margin,
    "alphapo": _with_margin,
}
