"""The loss of a reward model on pairs (Bradley and Terry 1952; Ouyang et al. 2022).

L = −log σ(s_c − s_r − margin) + c·(s_c + s_r)²      the second term: Eisenstein et al. 2023
"""

from __future__ import annotations

import mlx.core as mx

from chuk_lib.training.losses.preference import log_sigmoid


def reward_loss(
    chosen: mx.array, rejected: mx.array, margin: mx.array | None = None, center_coefficient: float | None = None
) -> mx.array:
    """The loss of each pair, (B,), from the scores (B,) of chosen and rejected."""
    apart = chosen - rejected if margin is None else chosen - rejected - margin
    loss = -log_sigmoid(apart)
    if center_coefficient:
        loss = loss + center_coefficient * mx.square(chosen + rejected)
    return loss
