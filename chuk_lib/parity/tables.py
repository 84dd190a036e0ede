"""Completions and scores from a fixture in place of sampling and reward functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.rollouts import Rollout
from chuk_lib.rewards import Completions
from chuk_lib.rewards.types import Logged
from chuk_lib.training.online.episode import Episode, GroupPrompt, one_turn

END_TOKENS = (1, 3)


@dataclass
class Table:
    """The generations of a curve, call by call. `asked` tells for each call whether its prompts
    were the fixture's."""

    generations: Sequence[dict[str, Any]]
    asked: list[bool] = field(default_factory=list)

    @property
    def last(self) -> dict[str, Any]:
        """The generation of the last call."""
        return self.generations[len(self.asked) - 1]

    @property
    def distinct_prompts(self) -> int:
        """How many prompts there are."""
        return len({tuple(ids) for one in self.generations for ids in one["prompt_ids"]})

    def play(
        self, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig
    ) -> list[Episode]:
        """The next completions."""
        found = self.generations[len(self.asked)]
        self.asked.append(
            [list(one.asked.ids) for one in prompts for _ in range(n)] == found["prompt_ids"]
        )
        return [
            _episode(prompts[index // n], index % n, ids)
            for index, ids in enumerate(found["completion_ids"])
        ]


@dataclass(frozen=True)
class TableRewards:
    """The scores that belong to the table's last completions."""

    table: Table
    names: tuple[str, ...] = ("reward",)
    weights: tuple[float, ...] = (1.0,)

    def check_columns(self, available: Iterable[str], where: str) -> None:
        """No column is needed."""

    def score(self, batch: Completions, logged: Logged) -> np.ndarray:
        """Float32 (N, K)."""
        rewards = [
            np.nan if value is None else value
            for row in self.table.last["rewards"]
            for value in _listed(row)
        ]
        return np.array(rewards, np.float32).reshape(len(batch), -1)


def _listed(row: Any) -> list[Any]:
    return row if isinstance(row, list) else [row]


def _episode(prompt: GroupPrompt, member: int, ids: list[int]) -> Episode:
    """A completion of a fixture; NaN stands for the sampler's log-probs, which are not known."""
    reason: Literal["eos", "length"] = "eos" if ids[-1] in END_TOKENS else "length"
    unknown = np.full(len(ids), np.nan, np.float32)
    return one_turn(
        prompt, Rollout(prompt.row, member, np.array(ids, np.int32), unknown, reason, "")
    )
