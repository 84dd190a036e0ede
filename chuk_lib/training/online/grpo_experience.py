"""What a GRPO step learns from: completions with their scores, and what those are worth as advantages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chuk_lib.training.online.collect import Collector, Experience, PromptPlan, sampling_seed
from chuk_lib.training.online.estimators import Judged
from chuk_lib.training.online.grpo_batches import TrainingRows, padded
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.online.report import completion_metrics, completion_rows, score_metrics
from chuk_lib.training.utils import advantages as adv


@dataclass
class Gathered:
    """A step's experience and what is told about it. `sampled` holds all completions, `chosen` those learned from;
    `advantages` (N,) of the latter are filled in when they are known (of its first token, where each has its own)."""

    sampled: Experience
    chosen: Experience
    metrics: dict[str, float]
    began: float
    advantages: np.ndarray = field(default_factory=lambda: np.zeros(0))
    trained_tokens: int = 0


class Gatherer:
    """Samples and scores the completions of a step; with dynamic sampling, groups that teach nothing give way."""

    def __init__(self, config: GRPOConfig, plan: PromptPlan, collect: Collector) -> None:
        self._config = config
        self._plan = plan
        self._collect = collect

    def __call__(self, step: int) -> Gathered:
        """The experience of step `step` (0-based). Metrics of rewards and completions are those of the plan's own
        prompts, whatever gave way to others. Raises TrainingError when a reward fails."""
        config, group = self._config, self._config.num_generations
        sampling = config.sampling(sampling_seed(config.seed, step))
        prompts = self._plan.prompts(step)
        first = self._collect(step, prompts, sampling, group)
        chosen = sampled = first
        spare = self._plan.spare(step, prompts) if config.dynamic_sampling else []
        rounds = 0
        while rounds < config.dynamic_sampling and spare:
            flat = np.flatnonzero(self.scored(chosen).is_flat)
            if not len(flat):
                break
            taken, spare, rounds = spare[: len(flat)], spare[len(flat) :], rounds + 1
            fresh = self._collect(step, taken, sampling, group)
            sampled, chosen = sampled + fresh, _replaced(chosen, fresh, flat[: len(taken)].tolist(), group)
        metrics = self._metrics(first)
        if config.dynamic_sampling:
            metrics |= {
                "dynamic_sampling/rounds": float(rounds),
                "dynamic_sampling/resampled_prompts": (len(sampled) - len(first)) / group,
                "dynamic_sampling/frac_zero_std": float(self.scored(chosen).is_flat.mean()),
            }
        return Gathered(sampled, chosen, metrics, time.perf_counter())

    def scored(self, found: Experience) -> adv.Scored:
        """Rewards summed over functions."""
        return adv.Scored(adv.combine(found.scores, self._collect.rewards.weights), self._config.num_generations)

    def lines(self, gathered: Gathered) -> list[dict[str, Any]]:
        """The lines of all completions; those that gave way have no advantage."""
        pairs = zip(gathered.chosen.rollouts, gathered.advantages, strict=True)
        known = {id(one): float(value) for one, value in pairs}
        values = np.array([known.get(id(one), np.nan) for one in gathered.sampled.rollouts])
        rewards = self.scored(gathered.sampled).rewards
        return completion_rows(gathered.sampled, self._collect.rewards.names, rewards, values)

    def _metrics(self, found: Experience) -> dict[str, float]:
        scored, config = self.scored(found), self._config
        by_batch = config.scale_rewards == "batch" or config.multi_objective_aggregation == "normalize_then_sum"
        spread = np.array([np.nanstd(scored.rewards)]) if by_batch else None  # what advantages are divided by, as TRL
        return (
            adv.reward_metrics(scored, spread)
            | score_metrics(found, self._collect.rewards.names)
            | completion_metrics(found.lengths, found.terminated)
        )


def advantages_of(
    config: GRPOConfig, weights: Sequence[float], gathered: Gathered, rollout: TrainingRows
) -> np.ndarray:
    """Advantages float32 (N, 1), or (N, C) where tokens pay for their KL one by one. A KL in the reward needs `old` and
    `reference` of the rollout; it is told as the metric `kl`."""
    scores, mask = gathered.chosen.scores, padded(rollout.masks, max(map(len, rollout.masks)))
    scored = adv.Scored(adv.combine(scores, weights), config.num_generations)
    kl = _paid_kl(gathered, rollout) if config.kl_in_reward else None
    advantages, metrics = config.estimator.advantages(config, Judged(scores, weights, scored, mask, kl))
    gathered.metrics.update(metrics)
    return advantages


def _paid_kl(gathered: Gathered, rollout: TrainingRows) -> np.ndarray:
    """k1 of each token (N, C), 0 where none counts."""
    assert rollout.old is not None
    assert rollout.reference is not None
    parts = zip(rollout.old, rollout.reference, rollout.masks, strict=True)
    kl = padded([(old - reference) * mask for old, reference, mask in parts], max(map(len, rollout.masks)))
    gathered.metrics["kl"] = float(kl.sum() / max(rollout.tokens.sum(), 1))
    return kl


def _replaced(old: Experience, fresh: Experience, groups: Sequence[int], group: int) -> Experience:
    """`old` with its groups `groups` taken by those of `fresh`, in their places."""
    places = {at: index for index, at in enumerate(groups)}
    both, start = old + fresh, len(old)
    keep: list[int] = []
    for at in range(len(old) // group):
        begin = start + places[at] * group if at in places else at * group
        keep += range(begin, begin + group)
    return both.only(keep)
