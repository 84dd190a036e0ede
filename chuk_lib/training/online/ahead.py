"""Playing ahead of learning: with a lag L the episodes of step t are played with the weights that
step t − L began with.

So players and trainer can work at the same time. In one process they take turns, which gives the
same numbers: what is played depends on prompts, seed and weights, not on when or where. Episodes in
flight are the only thing that a checkpoint has to hold: with them a resumed run goes on exactly.

`FirstCome` learns from whatever is played first instead, as long as it is not too old: nothing
waits for the slowest, and no two runs are alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.errors import TrainingError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.online.episode import Episode, GroupPrompt
from chuk_lib.training.online.played import Played, merged
from chuk_lib.training.online.transport import about, pack_played, unpack_played

Wait = Callable[[], Played]
"""Gives what was played, when it is there."""
_HELD = "flight"


@runtime_checkable
class FarPlayer(Protocol):
    """A player that plays and scores elsewhere while this process learns."""

    def open(self, config: OnlineConfig, model: nn.Module) -> None:
        """Get ready to play as `config` says, with weights like those of `model`; the first call
        counts."""

    def send(self, model: nn.Module, version: int) -> None:
        """What is begun from here on is played with the weights of now; the first call of a version
        counts."""

    def begin(
        self, step: int, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig
    ) -> Any:
        """Have prompts played and scored; gives what `fetch` wants to see."""

    def fetch(self, ticket: Any) -> Played:
        """What was played, when it is there. Raises TrainingError when it never will be."""

    def first(self, tickets: Sequence[Any]) -> int:
        """The place of one that need not be waited for, once there is one."""

    def play(
        self, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig
    ) -> list[Episode]:
        """See `Player`."""

    def close(self) -> None:
        """There is no more to play."""


class Flight(NamedTuple):
    """A step that is being played, since `version` steps were learned."""

    version: int
    wait: Wait


def landed(played: Played) -> Wait:
    """Nothing to wait for."""
    return lambda: played


class Ahead:
    """Steps in flight, `lag` ahead of the one that is learned from, none beyond `steps`;
    `begin(step, version)` has one played with the weights of now, those after `version` steps."""

    def __init__(self, lag: int, steps: int, begin: Callable[[int, int], Wait]) -> None:
        self._lag = lag
        self._steps = steps
        self._begin = begin
        self._flights: dict[int, Flight] = {}

    def take(self, step: int) -> Played:
        """The episodes of `step`, when those up to `lag` steps later have been begun; called before
        its first update. `staleness` is how many steps were learned since its weights."""
        began = time.perf_counter()
        for later in range(step, min(step + self._lag, self._steps - 1) + 1):
            if later not in self._flights:
                self._flights[later] = Flight(step, self._begin(later, step))
        flight = self._flights[step]
        played = flight.wait()
        self._flights[step] = Flight(flight.version, landed(played))
        played.metrics["staleness"] = float(step - flight.version)
        played.waited = time.perf_counter() - began
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
                played, version = unpack_played(data, dataset, n), int(about(data)["version"])
                self._flights[int(step)] = Flight(version, landed(played))


class PartInFlight(NamedTuple):
    """Part `number` of the prompts of `step` in the plan, being played since `version` steps were
    learned."""

    step: int
    number: int
    version: int
    ticket: Any


class FirstCome:
    """Parts in flight, `room` at most, of which a step takes the first `parts` that are not more
    than `most` steps old; older ones are begun again with the weights of now.

    `begin(step, number, version)` has a part of the plan played. What a checkpoint keeps is which
    parts are under way: they are played again."""

    def __init__(
        self,
        most: int,
        parts: int,
        room: int,
        steps: int,
        far: FarPlayer,
        begin: Callable[[int, int, int], Any],
    ) -> None:
        self._most = most
        self._parts = parts
        self._room = max(parts, min(room, (most + 1) * parts))
        self._total = steps * parts
        self._far = far
        self._begin = begin
        self._next = 0
        self._flying: list[PartInFlight] = []
        self._again: list[tuple[int, int]] = []
        self._taken: list[tuple[int, int]] = []

    def take(self, step: int) -> Played:
        """The episodes that `step` learns from, with how stale they are on average and at most, and
        how many were dropped."""
        began, dropped = time.perf_counter(), 0
        found: list[Played] = []
        ages: list[int] = []
        self._taken = []
        while len(found) < self._parts:
            self._fill(step)
            part = self._flying.pop(self._far.first([one.ticket for one in self._flying]))
            played, age = self._far.fetch(part.ticket), step - part.version
            if age > self._most:
                self._again.append((part.step, part.number))
                dropped += len(played.episodes)
                continue
            found.append(played)
            ages += [age] * len(played.episodes)
            self._taken.append((part.step, part.number))
        self._fill(step)
        played = merged(found)
        played.metrics |= {
            "staleness": float(np.mean(ages)),
            "staleness/max": float(max(ages)),
            "staleness/dropped": float(dropped),
        }
        played.waited = time.perf_counter() - began
        return played

    def learned(self, step: int) -> None:
        """All updates of `step` are applied."""
        self._taken = []

    def state(self) -> dict[str, Any]:
        """What is under way, as plain data."""
        flying = [(one.step, one.number) for one in self._flying]
        return {"next_part": self._next, "parts": sorted([*self._taken, *self._again, *flying])}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take back what `state` gave, among other values."""
        self._next = int(values.get("next_part", 0))
        self._again = [(int(step), int(number)) for step, number in values.get("parts", ())]

    def _fill(self, version: int) -> None:
        while len(self._flying) < self._room and (self._again or self._next < self._total):
            if self._again:
                step, number = self._again.pop(0)
            else:
                (step, number), self._next = divmod(self._next, self._parts), self._next + 1
            ticket = self._begin(step, number, version)
            self._flying.append(PartInFlight(step, number, version, ticket))


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
