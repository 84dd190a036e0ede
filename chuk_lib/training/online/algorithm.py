"""What GRPO and PPO share as algorithms: play and score the prompts of a step, learn from the
episodes in several updates, and tell what came of it.

Everything that a step needs beside the weights comes from (data, settings, seed, step), which is
what makes a resumed run go on exactly."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Generic, TypeVar

import mlx.nn as nn
import numpy as np

from chuk_lib.inference.config import SamplingConfig
from chuk_lib.models.heads import output_head
from chuk_lib.rewards.columns import TO_FIND
from chuk_lib.rewards.reward_set import RewardSet
from chuk_lib.training.algorithm import Algorithm, Report, Update
from chuk_lib.training.online.collect import Collector, PromptPlan, sampling_seed
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.online.episode import Episode, GroupPrompt
from chuk_lib.training.online.played import Played, merged
from chuk_lib.training.online.report import completion_rows, pace_metrics
from chuk_lib.training.reference import Reference
from chuk_lib.training.utils.advantages import combine
from chuk_lib.training.utils.completion_log_probs import RowStats, Shapes, row_stats

Config = TypeVar("Config", bound=OnlineConfig)


class OnlineAlgorithm(Algorithm, Generic[Config]):
    """`policy` is the language model in `model` that plays, `collect` has it played and scored,
    `reference` is None when no KL is asked for, `shapes` lays rows out."""

    def __init__(
        self,
        model: nn.Module,
        policy: nn.Module,
        config: Config,
        plan: PromptPlan,
        collect: Collector,
        reference: Reference | None,
        shapes: Shapes,
    ) -> None:
        self.model = model
        self._policy = policy
        self._head = output_head(policy)
        self._config = config
        self._plan = plan
        self._collect = collect
        self._reference = reference
        self._shapes = shapes
        self._played: Played | None = None

    @abstractmethod
    def _rollout(self, step: int) -> Played:
        """Play and score the prompts of a step (0-based); its metrics are those of the report."""

    def _next(self, step: int) -> Played:
        """The episodes that a step learns from."""
        return self._rollout(step)

    @abstractmethod
    def _learn(self, played: Played, step: int) -> Iterator[Update]:
        """Every update of the step, with its `trained_tokens`."""

    def updates(self, step: int) -> Iterable[Update]:
        """Play, score, then every update of the step; what was played is counted with the first."""
        self._played = played = self._next(step)
        played.began = time.perf_counter()
        counts = {"tokens": sum(map(len, played.episodes)), "completions": len(played.episodes)}
        for update in self._learn(played, step):
            played.trained_tokens += update.counts["trained_tokens"]
            yield update._replace(counts=counts | update.counts)
            counts = {}

    def where(self, step: int) -> str:
        """The prompts of the step by file and row."""
        played = self._played
        rows = [one.prompt.row for one in played.learned] if played else self._plan.prompts(step)
        return self._collect.where(rows)

    def finish(self, step: int) -> Report:
        """Rewards first, then what they were made of, completions and pace."""
        if self._played is None:
            return Report()
        played, self._played = self._played, None
        pace, rewards = pace_metrics(played), self._collect.rewards
        totals = self._rewards(played.episodes)
        wanted = rewards.wanted if isinstance(rewards, RewardSet) else TO_FIND
        lines = completion_rows(played.episodes, rewards.names, totals, wanted)
        return Report(played.metrics | pace | self._told(played, pace), lines)

    def _told(self, played: Played, pace: dict[str, float]) -> dict[str, float]:
        """What else there is to tell when a step is done."""
        return {}

    def _rewards(self, episodes: Sequence[Episode]) -> np.ndarray:
        """Weighted sums of the scores, float32 (N,); NaN where no reward could score."""
        return combine(np.stack([one.scores for one in episodes]), self._collect.rewards.weights)

    def _play(self, step: int, rows: Sequence[int]) -> Played:
        """Episodes of some prompts, with the random keys of this step."""
        collect, n = self._collect, self._config.num_generations
        sampling = self._sampling(step)
        return merged([collect.play(step, part, sampling, n) for part in self._parts(rows)])

    def _sampling(self, step: int) -> SamplingConfig:
        return self._config.sampling(sampling_seed(self._config.seed, step))

    def _parts(self, rows: Sequence[int]) -> list[list[GroupPrompt]]:
        """The prompts that are played at once, in parts of equal size as far as that goes."""
        prompts, count = self._collect.prompts(rows), self._config.chosen_parts
        ends = [len(prompts) * part // count for part in range(count + 1)]
        found = [prompts[start:end] for start, end in pairwise(ends)]
        return [part for part in found if part]

    def _reference_logps(self, episodes: Sequence[Episode]) -> list[np.ndarray]:
        """Log-probs of what was written, under the reference."""
        assert self._reference is not None
        with self._reference.active() as model:
            return self._stats_under(model, episodes).logps

    def _stats_under(self, model: nn.Module, episodes: Sequence[Episode]) -> RowStats:
        """Log-probs and entropies of what was written, under a model as it is now."""
        head = self._head if model is self._policy else None
        prompts, completions = (
            [one.prompt.asked.ids for one in episodes],
            [one.ids for one in episodes],
        )
        masks, temperature = [one.mask for one in episodes], self._config.temperature
        return row_stats(model, prompts, completions, temperature, self._shapes, head, masks=masks)
