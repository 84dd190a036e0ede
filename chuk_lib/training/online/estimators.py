"""The advantage estimators by name: a row says everything about its choice. Imports nothing heavy
until one is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from chuk_lib.training.online.episode import Episode
    from chuk_lib.training.online.grpo_config import GRPOConfig
    from chuk_lib.training.utils.advantages import Scored


@dataclass(frozen=True)
class GroupScores:
    """What advantages are made of: `scores` (N, K) with the `weights` (K,) of the rewards, the same
    summed (`scored`), `mask` (N, C) of the tokens that count, and `kl` (N, C), the k1 of each
    token, where completions pay for it. N = prompts × group, prompt-major."""

    scores: np.ndarray
    weights: Sequence[float]
    scored: Scored
    mask: np.ndarray
    kl: np.ndarray | None


@dataclass(frozen=True)
class Estimator:
    """`advantages` gives float32 (N, 1), or (N, C) where each token has its own, and metrics that
    it knows better.

    `pays_kl`: with beta completions pay for their KL in the reward; otherwise it is a term of the
    loss. `alone`: a completion needs no others of its prompt. `loss` and `beta` are the defaults
    beside it, `reads` settings that not every estimator reads."""

    advantages: Callable[[GRPOConfig, GroupScores], tuple[np.ndarray, dict[str, float]]]
    reads: tuple[str, ...] = ()
    pays_kl: bool = False
    alone: bool = False
    loss: str = "dapo"
    beta: float = 0.0


def _grpo(config: GRPOConfig, given: GroupScores) -> tuple[np.ndarray, dict[str, float]]:
    """Against the group's mean; several rewards may be normalised first (GDPO)."""
    from chuk_lib.training.utils import advantages as adv

    if config.multi_objective_aggregation == "normalize_then_sum":
        found = adv.normalized_then_summed(given.scores, given.weights, config.num_generations)
    else:
        found = adv.group_relative(given.scored, config.scale_rewards)
    return found[:, None], {}


def _rloo(config: GRPOConfig, given: GroupScores) -> tuple[np.ndarray, dict[str, float]]:
    """Against the others' mean: rewards are clipped, then pay for the KL of their whole
    completion."""
    import numpy as np

    from chuk_lib.training.utils import advantages as adv

    rewards = given.scored.rewards
    if config.reward_clip_range is not None:
        low, high = config.reward_clip_range
        rewards = np.clip(rewards, low, high)
    if given.kl is not None:
        rewards = rewards - config.chosen_beta * given.kl.sum(axis=1)
    paid = adv.Scored(rewards, given.scored.group)
    told = {} if given.kl is None else adv.reward_metrics(paid)
    flat = {name: value for name, value in told.items() if name == "frac_reward_zero_std"}
    return adv.leave_one_out(paid, config.normalize_advantages)[:, None], flat


def _over_batch(config: GRPOConfig, given: GroupScores) -> tuple[np.ndarray, dict[str, float]]:
    from chuk_lib.training.utils import advantages as adv

    return adv.globally_normalized(given.scored, given.mask, given.kl, config.chosen_beta), {}


def _over_batch_with_baseline(
    config: GRPOConfig, given: GroupScores
) -> tuple[np.ndarray, dict[str, float]]:
    from chuk_lib.training.utils import advantages as adv

    return adv.globally_normalized(
        given.scored, given.mask, given.kl, config.chosen_beta, baseline=True
    ), {}


ESTIMATORS: dict[str, Estimator] = {
    "grpo": Estimator(_grpo, ("scale_rewards", "multi_objective_aggregation")),
    "rloo": Estimator(
        _rloo, ("normalize_advantages", "reward_clip_range"), pays_kl=True, loss="rloo", beta=0.05
    ),
    "reinforce++": Estimator(_over_batch, pays_kl=True, alone=True),
    "reinforce++-baseline": Estimator(_over_batch_with_baseline),
}
"""Every value of `advantage_estimator`."""


def advantages_of(
    config: GRPOConfig, weights: Sequence[float], episodes: Sequence[Episode]
) -> tuple[np.ndarray, dict[str, float]]:
    """What N episodes, the groups of some prompts one after the other, were worth: float32 (N, 1),
    or (N, C) where tokens pay for their KL one by one; and metrics. A KL in the reward needs their
    `old` and `reference`; it is told as the metric `kl`, a mean over what was written."""
    import numpy as np

    from chuk_lib.training.online.episode import padded
    from chuk_lib.training.utils import advantages as adv

    width = max(len(one.ids) for one in episodes)
    mask, kl, told = padded([one.mask for one in episodes], width), None, {}
    if config.kl_in_reward:
        kl = padded([_paid_kl(one) for one in episodes], width)
        told["kl"] = float(kl.sum() / max(np.count_nonzero(mask), 1))
    scores = np.stack([one.scores for one in episodes])
    scored = adv.Scored(adv.combine(scores, weights), config.num_generations)
    found, more = config.estimator.advantages(
        config, GroupScores(scores, weights, scored, mask, kl)
    )
    return found, told | more


def _paid_kl(one: Episode) -> np.ndarray:
    """k1 of each token (C,), 0 where none counts."""
    assert one.old is not None
    assert one.reference is not None
    paid: np.ndarray = (one.old - one.reference) * one.mask
    return paid
