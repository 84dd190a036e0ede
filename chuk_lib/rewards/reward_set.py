"""Several rewards together: their columns are checked before anything runs, their scores while it
runs.

A function that raises, or gives text, NaN, infinity or the wrong count, stops the run with the
completion that broke it: training on wrong scores does harm that no curve shows."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import numbers
import sys
import weakref
from collections.abc import Awaitable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from chuk_lib.errors import DataError, TrainingError
from chuk_lib.rewards.columns import TO_FIND, TO_WRITE
from chuk_lib.rewards.types import Completions, Logged, Reward
from chuk_lib.rewards.user_file import describe
from chuk_lib.utils.torch_apart import torch_shown

_WRONG = "a score is a number, or None for what cannot be scored"


class RewardSet:
    """Rewards with their weights.

    `on_error` "none" gives None to completions whose score fails instead of stopping.
    """

    def __init__(self, rewards: Sequence[Reward], on_error: str = "raise") -> None:
        self.rewards = _with_own_names(rewards)
        self.on_error = on_error
        self._loop: _Loop | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """One a reward, as in metric names."""
        return tuple(reward.name for reward in self.rewards)

    @property
    def weights(self) -> tuple[float, ...]:
        """One a reward."""
        return tuple(reward.weight for reward in self.rewards)

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the data that rewards read, alternatives included."""
        return frozenset(
            name for reward in self.rewards for group in reward.scorer.needs for name in group
        )

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns in which the first reward that compares with a text looks for it, first one
        first: what is shown beside a completion is what it was compared with."""
        groups = [group for reward in self.rewards for group in reward.scorer.needs]
        usual = {*TO_WRITE, *TO_FIND}
        return next((group for group in groups if usual >= {*group}), TO_FIND)

    def check_columns(self, available: Iterable[str], where: str) -> None:
        """Raise DataError when a reward needs a column that the data at `where` does not have."""
        have = list(available)
        for reward in self.rewards:
            for group in reward.scorer.needs:
                if not set(group) & set(have):
                    column = " or ".join(f"`{name}`" for name in group)
                    columns = ", ".join(f"`{name}`" for name in have) or "no columns"
                    raise DataError(
                        f"reward `{reward.where}` needs the column {column}, which {where} does not"
                        " have",
                        f"it has {columns}: rename one, or choose another reward",
                    )

    def score(self, batch: Completions, logged: Logged | None = None) -> np.ndarray:
        """Scores float32 (N, K) of N completions by K rewards; NaN where a reward cannot score.
        What functions give to `log_extra` (a value for each completion) and `log_metric` goes into
        `logged`.

        Raises TrainingError naming the reward and the completion, and DataError for a missing
        column."""
        self.check_columns(batch.columns, "the data")
        logged = Logged() if logged is None else logged
        scores = np.full((len(batch), len(self.rewards)), np.nan, dtype=np.float32)
        with torch_shown():
            self._fill(scores, batch, logged)
        _check_columns(logged, len(batch))
        return scores

    def _fill(self, scores: np.ndarray, batch: Completions, logged: Logged) -> None:
        waiting = {}
        for index, reward in enumerate(self.rewards):
            if reward.scorer.is_async:
                waiting[index] = reward
            else:
                scores[:, index] = self._checked(
                    reward, batch, logged, self._guarded(reward, batch, logged)
                )
        if waiting and len(batch):
            calls = [self._called(reward, batch, logged) for reward in waiting.values()]
            for (index, reward), result in zip(waiting.items(), self._wait(calls), strict=True):
                scores[:, index] = self._checked(reward, batch, logged, result)

    def total(self, scores: np.ndarray) -> np.ndarray:
        """Weighted sums float32 (N,) of scores (N, K), unscorable parts left out; NaN where no
        reward could score."""
        sums = np.nansum(scores * np.array(self.weights, dtype=np.float32), axis=1)
        return np.where(np.isnan(scores).all(axis=1), np.float32(np.nan), sums).astype(np.float32)

    def _guarded(self, reward: Reward, batch: Completions, logged: Logged) -> Any:
        """What a reward returns, or the error that it raises."""
        if not len(batch):
            return []
        try:
            with redirect_stdout(sys.stderr):
                result = reward.scorer.score(batch, logged)
        except (
            Exception,
            SystemExit,
        ) as error:  # a user's function may raise anything; it is reported below
            return error
        return self._wait([result])[0] if inspect.isawaitable(result) else result

    async def _called(self, reward: Reward, batch: Completions, logged: Logged) -> Any:
        result = reward.scorer.score(batch, logged)
        return await result if inspect.isawaitable(result) else result

    def _wait(self, calls: Sequence[Awaitable[Any]]) -> list[Any]:
        self._loop = self._loop or _Loop()
        return self._loop.run(calls)

    def _checked(
        self, reward: Reward, batch: Completions, logged: Logged, result: Any
    ) -> np.ndarray:
        """Scores float32 (N,) from whatever a reward gave."""
        if isinstance(result, BaseException):
            return self._recovered(reward, batch, logged, result)
        values = _as_list(result)
        if values is None or len(values) != len(batch):
            if self.on_error == "none":
                return self._recovered(reward, batch, logged, None)
            got = (
                f"{len(values)} scores" if values is not None else f"{_shown(result)}, not a list,"
            )
            raise TrainingError(
                f"reward `{reward.where}` gave {got} for {len(batch)} completions, the first being "
                f"{_shown(batch.plain[0])}",
                "return a list with one score a completion, or take `completion` and return one"
                " score",
            )
        scores = [
            self._score(reward, batch, logged, row, value) for row, value in enumerate(values)
        ]
        return np.array(scores, dtype=np.float32)

    def _score(
        self, reward: Reward, batch: Completions, logged: Logged, row: int, value: Any
    ) -> float:
        if value is None:
            return math.nan
        kind = _fault(value)
        if kind is None:
            return float(value)
        if self.on_error == "none":
            return _failed(reward, logged)
        raise TrainingError(f"reward `{reward.where}` gave {kind} for {_which(batch, row)}", _WRONG)

    def _recovered(
        self, reward: Reward, batch: Completions, logged: Logged, error: BaseException | None
    ) -> np.ndarray:
        """After an error (None: a wrong count): ask for each completion alone, to find the one that
        broke it, or to go on without it."""
        if len(batch) == 1 and self.on_error == "none":
            return np.array([_failed(reward, logged)], dtype=np.float32)
        found: list[np.ndarray] = []
        for row in range(len(batch)):
            alone, own = batch.only(row), Logged(metrics=logged.metrics)
            result = error if len(batch) == 1 else self._alone(reward, alone, own)
            if isinstance(result, BaseException) and self.on_error == "raise":
                raise self._broken(reward, _which(batch, row), result) from result
            found.append(self._checked(reward, alone, own, result))
            for (
                name,
                values,
            ) in own.columns.items():  # of a batch of one: its value goes to its place
                logged.columns.setdefault(name, [None] * len(batch))[row : row + 1] = values[:1]
        if self.on_error == "raise" and error is not None:
            raise self._broken(
                reward, f"these {len(batch)} completions (on none of them alone)", error
            ) from error
        return np.concatenate(found)

    def _alone(self, reward: Reward, batch: Completions, logged: Logged) -> Any:
        if reward.scorer.is_async:
            return self._wait([self._called(reward, batch, logged)])[0]
        return self._guarded(reward, batch, logged)

    def _broken(self, reward: Reward, which: str, error: BaseException) -> TrainingError:
        return TrainingError(
            f"reward `{reward.where}` failed on {which}: {describe(error, _file_of(reward))}",
            "mend it, return None for what it cannot score, or go on without such scores:"
            " reward_errors none",
        )


def _failed(reward: Reward, logged: Logged) -> float:
    """NaN, and one more in the metric that keeps failures from being silent."""
    name = f"rewards/{reward.name}/failures"
    logged.metrics[name] = logged.metrics.get(name, 0.0) + 1.0
    return math.nan


def _check_columns(logged: Logged, count: int) -> None:
    for name, values in logged.columns.items():
        if len(values) != count:
            raise TrainingError(
                f"a reward gave `log_extra` {len(values)} values of `{name}` for {count}"
                " completions",
                "give one value a completion",
            )


def _file_of(reward: Reward) -> Path | None:
    """The user's file that a reward stands in."""
    file = reward.where.rpartition(":")[0]
    return Path(file).expanduser().resolve() if file.endswith(".py") else None


