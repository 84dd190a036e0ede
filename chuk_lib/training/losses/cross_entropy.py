"""The SFT losses: pure functions of the log-probs of the target tokens.

    nll   L = −Σ log p(y)
    dft   L = −Σ sg(p(y))·log p(y)      (TRL `sft_trainer.py`; DFT: Wu et al. 2025)

With label smoothing ε the target is (1−ε)·onehot(y) + ε/V (transformers' LabelSmoother), which of
logits l is nll + ε·Σ(l_y − mean l).

Both are sums; dividing by the number of targets of the whole accumulation window is the engine's
work.
"""

from __future__ import annotations

import mlx.core as mx

from chuk_lib.errors import ConfigError
from chuk_lib.training.algorithm import Loss
from chuk_lib.training.utils.log_probs import TokenStats


def sft_loss(
    stats: TokenStats,
    loss_type: str = "nll",
    weights: mx.array | None = None,
    label_smoothing: float = 0.0,
) -> Loss:
    """The loss over N target tokens, weight N; `weights` (N,) are 0 for tokens that only fill a
    shape up. Label smoothing needs the statistics' `gap`.

    Raises ConfigError on a `loss_type` that is neither nll nor dft.
    """
    if loss_type not in ("nll", "dft"):
        raise ConfigError(f"unknown loss_type `{loss_type}`", "one of: nll, dft")
    per_token = -stats.logps
    if loss_type == "dft":
        per_token = per_token * mx.stop_gradient(mx.exp(stats.logps))
    if label_smoothing and stats.gap is not None:
        per_token = per_token + label_smoothing * stats.gap
    if weights is None:
        metrics = {"entropy": stats.entropy.sum(), "mean_token_accuracy": stats.correct.sum()}
        return Loss(per_token.sum(), mx.array(stats.logps.size, mx.float32), metrics)
    metrics = {
        "entropy": (stats.entropy * weights).sum(),
        "mean_token_accuracy": (stats.correct * weights).sum(),
    }
    return Loss((per_token * weights).sum(), weights.sum(), metrics)
