"""The advantage estimators by name: a row says everything about its choice. Imports nothing heavy until one is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from chuk_lib.training.online.grpo_config import GRPOConfig
    from chuk_lib.training.utils.advantages import Scored


@dataclass(frozen=True)
class Judged:
    """What advantages are made of: `scores` (N, K) with the `weights` (K,) of the rewards, the same summed (`scored`),
    `mask` (N, C) of the tokens that count, and `kl` (N, C), the k1 of each token, where completions pay for it."""

    scores: np.ndarray
    weights: Sequence[float]
    scored: Scored
    mask: np.ndarray
    kl: np.ndarray | None


@dataclass(frozen=True)
class Estimator:
    """`advantages` gives float32 (N, 1), or (N, C) where each token has its own, and metrics that it knows better.

    `pays_kl`: with beta completions pay for their KL in the reward; otherwise it is a term of the loss. `alone`: a
    completion needs no others of its prompt. `loss` and `beta` are the defaults beside it, `reads` settings that not
    every estimator reads.
    """

    advantages: Callable[[GRPOConfig, Judged], tuple[np.ndarray, dict[str, float]]]
    reads: tuple[str, ...] = ()
    pays_kl: bool = False
    alone: bool = False
    loss: str = "dapo"
    beta: float = 0.0


def _grpo(config: GRPOConfig, judged: Judged) -> tuple[np.ndarray, dict[str, float]]:
    """Against the group's mean; several rewards may be normalised first (GDPO)."""
    from chuk_lib.training.utils import advantages as adv

    if config.multi_objective_aggregation == "normalize_then_sum":
        found = adv.normalized_then_summed(judged.scores, judged.weights, config.num_generations)
    else:
        found = adv.group_relative(judged.scored, config.scale_rewards)
    return found[:, None], {}


def _rloo(config: GRPOConfig, judged: Judged) -> tuple[np.ndarray, dict[str, float]]:
    """Against the others' mean: rewards are clipped, then pay for the KL of their whole completion."""
    import numpy as np

    from chuk_lib.training.utils import advantages as adv

    rewards = judged.scored.rewards
    if config.reward_clip_range is not None:
        low, high = config.reward_clip_range
        rewards = np.clip(rewards, low, high)
    if judged.kl is not None:
        rewards = rewards - config.chosen_beta * judged.kl.sum(axis=1)
    paid = adv.Scored(rewards, judged.scored.group)
    told = {} if judged.kl is None else adv.reward_metrics(paid)
    flat = {name: value for name, value in told.items() if name == "frac_reward_zero_std"}
    return adv.leave_one_out(paid, config.normalize_advantages)[:, None], flat


def _over_batch(config: GRPOConfig, judged: Judged) -> tuple[np.ndarray, dict[str, float]]:
    from chuk_lib.training.utils import advantages as adv

    return adv.globally_normalized(judged.scored, judged.mask, judged.kl, config.chosen_beta), {}


def _over_batch_with_baseline(config: GRPOConfig, judged: Judged) -> tuple[np.ndarray, dict[str, float]]:
    from chuk_lib.training.utils import advantages as adv

    return adv.globally_normalized(judged.scored, judged.mask, judged.kl, config.chosen_beta, baseline=True), {}


ESTIMATORS: dict[str, Estimator] = {
    "grpo": Estimator(_grpo, ("scale_rewards", "multi_objective_aggregation")),
    "rloo": Estimator(_rloo, ("normalize_advantages", "reward_clip_range"), pays_kl=True, loss="rloo", beta=0.05),
    "reinforce++": Estimator(_over_batch, pays_kl=True, alone=True),
    "reinforce++-baseline": Estimator(_over_batch_with_baseline),
}
"""Every value of `advantage_estimator`."""