class _Loop:
    """One event loop in a thread of its own, kept between calls: sessions and locks of a user's
    file belong to it, and a notebook's running loop does not stand in the way."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._thread = ThreadPoolExecutor(1, "chuk-rewards")
        self._end = weakref.finalize(self, _end, self._thread, self._runner)

    def run(self, calls: Sequence[Awaitable[Any]]) -> list[Any]:
        """Results, or the errors that were raised, in order."""
        return self._thread.submit(self._runner.run, _gathered(calls)).result()


async def _gathered(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


def _end(thread: ThreadPoolExecutor, runner: asyncio.Runner) -> None:
    thread.shutdown()
    runner.close()


def _with_own_names(rewards: Sequence[Reward]) -> tuple[Reward, ...]:
    """Second and later rewards of one name get a number: `length_2`."""
    seen: dict[str, int] = {}
    named = []
    for reward in rewards:
        seen[reward.name] = count = seen.get(reward.name, 0) + 1
        name = reward.name if count == 1 else f"{reward.name}_{count}"
        named.append(Reward(name, reward.scorer, reward.weight, reward.where or reward.name))
    return tuple(named)


def _as_list(result: Any) -> list[Any] | None:
    """A list of what a reward gave; None when it is not a sequence of scores. Arrays of other
    libraries tell their values by `tolist`."""
    if isinstance(result, str | bytes | dict | numbers.Number):
        return None
    if callable(getattr(result, "tolist", None)):
        result = result.tolist()
    return list(result) if isinstance(result, Iterable) else None


def _fault(value: Any) -> str | None:
    """What is wrong with a score, in words; None when it is a number that float32 holds."""
    if callable(getattr(value, "item", None)):
        value = value.item()
    if not isinstance(value, numbers.Real | np.bool_):
        return f"{_shown(value)}, which is no number,"
    number = float(value)
    if math.isnan(number):
        return "NaN"
    return None if abs(number) <= float(np.finfo(np.float32).max) else _shown(number)


def _which(batch: Completions, row: int) -> str:
    return f"completion {row + 1} of {len(batch)}, {_shown(batch.plain[row])}"


def _shown(value: Any) -> str:
    """A value in one short line."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:38]}…{text[-38:]}"
