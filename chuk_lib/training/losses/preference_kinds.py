"""The losses of DPO and its kind by name: a row says everything about its kind. Imports nothing
heavy until one is computed.

With r = log π(y) − log ref(y) summed over a completion's tokens, S a divergence of r (f-DPO, Wang
et al. 2023), and D = S(chosen) − S(rejected); b is beta, e label smoothing, σ the sigmoid:

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
`dpo_trainer.py`. Left out: mixture-of-experts auxiliary losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from chuk_lib.training.tables import pick

if TYPE_CHECKING:
    import mlx.core as mx

    from chuk_lib.training.losses.preference import Ratios
    from chuk_lib.training.preference.config import DPOConfig

    Losses = Callable[[Ratios, DPOConfig], mx.array]
    """The loss of each pair, (B,)."""

_LARGEST_EXPONENT = 80.0


@dataclass(frozen=True)
class PairLoss:
    """`reads`: settings that not every loss reads. `scored`: it is of one score difference, into
    which another divergence than reverse KL can be put. `sorts`: it compares sorted ratios, so what
    it gives is no pair's own. `smoothing`: what label smoothing must lie between, and a hint."""

    losses: Losses
    reads: tuple[str, ...] = ()
    scored: bool = False
    sorts: bool = False
    smoothing: tuple[float, float, str] | None = None


def log_sigmoid(x: mx.array) -> mx.array:
    """log σ(x), element by element."""
    import mlx.nn as nn

    return cast("mx.array", nn.log_sigmoid(x))


def divergence(ratio: mx.array, config: DPOConfig) -> mx.array:
    """The score S of a log-ratio: r, 1 − exp(−r), log 2 + log σ(r), or (exp((a−1) r) − 1)/(a−1).
    f-DPO, Wang 2023."""
    return pick(DIVERGENCES, config.f_divergence_type, "f_divergence_type")(ratio, config)


def _forward_kl(ratio: mx.array, config: DPOConfig) -> mx.array:
    import mlx.core as mx

    return 1.0 - mx.exp(-ratio)


def _alpha_divergence(ratio: mx.array, config: DPOConfig) -> mx.array:
    import mlx.core as mx

    order = config.f_alpha_divergence_coef - 1.0
    if abs(order) < 1e-6:
        return ratio
    return (mx.exp(mx.minimum(order * ratio, _LARGEST_EXPONENT)) - 1.0) / order


DIVERGENCES: dict[str, Callable[[mx.array, DPOConfig], mx.array]] = {
    "reverse_kl": lambda ratio, config: ratio,
    "forward_kl": _forward_kl,
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
    import mlx.core as mx

    return mx.maximum(1.0 - _difference(ratios, config), 0.0)


def _ipo(ratios: Ratios, config: DPOConfig) -> mx.array:
    import mlx.core as mx

    return mx.square(_mean_difference(ratios, config) - 1.0 / (2.0 * config.beta))


def _sigmoid_norm(ratios: Ratios, config: DPOConfig) -> mx.array:
    return -log_sigmoid(config.beta * _mean_difference(ratios, config))


def _exo_pair(ratios: Ratios, config: DPOConfig) -> mx.array:
    import mlx.core as mx

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
    import mlx.core as mx

    aim = 0.5 / config.beta
    return mx.square(ratios.r_chosen - aim) + mx.square(ratios.r_rejected + aim)


def _aot(ratios: Ratios, config: DPOConfig) -> mx.array:
    policy, reference = ratios.chosen - ratios.rejected, ratios.ref_chosen - ratios.ref_rejected
    return _sorted_apart(policy, reference, config)


def _aot_unpaired(ratios: Ratios, config: DPOConfig) -> mx.array:
    return _sorted_apart(ratios.r_chosen, ratios.r_rejected, config)


def _sorted_apart(better: mx.array, worse: mx.array, config: DPOConfig) -> mx.array:
    import mlx.core as mx

    x, e = config.beta * (mx.sort(better) - mx.sort(worse)), config.label_smoothing
    return -(1.0 - e) * log_sigmoid(x) - e * log_sigmoid(-x)


def _apo_zero(ratios: Ratios, config: DPOConfig) -> mx.array:
    import mlx.core as mx

    return (
        1.0
        - mx.sigmoid(config.beta * ratios.r_chosen)
        + mx.sigmoid(config.beta * ratios.r_rejected)
    )


def _apo_down(ratios: Ratios, config: DPOConfig) -> mx.array:
    import mlx.core as mx

    apart = mx.sigmoid(config.beta * (ratios.r_chosen - ratios.r_rejected))
    return mx.sigmoid(config.beta * ratios.r_chosen) + 1.0 - apart


def _discopop(ratios: Ratios, config: DPOConfig) -> mx.array:
    import mlx.core as mx

    x = _difference(ratios, config)
    share = mx.sigmoid(x / config.discopop_tau)
    return -log_sigmoid(x) * (1.0 - share) + mx.exp(-x) * share


def _sft(ratios: Ratios, config: DPOConfig) -> mx.array:
    import mlx.core as mx

    return mx.broadcast_to(ratios.chosen_nll.mean(), ratios.chosen_nll.shape)


def readers(setting: str) -> tuple[str, ...]:
    """The losses that read a setting which not all of them read."""
    return tuple(name for name, kind in DPO_LOSSES.items() if setting in kind.reads)


DPO_LOSSES: dict[str, PairLoss] = {
    "sigmoid": PairLoss(_sigmoid, scored=True),
    "hinge": PairLoss(_hinge, scored=True),
    "ipo": PairLoss(_ipo, scored=True),
    "sigmoid_norm": PairLoss(_sigmoid_norm, scored=True),
    "exo_pair": PairLoss(
        _exo_pair,
        reads=("label_smoothing",),
        scored=True,
        smoothing=(0, 1, "the paper uses label_smoothing=1e-3"),
    ),
    "robust": PairLoss(
        _robust,
        reads=("label_smoothing",),
        scored=True,
        smoothing=(-1, 0.5, "with 0.5 labels say nothing"),
    ),
    "nca_pair": PairLoss(_nca_pair),
    "bco_pair": PairLoss(_bco_pair),
    "sppo_hard": PairLoss(_sppo_hard),
    "aot": PairLoss(_aot, reads=("label_smoothing",), sorts=True),
    "aot_unpaired": PairLoss(_aot_unpaired, reads=("label_smoothing",), sorts=True),
    "apo_zero": PairLoss(_apo_zero),
    "apo_down": PairLoss(_apo_down),
    "discopop": PairLoss(_discopop, reads=("discopop_tau",), scored=True),
    "sft": PairLoss(_sft, scored=True),
}
"""In TRL, too, the sigmoid loss ignores label smoothing."""
