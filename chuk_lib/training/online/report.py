"""What a step of an online trainer reports: rewards and completions in numbers (TRL's names), and the completions
themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from chuk_lib.rewards.columns import TO_FIND
from chuk_lib.training.online.collect import Experience


def completion_metrics(lengths: np.ndarray, terminated: np.ndarray) -> dict[str, float]:
    """`completions/…` of lengths (N,) in tokens; `clipped_ratio` is the share that ran out of room, and 0 stands for
    the lengths of terminated ones when there are none."""
    ended = lengths[terminated] if terminated.any() else np.zeros(1)
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(1 - terminated.mean()),
        "completions/mean_terminated_length": float(ended.mean()),
        "completions/min_terminated_length": float(ended.min()),
        "completions/max_terminated_length": float(ended.max()),
    }


def score_metrics(experience: Experience, names: Sequence[str]) -> dict[str, float]:
    """`rewards/<name>/mean` and `/std` (ddof 1), unscorable completions left out, and what functions logged."""
    metrics: dict[str, float] = dict(experience.logged.metrics)
    for name, column in zip(names, experience.scores.T, strict=True):
        values = column[~np.isnan(column)].astype(np.float64)
        metrics[f"rewards/{name}/mean"] = float(values.mean()) if len(values) else math.nan
        metrics[f"rewards/{name}/std"] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return metrics


def pace_metrics(experience: Experience, training_seconds: float, trained_tokens: int) -> dict[str, float]:
    """Seconds of a step by what they went into, and tokens a second of sampling and of training apart."""
    rollout, reward = experience.rollout_seconds, experience.reward_seconds
    return {
        "step_time": rollout + reward + training_seconds,
        "rollout_seconds": rollout,
        "reward_seconds": reward,
        "training_seconds": training_seconds,
        "rollout_tokens_per_second": float(experience.lengths.sum()) / max(rollout, 1e-9),
        "training_tokens_per_second": trained_tokens / max(training_seconds, 1e-9),
    }


def completion_rows(
    experience: Experience, names: Sequence[str], rewards: np.ndarray, advantages: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """A line for each completion: prompt, completion, what was `wanted` where a usual column says so, `rewards` by
    name, their weighted sum `reward`, `advantage`, what functions gave to `log_extra`, tokens, finish reason, and the
    prompt's row in its file."""
    lines = []
    for index, (row, one) in enumerate(zip(experience.prompts, experience.rollouts, strict=True)):
        parts = {name: number(value) for name, value in zip(names, experience.scores[index], strict=True)}
        line = {"prompt": row.text, "completion": one.text, "reward": number(rewards[index]), "rewards": parts}
        known = [row.columns[name] for name in TO_FIND if row.columns.get(name) is not None]
        line |= {"wanted": str(known[0])} if known else {}
        if advantages is not None:
            line["advantage"] = number(advantages[index])
        extra = {name: column[index] for name, column in experience.logged.columns.items()}
        line |= {"extra": extra} if extra else {}
        lines.append(line | {"tokens": len(one.ids), "finish_reason": one.reason, "row": row.source.line})
    return lines


def number(value: Any) -> float | None:
    """A number for JSON: None for NaN."""
    return None if math.isnan(value) else float(f"{float(value):.7g}")
