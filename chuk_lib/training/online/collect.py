"""What trainers that learn from the model's own completions share: which prompts a step takes, and its experience.

Which prompts, and the random keys of their completions, depend on (data, settings, seed, step) alone, so that a
resumed run samples what an uninterrupted one does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import mlx.nn as nn
import numpy as np

from chuk_lib import runtime
from chuk_lib.data.prompt_dataset import PromptDataset, PromptRow, columns_of
from chuk_lib.data.reader import DataSource
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.prompts import context_length, limit_words
from chuk_lib.inference.vocabulary import check_tokens
from chuk_lib.rewards.types import Completions, Logged, Text
from chuk_lib.training.engine import step_seed
from chuk_lib.training.loading import load_splits
from chuk_lib.training.online.config import OnlineConfig

if TYPE_CHECKING:
    from chuk_lib.inference.rollouts import Rollout


class Rewards(Protocol):
    """What scores completions; `chuk_lib.rewards.RewardSet` is one."""

    @property
    def names(self) -> tuple[str, ...]:
        """One a reward, for metrics."""

    @property
    def weights(self) -> tuple[float, ...]:
        """One a reward."""

    def check_columns(self, available: Iterable[str], where: str) -> None:
        """Raise DataError when a column is missing."""

    def score(self, batch: Completions) -> np.ndarray:
        """Scores float32 (N, K); NaN where a reward cannot score."""


class Sampler(Protocol):
    """What writes completions: `ModelSampler`, or a table of fixed ones."""

    def __call__(
        self, prompts: Sequence[Sequence[int]], config: SamplingConfig, group_size: int, numbers: Sequence[int]
    ) -> list[Rollout]:
        """`group_size` completions of each prompt, prompt-major. `numbers` name the prompts for their random keys."""


@dataclass(frozen=True)
class ModelSampler:
    """Samples from a model; `token_budget` bounds what is decoded side by side."""

    model: nn.Module
    tokenizer: Any
    token_budget: int | None = None

    def __call__(
        self, prompts: Sequence[Sequence[int]], config: SamplingConfig, group_size: int, numbers: Sequence[int]
    ) -> list[Rollout]:
        """See `Sampler`."""
        from chuk_lib.inference.rollouts import rollouts

        return rollouts(
            self.model, self.tokenizer, prompts, config, group_size=group_size, numbers=numbers,
            token_budget=self.token_budget,
        )  # fmt: skip


class PromptPlan:
    """Which prompts each step takes, by their index in the data.

    Prompts come from an endless stream of epochs, each in an order of its own (drawn from seed and epoch; with
    `shuffle` off the order of the file), so that every prompt is used once an epoch, also when `prompts_per_step` does
    not divide their number.
    """

    def __init__(
        self, count: int, prompts_per_step: int, *, num_epochs: float = 1, max_steps: int | None = None, seed: int = 0,
        shuffle: bool = True,
    ) -> None:  # fmt: skip
        self.count = count
        self.prompts_per_step = prompts_per_step
        self.seed = seed
        self.shuffle = shuffle
        self.steps = max_steps if max_steps is not None else math.ceil(count * num_epochs / prompts_per_step)
        self._order = lru_cache(maxsize=4)(self._epoch_order)

    def prompts(self, step: int) -> list[int]:
        """The prompts of step `step` (0-based)."""
        places = range(step * self.prompts_per_step, (step + 1) * self.prompts_per_step)
        return [int(self._order(place // self.count)[place % self.count]) for place in places]

    def spare(self, step: int, used: Sequence[int]) -> list[int]:
        """All prompts that the step does not use, in an order drawn from (seed, step)."""
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, step, 1])))
        taken = set(used)
        return [int(row) for row in random.permutation(self.count) if int(row) not in taken]

    def epoch(self, step: int) -> float:
        """How many passes over the prompts `step` steps are."""
        return step * self.prompts_per_step / self.count

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.count)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))).permutation(self.count)


@dataclass(frozen=True)
class Experience:
    """Completions of some prompts and what they are worth: N = prompts × group, prompt-major.

    `rows` (N) are the prompts' indices in the data, `prompts` (N) the rows themselves, `scores` float32 (N, K) with
    NaN where a reward cannot score; `logged` is what reward functions gave to `log_metric` and `log_extra`.
    """

    rows: list[int]
    prompts: list[PromptRow]
    rollouts: list[Rollout]
    scores: np.ndarray
    rollout_seconds: float = 0.0
    reward_seconds: float = 0.0
    logged: Logged = field(default_factory=Logged)

    def __len__(self) -> int:
        return len(self.rollouts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each completion, int64 (N,)."""
        return np.array([len(one.ids) for one in self.rollouts], dtype=np.int64)

    @property
    def terminated(self) -> np.ndarray:
        """Whether each completion came to its end before it ran out of room, bool (N,)."""
        return np.array([one.reason != "length" for one in self.rollouts], dtype=bool)

    @property
    def tokens(self) -> int:
        """Tokens of prompts and completions, a prompt counted with each of its completions."""
        return int(self.lengths.sum()) + sum(len(row) for row in self.prompts)

    def only(self, keep: Sequence[int]) -> Experience:
        """Some of the completions, in the order given; the seconds stay whole."""
        return Experience(
            [self.rows[i] for i in keep], [self.prompts[i] for i in keep], [self.rollouts[i] for i in keep],
            self.scores[list(keep)], self.rollout_seconds, self.reward_seconds,
            Logged({name: [column[i] for i in keep] for name, column in self.logged.columns.items()},
                   self.logged.metrics),
        )  # fmt: skip

    def __add__(self, other: Experience) -> Experience:
        return Experience(
            self.rows + other.rows, self.prompts + other.prompts, self.rollouts + other.rollouts,
            np.concatenate([self.scores, other.scores]), self.rollout_seconds + other.rollout_seconds,
            self.reward_seconds + other.reward_seconds, _joined(self, other),
        )  # fmt: skip


