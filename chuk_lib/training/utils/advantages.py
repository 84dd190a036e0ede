"""From scores of completions to advantages: how much better each is than what was to be expected.

Shapes: N completions, K rewards, G completions of each prompt side by side (N is a multiple of G).
NaN in a score means that a reward could not tell; a completion with only NaN counts in no mean and
has advantage 0. All standard deviations have ddof 1, and 1e-4 is added to them, as in TRL."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from chuk_lib.training.tables import pick

_SMALL = 1e-4


@dataclass(frozen=True)
class Scored:
    """Rewards (N,) summed over functions, NaN where nothing could score; `group` completions belong
    to a prompt."""

    rewards: np.ndarray
    group: int

    @property
    def grouped(self) -> np.ndarray:
        """As (prompts, group)."""
        return self.rewards.reshape(-1, self.group)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation in each group (prompts,)."""
        return _std(self.grouped, axis=1)

    @property
    def is_flat(self) -> np.ndarray:
        """Which groups (prompts,) teach nothing: all that could be scored got the same."""
        found = self.grouped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a group without any score
            span = np.nanmax(found, axis=1) - np.nanmin(found, axis=1)
        return np.asarray(np.nan_to_num(span) <= 1e-8)


def combine(scores: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Weighted sums (N,) of scores (N, K); NaN where no reward could score."""
    total = np.nansum(scores.astype(np.float64) * np.asarray(weights, np.float64), axis=1)
    return np.where(np.isnan(scores).all(axis=1), np.nan, total)


def group_relative(scored: Scored, scale: str = "group") -> np.ndarray:
    """GRPO: reward minus the mean of its group, divided by the spread of the group, of the batch,
    or not at all (Shao et al. 2024; `none`: Dr. GRPO, Liu et al. 2025). Float32 (N,). Raises
    ConfigError on another scale."""
    grouped = scored.grouped
    advantages = grouped - _mean(grouped, axis=1)[:, None]
    scales: dict[str, Callable[[], np.ndarray | float]] = {
        "group": lambda: scored.spread[:, None] + _SMALL,
        "batch": lambda: _std(scored.rewards) + _SMALL,
        "none": lambda: 1.0,
    }
    advantages = advantages / pick(scales, scale, "scale_rewards")()
    return _finished(np.where(scored.is_flat[:, None], 0.0, advantages))


def normalized_then_summed(scores: np.ndarray, weights: Sequence[float], group: int) -> np.ndarray:
    """GDPO (Liu et al. 2026): each reward is normalised in its group, then they are summed and
    normalised over the batch."""
    grouped = scores.astype(np.float64).reshape(-1, group, scores.shape[1])
    scaled = (grouped - _mean(grouped, axis=1)[:, None]) / (_std(grouped, axis=1)[:, None] + _SMALL)
    total = combine(scaled.reshape(scores.shape), weights)
    total = np.where(np.isnan(scores).all(axis=1), np.nan, np.nan_to_num(total))
    return _finished(_normalized(total))


def leave_one_out(scored: Scored, normalize: bool = False) -> np.ndarray:
    """RLOO (Ahmadian et al. 2024): reward minus the mean of the other completions of its prompt."""
    grouped = scored.grouped
    others = np.maximum((~np.isnan(grouped)).sum(axis=1, keepdims=True) - 1, 0)
    with np.errstate(all="ignore"):
        advantages = grouped - (np.nansum(grouped, axis=1, keepdims=True) - grouped) / others
    advantages = np.where(scored.is_flat[:, None] | (others == 0), 0.0 * grouped, advantages)
    return _finished(_normalized(advantages.reshape(-1)) if normalize else advantages)


def globally_normalized(
    scored: Scored,
    mask: np.ndarray,
    kl: np.ndarray | None = None,
    beta: float = 0.0,
    *,
    baseline: bool = False,
) -> np.ndarray:
    """REINFORCE++ (Hu 2025): the reward, less the group's mean with `baseline`, normalised over all
    tokens of the batch. With `kl` (N, C) each token pays beta·kl from there on. Float32 (N, 1), or
    (N, C) with `kl`; `mask` (N, C) is 1 on the tokens that count."""
    rewards = scored.rewards
    if baseline:
        rewards = (scored.grouped - _mean(scored.grouped, axis=1)[:, None]).reshape(-1)
    known = ~np.isnan(rewards)
    returns = np.nan_to_num(rewards)[:, None] * np.ones_like(mask, np.float64)
    if kl is not None:
        paid = (beta * kl * mask).astype(np.float64)
        returns = returns - np.cumsum(paid[:, ::-1], axis=1)[:, ::-1]
    counted = mask.astype(np.float64) * known[:, None]
    count = max(counted.sum(), 1.0)
    mean = (returns * counted).sum() / count
    spread = math.sqrt(max(float((np.square(returns - mean) * counted).sum() / count), 1e-8))
    advantages = np.where(known[:, None], (returns - mean) / spread, 0.0)
    if kl is None:
        advantages = advantages[:, :1]
    return advantages.astype(np.float32)


def reward_metrics(scored: Scored, spread: np.ndarray | None = None) -> dict[str, float]:
    """`reward` and `reward_std` over the batch, and `frac_reward_zero_std`: the share of spreads
    that are 0, those of the groups unless others are given."""
    spread = scored.spread if spread is None else spread
    return {
        "reward": float(_mean(scored.rewards)),
        "reward_std": float(_std(scored.rewards)),
        "frac_reward_zero_std": float(np.isclose(spread, 0.0, rtol=0, atol=1e-8).mean()),
    }


def _normalized(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - _mean(values)) / (_std(values) + _SMALL))


def _finished(advantages: np.ndarray) -> np.ndarray:
    return np.asarray(np.nan_to_num(advantages.reshape(-1)), dtype=np.float32)


def _mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing but NaN: the mean is NaN
        return np.asarray(np.nanmean(values, axis=axis))


def _std(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer than two values: NaN
        return np.asarray(np.nanstd(values, axis=axis, ddof=1))
