"""What trainers that learn from the model's own completions share: which prompts a step takes, and
its episodes.

Which prompts, and the random keys of their completions, depend on (data, settings, seed, step)
alone, so that a resumed run samples what an uninterrupted one does."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import mlx.nn as nn
import numpy as np

from chuk_lib import runtime
from chuk_lib.data.prompt_dataset import PromptDataset, columns_of
from chuk_lib.data.reader import DataSource
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.prompts import context_length, limit_words
from chuk_lib.inference.vocabulary import check_tokens
from chuk_lib.rewards.types import Completions, Logged, Text
from chuk_lib.training.engine import step_seed
from chuk_lib.training.loading import load_splits
from chuk_lib.training.online import shared
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.online.episode import Episode, GroupPrompt, Player, check_played
from chuk_lib.training.online.played import Played


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

    def score(self, batch: Completions, logged: Logged) -> np.ndarray:
        """Scores float32 (N, K); NaN where a reward cannot score. What they have to tell goes into
        `logged`."""


class PromptPlan:
    """Which prompts each step takes, by their index in the data.

    Prompts come from an endless stream of epochs, each in an order of its own (drawn from seed and
    epoch; with `shuffle` off the order of the file), so that every prompt is used once an epoch,
    also when `prompts_per_step` does not divide their number."""

    def __init__(
        self,
        count: int,
        prompts_per_step: int,
        *,
        num_epochs: float = 1,
        max_steps: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.count = count
        self.prompts_per_step = prompts_per_step
        self.seed = seed
        self.shuffle = shuffle
        self.steps = (
            max_steps if max_steps is not None else math.ceil(count * num_epochs / prompts_per_step)
        )
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
        return np.random.Generator(
            np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
        ).permutation(self.count)


class Collector:
    """Has prompts played, and scores the episodes."""

    def __init__(
        self,
        dataset: PromptDataset,
        rewards: Rewards,
        player: Player,
        vocabulary: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.rewards = rewards
        self.player = player
        self.vocabulary = vocabulary  # rows of the embedding, which a player's ids are held to

    def __call__(self, step: int, rows: Sequence[int], sampling: SamplingConfig, n: int) -> Played:
        """`n` episodes of each of the prompts `rows` at `step`; see `play`."""
        return self.play(step, self.prompts(rows), sampling, n)

    def play(
        self, step: int, prompts: Sequence[GroupPrompt], sampling: SamplingConfig, n: int
    ) -> Played:
        """`n` episodes of each prompt; see `play_and_score`."""
        return play_and_score(
            self.player, self.rewards, step, prompts, sampling, n, self.vocabulary
        )

    def where(self, rows: Iterable[int]) -> str:
        """Some prompts by file and row."""
        known = list(dict.fromkeys(rows))
        lines = ", ".join(str(self.dataset[row].source.line) for row in known[:16])
        return (
            f"completions of `{self.dataset.source}` rows {lines}{' …' if len(known) > 16 else ''}"
        )

    def prompts(self, rows: Sequence[int]) -> list[GroupPrompt]:
        """What a step asks. A group's number is its row, and beyond the data's length when the row
        comes again, so that two groups of one prompt differ."""
        seen: Counter[int] = Counter()
        prompts = []
        for row in map(int, rows):
            prompts.append(GroupPrompt(row, row + seen[row] * len(self.dataset), self.dataset[row]))
            seen[row] += 1
        return prompts


def play_and_score(
    player: Player,
    rewards: Rewards,
    step: int,
    prompts: Sequence[GroupPrompt],
    sampling: SamplingConfig,
    n: int,
    vocabulary: int | None = None,
) -> Played:
    """`n` episodes of each prompt, played and scored at once. Random keys come from
    `sampling.seed`, the prompt's group and the member; token ids are below `vocabulary`.

    Raises TrainingError when a reward fails, or a player does not give what it was asked for."""
    began = time.perf_counter()
    episodes = shared.play(player, prompts, n, sampling)
    check_played(episodes, prompts, n, vocabulary)
    runtime.release_cache()
    played = time.perf_counter()
    logged = Logged()

    def ask() -> tuple[np.ndarray, Any]:
        with runtime.users_own():
            scores = rewards.score(completions_of(episodes, step), logged)
        return scores, [logged.columns, logged.metrics]

    scores, (columns, metrics) = shared.score(ask)
    ended = time.perf_counter()
    scored = [
        replace(
            one,
            scores=scores[at],
            extra={name: column[at] for name, column in columns.items()},
        )
        for at, one in enumerate(episodes)
    ]
    return Played(scored, list(range(len(scored))), metrics, played - began, ended - played)


def sampling_seed(seed: int, step: int) -> int:
    """The seed of a step's completions, 32 bits."""
    return step_seed(seed, step) % 2**32


