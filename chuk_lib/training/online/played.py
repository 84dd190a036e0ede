"""What was played in a step, on its way from the players to the loss."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from chuk_lib.training.online.episode import Episode


@dataclass
class Played:
    """What one step, or one validation, played: `episodes` (N), prompt-major; `chosen`, the indices
    of those that are learned from; `metrics` to report (at first what reward functions logged);
    seconds of playing and scoring, those that training `waited` for both where that is less, and
    `began`, when training on it began."""

    episodes: list[Episode]
    chosen: list[int]
    metrics: dict[str, float]
    playing_seconds: float = 0.0
    scoring_seconds: float = 0.0
    waited: float | None = None
    began: float = field(default_factory=time.perf_counter)
    trained_tokens: int = 0

    @property
    def scores(self) -> np.ndarray:
        """Scores float32 (N, K); NaN where a reward cannot score."""
        return np.stack([one.scores for one in self.episodes])

    @property
    def written(self) -> np.ndarray:
        """Tokens that the model wrote in each episode, int64 (N,)."""
        return np.array([one.written for one in self.episodes], np.int64)

    @property
    def terminated(self) -> np.ndarray:
        """Which episodes came to their end before they ran out of room, bool (N,)."""
        return np.array([one.terminated for one in self.episodes], bool)

    @property
    def learned(self) -> list[Episode]:
        """The episodes that are learned from."""
        return [self.episodes[at] for at in self.chosen]

    def give_way(self, groups: Sequence[int], fresh: Played, n: int) -> None:
        """Learn from the groups of `fresh`, `n` episodes each, in the places of `groups` of the
        chosen ones."""
        start = len(self.episodes)
        self.episodes += fresh.episodes
        self.playing_seconds += fresh.playing_seconds
        self.scoring_seconds += fresh.scoring_seconds
        for index, at in enumerate(groups):
            self.chosen[at * n : (at + 1) * n] = range(start + index * n, start + (index + 1) * n)

    def tell(self, learned: Sequence[Episode]) -> None:
        """Note for the report what the chosen episodes were worth."""
        for at, one in zip(self.chosen, learned, strict=True):
            self.episodes[at] = replace(self.episodes[at], advantage=one.advantage)


def merged(parts: Sequence[Played]) -> Played:
    """Parts of a step's prompts as one; what rewards logged is a mean over episodes."""
    if len(parts) == 1:
        return parts[0]
    episodes = [one for part in parts for one in part.episodes]
    metrics = {}
    for name in dict.fromkeys(name for part in parts for name in part.metrics):
        having = [part for part in parts if name in part.metrics]
        sizes = [len(part.episodes) for part in having]
        metrics[name] = float(np.average([part.metrics[name] for part in having], weights=sizes))
    return Played(
        episodes,
        list(range(len(episodes))),
        metrics,
        sum(part.playing_seconds for part in parts),
        sum(part.scoring_seconds for part in parts),
    )
