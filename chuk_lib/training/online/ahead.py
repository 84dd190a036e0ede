"""Playing ahead of learning: with a lag L the episodes of step t are played with the weights that
step t − L began with.

So players and trainer can work at the same time. In one process they take turns, which gives the
same numbers: what is played depends on prompts, seed and weights, not on when. Episodes in flight
are the only thing that a checkpoint has to hold: with them a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.errors import TrainingError
from chuk_lib.training.online.episode import Episode
from chuk_lib.training.online.played import Played
from chuk_lib.training.online.transport import about, pack_played, unpack_played

Wait = Callable[[], Played]
"""Gives what was played, when it is there."""
_HELD = "flight"


class Flight(NamedTuple):
    """A step that is being played, since `version` steps were learned."""

    version: int
    wait: Wait


def landed(played: Played) -> Wait:
    """Nothing to wait for."""
    return lambda: played


class Ahead:
    """Steps in flight, `lag` ahead of the one that is learned from, none beyond `steps`;
    `begin(step)` has one played with the weights of now."""

    def __init__(self, lag: int, steps: int, begin: Callable[[int], Wait]) -> None:
        self._lag = lag
        self._steps = steps
        self._begin = begin
        self._flights: dict[int, Flight] = {}

    def take(self, step: int) -> Played:
        """The episodes of `step`, when those up to `lag` steps later have been begun; called before
        its first update. `staleness` is how many steps were learned since its weights."""
        for later in range(step, min(step + self._lag, self._steps - 1) + 1):
            if later not in self._flights:
                self._flights[later] = Flight(step, self._begin(later))
        flight = self._flights[step]
        played = flight.wait()
        played.metrics["staleness"] = float(step - flight.version)
        return played

    def learned(self, step: int) -> None:
        """All updates of `step` are applied."""
        self._flights.pop(step, None)

    def held(self, n: int) -> dict[str, mx.array]:
        """All that is in flight, in groups of `n`, by name, for a checkpoint, once it is played."""
        found = {}
        for step, flight in self._flights.items():
            played = flight.wait()
            self._flights[step] = Flight(flight.version, landed(played))
            data = pack_played(played, n, version=flight.version)
            found[f"{_HELD}.{step}"] = mx.array(np.frombuffer(data, np.uint8))
        return found

    def restore(self, arrays: Mapping[str, mx.array], dataset: PromptDataset, n: int) -> None:
        """Take back what `held` gave, among other arrays; `dataset` has the prompts."""
        for name, array in arrays.items():
            first, _, step = name.partition(".")
            if first == _HELD:
                data = np.array(array).tobytes()
                played = unpack_played(data, dataset, n)
                version = int(about(data)["version"])
                self._flights[int(step)] = Flight(version, landed(played))


def others(arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The arrays of a checkpoint's memory that are not in flight."""
    return {name: array for name, array in arrays.items() if name.partition(".")[0] != _HELD}


def refuse_unknown_logps(episodes: Sequence[Episode]) -> None:
    """Raise TrainingError where nobody knows how likely a token was to those who wrote it: what is
    learned from it later could not be corrected."""
    if any(np.isnan(one.logps[one.mask > 0]).any() for one in episodes):
        raise TrainingError(
            "the player gives no log-probs, with which answers of older weights are corrected",
            "train with lag=0, or importance_sampling_correction=false",
        )
