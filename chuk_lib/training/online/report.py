"""What an online trainer tells of a step: rewards and completions in numbers (TRL's names), and the
completions themselves; and what answers to held-out prompts are worth."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from chuk_lib.rewards.columns import TO_FIND, TO_WRITE
from chuk_lib.training.online.collect import Collector
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.online.episode import Episode, Turn
from chuk_lib.training.online.played import Played
from chuk_lib.training.utils.advantages import combine


def completion_metrics(lengths: np.ndarray, terminated: np.ndarray) -> dict[str, float]:
    """`completions/…` of lengths (N,) in tokens; `clipped_ratio` is the share that ran out of room,
    and 0 stands for the lengths of terminated ones when there are none."""
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


def played_metrics(played: Played, names: Sequence[str]) -> dict[str, float]:
    """What reward functions logged, `rewards/<name>/mean` and `/std` (ddof 1; unscorable
    completions left out), and `completions/…` of what the model wrote."""
    metrics: dict[str, float] = dict(played.metrics)
    for name, column in zip(names, played.scores.T, strict=True):
        values = column[~np.isnan(column)].astype(np.float64)
        metrics[f"rewards/{name}/mean"] = float(values.mean()) if len(values) else math.nan
        metrics[f"rewards/{name}/std"] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return metrics | _tool_metrics(played) | completion_metrics(played.written, played.terminated)


def _tool_metrics(played: Played) -> dict[str, float]:
    """TRL's: calls an episode, and the share of calls that failed; nothing without tools."""
    counts = [one.calls for one in played.episodes if one.calls is not None]
    if not counts:
        return {}
    calls, failures = sum(counts), sum(one.failures for one in played.episodes)
    return {
        "tools/call_frequency": calls / len(counts),
        "tools/failure_frequency": failures / calls if calls else 0.0,
    }


def pace_metrics(played: Played) -> dict[str, float]:
    """Seconds of a step, which ends now, by what they went into, and tokens a second of sampling
    and training apart. Where others play meanwhile, a step takes only what it waits for them."""
    rollout, reward, training = (
        played.playing_seconds,
        played.scoring_seconds,
        time.perf_counter() - played.began,
    )
    overlapped = {} if played.waited is None else {"rollout_wait_seconds": played.waited}
    waited = rollout + reward if played.waited is None else played.waited
    return overlapped | {
        "step_time": waited + training,
        "rollout_seconds": rollout,
        "reward_seconds": reward,
        "training_seconds": training,
        "rollout_tokens_per_second": float(played.written.sum()) / max(rollout, 1e-9),
        "training_tokens_per_second": played.trained_tokens / max(training, 1e-9),
    }


def completion_rows(
    episodes: Sequence[Episode],
    names: Sequence[str],
    rewards: np.ndarray,
    wanted: Sequence[str] = TO_FIND,
) -> list[dict[str, Any]]:
    """A line for each episode: prompt, completion, what was `wanted` by the first of these columns
    that the row has, `rewards` by name, their weighted sum `reward`, `advantage`, what functions
    gave to `log_extra`, the `turns` where others than the model had a word, tokens that the model
    wrote, finish reason, and the prompt's row in its file."""
    lines = []
    extras = dict.fromkeys(name for one in episodes for name in one.extra)
    for one, reward in zip(episodes, rewards, strict=True):
        asked = one.prompt.asked
        parts = {name: number(value) for name, value in zip(names, one.scores, strict=True)}
        line: dict[str, Any] = {
            "prompt": asked.text,
            "completion": one.text,
            "reward": number(reward),
            "rewards": parts,
        }
        known = [asked.columns[name] for name in wanted if asked.columns.get(name) is not None]
        line |= {"wanted": str(known[0])} if known else {}
        line["advantage"] = number(one.advantage)
        extra = {name: one.extra.get(name) for name in extras}
        line |= {"extra": extra} if extra else {}
        line |= {"turns": list(map(_told, one.turns))} if len(one.turns) > 1 else {}
        lines.append(
            line | {"tokens": one.written, "finish_reason": one.reason, "row": asked.source.line}
        )
    return lines


def _told(turn: Turn) -> dict[str, Any]:
    """Who said what, with the calls and the tool's name where there are such."""
    told: dict[str, Any] = {"role": turn.role, "text": turn.text}
    told |= {"calls": list(turn.calls)} if turn.calls else {}
    return told | ({"name": turn.name} if turn.name else {})


def number(value: Any) -> float | None:
    """A number for JSON: None for NaN."""
    return None if math.isnan(value) else float(f"{float(value):.7g}")


class RewardEvaluator:
    """Answers every prompt of the collector's data, greedily or sampled as `config` says, with the
    same random keys each time, and scores the answers."""

    def __init__(self, collect: Collector, config: OnlineConfig) -> None:
        self._collect = collect
        self._config = config

    def __call__(self, step: int) -> dict[str, Any]:
        """`eval_reward`, `eval_reward_std`, `eval_rewards/<name>/mean` and `/std`,
        `eval_completions/…`, and one answer as a `sample`, another prompt each time. Raises
        TrainingError when a reward fails."""
        rows = list(range(len(self._collect.dataset)))
        found = self._collect(
            step, rows, self._config.eval_sampling(), self._config.eval_num_generations or 1
        )
        rewards = combine(found.scores, self._collect.rewards.weights)
        known = rewards[~np.isnan(rewards)]
        metrics = {
            "reward": float(known.mean()) if len(known) else math.nan,
            "reward_std": float(known.std(ddof=1)) if len(known) > 1 else 0.0,
            **played_metrics(found, self._collect.rewards.names),
        }
        named = {f"eval_{name}": value for name, value in metrics.items()}
        shown = step % len(found.episodes)
        return named | {"sample": sample_of(found.episodes[shown], rewards[shown])}


def sample_of(episode: Episode, reward: float) -> dict[str, Any]:
    """One episode for display: `prompt`, `target` (what exact match compares with, if any),
    `completion`, `reward`."""
    row = episode.prompt.asked
    answer = next(
        (row.columns[name] for name in TO_WRITE if row.columns.get(name) is not None), None
    )
    return {
        "prompt": row.text,
        "target": "" if answer is None else str(answer),
        "completion": episode.text,
        "reward": None if math.isnan(reward) else float(reward),
    }
