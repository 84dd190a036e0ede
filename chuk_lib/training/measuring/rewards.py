"""Rewards of what a model writes to the prompts of a data source, and pass@k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
import numpy as np

from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.rewards import RewardSet
from chuk_lib.training.measuring.pass_at_k import pass_at_k
from chuk_lib.training.online.collect import Collector, check_prompts
from chuk_lib.training.online.episode import Episode, OneTurn, Player
from chuk_lib.training.online.played import Played


@dataclass(frozen=True)
class RewardMeasurement:
    """Completions of P prompts, `samples` each, with their scores (P·samples, K) by K rewards.

    A completion passes when the first reward gives it `pass_score` or more.
    """

    played: Played
    names: tuple[str, ...]
    weights: tuple[float, ...]
    totals: np.ndarray
    samples: int
    pass_score: float

    def values(self) -> dict[str, np.ndarray]:
        """Means per prompt, float64 (P,): `reward` (the weighted sum) and `rewards/NAME`; NaN where
        no sample could be scored."""
        named = {
            f"rewards/{name}": self.played.scores[:, index] for index, name in enumerate(self.names)
        }
        columns = {"reward": self.totals, **named}
        return {
            name: _mean(column.reshape(-1, self.samples), axis=1)
            for name, column in columns.items()
        }

    def pass_at(self, k: int) -> np.ndarray:
        """pass@k per prompt, float64 (P,); NaN where the first reward could not score."""
        first = self.played.scores[:, 0].reshape(-1, self.samples)
        passed = (np.nan_to_num(first, nan=-np.inf) >= self.pass_score).sum(axis=1)
        return np.where(np.isnan(first).all(axis=1), np.nan, pass_at_k(self.samples, passed, k))

    def as_dict(self, ks: Sequence[int]) -> dict[str, Any]:
        """Plain data: means, spreads and counts of each reward, pass@k, lengths."""
        scores, lengths = self.played.scores, self.played.written
        parts = {
            name: {
                "mean": _number(_mean(scores[:, index])),
                "std": _number(_spread(scores[:, index])),
                "weight": self.weights[index],
                "unscorable": int(np.isnan(scores[:, index]).sum()),
            }
            for index, name in enumerate(self.names)
        }
        return {
            "prompts": len(scores) // self.samples,
            "samples": self.samples,
            "reward": _number(_mean(self.totals)),
            "reward_std": _number(_spread(self.totals)),
            "rewards": parts,
            "pass_at_k": {str(k): _number(_mean(self.pass_at(k))) for k in ks},
            "pass_reward": self.names[0],
            "pass_score": self.pass_score,
            "completion_tokens": float(lengths.mean()),
            "truncated": float(1 - self.played.terminated.mean()),
        } | self._plays()

    def _plays(self) -> dict[str, Any]:
        """Where tools were called: turns, calls, what share of these failed, and why plays
        ended."""
        episodes = self.played.episodes
        if episodes[0].calls is None:
            return {}
        calls, count = sum(one.calls or 0 for one in episodes), len(episodes)
        reasons = Counter(str(one.reason) for one in episodes)
        return {
            "plays": {
                "success": float(np.mean(np.nan_to_num(self.pass_at(1)))),
                "turns": sum(map(_turns, episodes)) / count,
                "calls": calls / count,
                "failed_calls": sum(one.failures for one in episodes) / max(calls, 1),
                "reasons": dict(sorted(reasons.items())),
            }
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every completion with its scores; None where a reward could not score."""
        for index, one in enumerate(self.played.episodes):
            row, scores = one.prompt.asked, one.scores
            yield {
                "prompt": row.prompt,
                "completion": one.text,
                "sample": index % self.samples,
                "reward": _number(self.totals[index]),
                "rewards": {
                    name: _number(score) for name, score in zip(self.names, scores, strict=True)
                },
                "passed": bool(scores[0] >= self.pass_score),
                "tokens": one.written,
                "finish_reason": one.reason,
                "source": str(row.source),
            } | ({} if one.calls is None else {"messages": [turn.message for turn in one.turns]})


def measure_rewards(
    model: nn.Module,
    tokenizer: LoadedTokenizer,
    dataset: PromptDataset,
    rewards: RewardSet,
    sampling: SamplingConfig,
    *,
    samples: int = 1,
    pass_score: float = 1.0,
    player: Player | None = None,
) -> RewardMeasurement:
    """Have `samples` completions written to each prompt, by `player` where there is one, and score
    them.

    Raises ConfigError when all samples would be the same, DataError for prompts that do not fit the
    context or a column that a reward misses, and TrainingError when a reward fails."""
    if samples > 1 and sampling.greedy:
        raise ConfigError(
            f"{samples} samples at temperature 0 are all the same",
            "set --temperature, or --samples 1",
        )
    check_prompts(dataset, model, tokenizer, rewards, getattr(player, "columns", ()))
    collect = Collector(dataset, rewards, player or OneTurn(model, tokenizer))
    played = collect(0, range(len(dataset)), sampling, samples)
    totals = rewards.total(played.scores)
    return RewardMeasurement(played, rewards.names, rewards.weights, totals, samples, pass_score)


def _turns(episode: Episode) -> int:
    return sum(turn.role == "assistant" for turn in episode.turns)


def _mean(values: np.ndarray, axis: int | None = None) -> Any:
    """The mean of what is a number; NaN where nothing is."""
    counts = (~np.isnan(values)).sum(axis=axis)
    sums = np.nansum(values.astype(np.float64), axis=axis)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _spread(values: np.ndarray) -> float:
    """The standard deviation of what is a number, as `rewards/NAME/std` has it; 0 for a single
    one."""
    known = values[~np.isnan(values)].astype(np.float64)
    return float(known.std(ddof=1)) if len(known) > 1 else 0.0


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