def completions_of(episodes: Sequence[Episode], step: int = 0) -> Completions:
    """Episodes as rewards read them: messages when the prompts are messages, and the tokens that
    the model wrote."""
    asked = [one.prompt.asked for one in episodes]
    texts: list[Text] = [
        (
            one.text
            if isinstance(one.prompt.asked.prompt, str)
            else [turn.message for turn in one.turns]
        )
        for one in episodes
    ]
    return Completions(
        [row.prompt for row in asked],
        texts,
        [one.ids[one.mask > 0].tolist() for one in episodes],
        columns_of(asked),
        step,
        [not one.terminated for one in episodes],
    )


def check_prompts(
    dataset: PromptDataset,
    model: nn.Module,
    tokenizer: LoadedTokenizer,
    rewards: Rewards,
    given: Iterable[str] = (),
) -> None:
    """Raise DataError for prompts that fill the model's context or have tokens that it does not
    know, and for columns that a reward misses: those of the data, and `given` by the player."""
    check_tokens(model, tokenizer, ((str(row.source), row.ids) for row in dataset))
    dataset.check_context(context_length(model), limit_words(model))
    rewards.check_columns((*dataset.columns, *given), f"`{dataset.source}`")


def load_prompts(
    config: OnlineConfig, source: DataSource, tokenizer: LoadedTokenizer
) -> tuple[PromptDataset, PromptDataset | None]:
    """Training and validation prompts of a run. Raises DataError."""
    limit = config.max_prompt_length
    return load_splits(
        config,
        source,
        lambda part, split: PromptDataset(part, tokenizer, split=split, max_prompt_length=limit),
    )


def room_note(
    dataset: PromptDataset, model: nn.Module, max_completion_length: int
) -> tuple[str, ...]:
    """What to say when the longest prompt leaves less room than a completion may take."""
    limit = context_length(model)
    if limit is None or dataset.report.longest + max_completion_length <= limit:
        return ()
    return (
        (
            f"the longest prompt ({dataset.report.longest:,} tokens) leaves"
            f" {limit - dataset.report.longest:,} of the context's {limit:,} tokens, less than"
            f" max_completion_length ({max_completion_length:,})"
        ),
    )


def check_rewards(config: OnlineConfig) -> None:
    """Raise ConfigError for rewards that are misspelt or missing, without loading them."""
    from chuk_lib.config.reward_spec import parse_spec
    from chuk_lib.rewards.builtin import canonical

    if not config.rewards:
        raise ConfigError(
            "no reward given",
            "add `--reward NAME`, such as exact_match, or `rewards:` to a config file",
        )
    for parsed in map(parse_spec, config.rewards):
        if parsed.file is None:
            canonical(parsed.name)
        elif not Path(parsed.file).expanduser().is_file():
            raise ConfigError(
                f"reward file `{parsed.file}` does not exist", "check the path: file.py:function"
            )


def weighted_rewards(config: OnlineConfig) -> tuple[str, ...]:
    """The rewards with the weights of `reward_weights` behind them. Raises ConfigError for another
    number of weights, and for a reward that says a weight itself."""
    from chuk_lib.config.reward_spec import parse_spec

    if not config.reward_weights:
        return config.rewards
    if len(config.reward_weights) != len(config.rewards):
        raise ConfigError(
            f"{len(config.reward_weights)} reward_weights for {len(config.rewards)} rewards",
            "give one for each, in their order",
        )
    own = [text for text in config.rewards if parse_spec(text).weight != 1]
    if own:
        raise ConfigError(
            f"reward `{own[0]}` has a weight of its own beside reward_weights", "give one of them"
        )
    pairs = zip(config.rewards, config.reward_weights, strict=True)
    return tuple(f"{text}={weight!r}" for text, weight in pairs)


def rewards_of(config: OnlineConfig) -> Rewards:
    """The rewards that settings name. Raises ConfigError when there is none, or one cannot be
    loaded."""
    from chuk_lib.rewards import load_rewards

    check_rewards(config)
    on_error = "none" if config.reward_errors == "none" else "raise"
    return load_rewards(
        weighted_rewards(config),
        on_error=on_error,
        max_completion_length=config.max_completion_length,
    )