class Collector:
    """Makes experience: has completions sampled, and scores them."""

    def __init__(self, dataset: PromptDataset, rewards: Rewards, sample: Sampler) -> None:
        self.dataset = dataset
        self.rewards = rewards
        self.sample = sample

    def __call__(self, step: int, rows: Sequence[int], config: SamplingConfig, group_size: int) -> Experience:
        """Experience with the prompts `rows` at `step`. Random keys come from `config.seed`, the row and the member.

        Raises TrainingError when a reward fails.
        """
        began = time.perf_counter()
        prompts = [self.dataset[row] for row in rows]
        written = self.sample([row.ids for row in prompts], config, group_size, self._numbers(rows))
        runtime.release_cache()
        sampled = time.perf_counter()
        of_each = [row for row in prompts for _ in range(group_size)]
        with runtime.users_own():
            scores = self.rewards.score(completions_of(of_each, written, step))
        ended = time.perf_counter()
        indices = [int(row) for row in rows for _ in range(group_size)]
        logged = getattr(self.rewards, "logged", None) or Logged()
        return Experience(indices, of_each, written, scores, sampled - began, ended - sampled, logged)

    def where(self, rows: Iterable[int]) -> str:
        """Some prompts by file and row."""
        known = list(dict.fromkeys(rows))
        lines = ", ".join(str(self.dataset[row].source.line) for row in known[:16])
        return f"completions of `{self.dataset.source}` rows {lines}{' …' if len(known) > 16 else ''}"

    def _numbers(self, rows: Sequence[int]) -> list[int]:
        """Numbers for random keys: the row, and beyond the data's length when it comes again, so that two groups of
        one prompt differ."""
        seen: dict[int, int] = {}
        numbers = []
        for row in rows:
            numbers.append(row + seen.get(row, 0) * len(self.dataset))
            seen[row] = seen.get(row, 0) + 1
        return numbers


def _joined(first: Experience, second: Experience) -> Logged:
    """Columns one after the other, None where one lacks them; metrics averaged."""
    both = (first, second)
    columns = {
        name: [value for one in both for value in one.logged.columns.get(name, [None] * len(one))]
        for name in dict.fromkeys([*first.logged.columns, *second.logged.columns])
    }
    found = [one.logged.metrics for one in both]
    metrics = {
        name: float(np.mean([part[name] for part in found if name in part]))
        for name in dict.fromkeys([*found[0], *found[1]])
    }
    return Logged(columns, metrics)


def sampling_seed(seed: int, step: int) -> int:
    """The seed of a step's completions, 32 bits."""
    return step_seed(seed, step) % 2**32


def completions_of(prompts: Sequence[PromptRow], written: Sequence[Rollout], step: int = 0) -> Completions:
    """Completions as rewards read them: messages when the prompts are messages."""
    texts: list[Text] = [
        one.text if isinstance(row.prompt, str) else [{"role": "assistant", "content": one.text}]
        for row, one in zip(prompts, written, strict=True)
    ]
    return Completions(
        [row.prompt for row in prompts], texts, [one.ids.tolist() for one in written], columns_of(prompts), step,
        [one.reason == "length" for one in written],
    )  # fmt: skip


def check_prompts(dataset: PromptDataset, model: nn.Module, tokenizer: Any, rewards: Rewards) -> None:
    """Raise DataError for prompts that fill the model's context or have tokens that it does not know, and for columns
    that a reward misses."""
    check_tokens(model, tokenizer, ((str(row.source), row.ids) for row in dataset))
    dataset.check_context(context_length(model), limit_words(model))
    rewards.check_columns(dataset.columns, f"`{dataset.source}`")


def load_prompts(
    config: OnlineConfig, source: DataSource, tokenizer: Any
) -> tuple[PromptDataset, PromptDataset | None]:
    """Training and validation prompts of a run. Raises DataError."""
    limit = config.max_prompt_length
    return load_splits(
        config, source, lambda part, split: PromptDataset(part, tokenizer, split=split, max_prompt_length=limit)
    )


def room_note(dataset: PromptDataset, model: nn.Module, max_completion_length: int) -> tuple[str, ...]:
    """What to say when the longest prompt leaves less room than a completion may take."""
    limit = context_length(model)
    if limit is None or dataset.report.longest + max_completion_length <= limit:
        return ()
    return (
        f"the longest prompt ({dataset.report.longest:,} tokens) leaves {limit - dataset.report.longest:,} of the "
        f"context's {limit:,} tokens, less than max_completion_length ({max_completion_length:,})",
    )
