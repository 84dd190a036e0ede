"""Validation of trainers that learn from rewards: what the model's answers to held-out prompts are worth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from chuk_lib.rewards.columns import TO_WRITE
from chuk_lib.training.online.collect import Collector, Experience
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.online.report import completion_metrics, score_metrics
from chuk_lib.training.utils.advantages import combine


class RewardEvaluator:
    """Answers every prompt of the collector's data, greedily or sampled as `config` says, with the same random keys
    each time, and scores the answers."""

    def __init__(self, collect: Collector, config: OnlineConfig) -> None:
        self._collect = collect
        self._config = config

    def __call__(self, step: int) -> dict[str, Any]:
        """`eval_reward`, `eval_reward_std`, `eval_rewards/<name>/mean` and `/std`, `eval_completions/…`, and one answer
        as a `sample`, another prompt each time. Raises TrainingError when a reward fails."""
        rows = list(range(len(self._collect.dataset)))
        found = self._collect(step, rows, self._config.eval_sampling(), self._config.eval_num_generations or 1)
        rewards = combine(found.scores, self._collect.rewards.weights)
        known = rewards[~np.isnan(rewards)]
        metrics = {
            "reward": float(known.mean()) if len(known) else math.nan,
            "reward_std": float(known.std(ddof=1)) if len(known) > 1 else 0.0,
            **score_metrics(found, self._collect.rewards.names),
            **completion_metrics(found.lengths, found.terminated),
        }
        named = {f"eval_{name}": value for name, value in metrics.items()}
        return named | {"sample": sample_of(found, step % len(found), rewards)}


def sample_of(experience: Experience, index: int, rewards: np.ndarray) -> dict[str, Any]:
    """One completion for display: `prompt`, `target` (what exact match compares with, if any), `completion`,
    `reward`."""
    row = experience.prompts[index]
    answer = next((row.columns[name] for name in TO_WRITE if row.columns.get(name) is not None), None)
    return {
        "prompt": row.text, "target": "" if answer is None else str(answer),
        "completion": experience.rollouts[index].text,
        "reward": None if math.isnan(rewards[index]) else float(rewards[index]),
    }  # fmt: skip
