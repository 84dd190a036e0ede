"""What a run looks like at a moment: a fold over its events, nothing else.

Events come from other people's code and from old files, so every key may be missing and any number
may be text."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, fields
from typing import Any

from chuk_lib.events import Event, as_number
from chuk_lib.utils.best import better_eval

Point = tuple[int, float]
MOST_POINTS = (
    4000  # more than any terminal can show; longer curves are thinned, so that drawing stays cheap
)


def _whole(value: Any) -> int | None:
    """A positive whole number, or None."""
    number = as_number(value)
    return int(number) if number is not None and math.isfinite(number) and number >= 1 else None


def printable(text: Any) -> str:
    """Text that is safe on a terminal: spaces stay, other control characters become `?`."""
    return "".join(
        letter if letter.isprintable() or letter.isspace() else "?" for letter in str(text or "")
    )


def last_part(path: Any) -> str:
    """The last name of a path or hub id, for display."""
    text = printable(path)
    return text.rstrip("/").rsplit("/", 1)[-1] or text


def data_name(data: Any) -> str:
    """The last names of all sources of data, for display."""
    return ", ".join(filter(None, map(last_part, str(data or "").split(","))))


@dataclass
class Board:
    """The state of a run. `see` is the only thing that changes it; `time` is that of the newest
    event."""

    about: dict[str, Any] = field(default_factory=dict)  # data of the last `started`
    step: int = 0
    steps: int | None = None
    latest: dict[str, float] = field(default_factory=dict)  # newest value of every metric
    losses: list[Point] = field(default_factory=list)
    rewards: list[Point] = field(default_factory=list)
    # Of what is watched: the loss, or the reward where there is one.
    evals: list[Point] = field(default_factory=list)
    # Evaluations that were the best when they came.
    bests: list[Point] = field(default_factory=list)
    saved_step: int | None = None
    best_step: int | None = None
    sample: dict[str, str] | None = None
    # Rows of the newest `completions`.
    completions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    doing: str = ""  # what goes on between steps, such as evaluating
    finished: dict[str, Any] | None = None
    began: float | None = None
    time: float | None = None
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=20))

    def see(self, event: Event) -> None:
        """Take one event. Kinds it does not know only move the clock."""
        self.time = event.time
        handlers = {
            "started": self._see_started,
            "step": self._see_step,
            "moved": self._see_moved,
            "eval": self._see_eval,
            "saved": self._see_saved,
            "sample": self._see_sample,
            "completions": self._see_completions,
            "note": self._see_note,
            "warning": self._see_warning,
            "finished": self._see_finished,
        }
        self.doing = ""
        if event.kind in handlers:
            handlers[event.kind](event, event.data or {})

    @property
    def best_eval(self) -> Point | None:
        """Step and value of the best evaluation."""
        return self.bests[-1] if self.bests else None

    @property
    def watched(self) -> str:
        """What the run is about: its reward where it has one, else its loss."""
        return "reward" if self.rewards or "eval_reward" in self.latest else "loss"

    @property
    def line(self) -> list[Point]:
        """The curve of what is watched."""
        return self.rewards if self.watched == "reward" else self.losses

    @property
    def stage(self) -> str:
        """Which stage of a pipeline this is; empty for a run of its own."""
        stage = self.about.get("stage")
        if not isinstance(stage, dict):
            return ""
        name = printable(stage.get("name"))
        named = f" ({name})" if name != printable(self.about.get("algorithm")) else ""
        return f"stage {printable(stage.get('number'))} of {printable(stage.get('of'))}{named}"

    @property
    def share(self) -> float:
        """How much of the plan is done, 0 to 1."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0

    @property
    def epochs(self) -> int | None:
        """The planned passes over the data; None when a number of steps decides instead."""
        config = self.about.get("config")
        if isinstance(config, dict) and config.get("max_steps"):
            return None
        return _whole(self.about.get("epochs"))

    def elapsed(self, now: float | None = None) -> float | None:
        """Seconds since this process started the run; the final figure once it has finished."""
        if (
            self.finished is not None
            and (seconds := as_number(self.finished.get("seconds"))) is not None
        ):
            return seconds
        end = self.time
        if now is not None and self.finished is None:
            # The clock of another process may be behind.
            end = now if end is None else max(now, end)
        return None if self.began is None or end is None else max(0.0, end - self.began)

    def remaining(self, now: float | None = None) -> float | None:
        """Expected seconds to the end of the plan, from the pace of the last reports (evaluations
        included)."""
        if not self.steps or len(self._recent) < 2 or self.finished is not None:
            return None
        (first_time, first_step), (last_time, last_step) = self._recent[0], self._recent[-1]
        if last_step <= first_step:
            return None
        pace = (last_time - first_time) / (last_step - first_step)
        since = 0.0 if now is None else max(0.0, now - last_time)
        return max(0.0, pace * (self.steps - last_step) - since)

    def _see_started(self, event: Event, data: dict[str, Any]) -> None:
        start = _whole(data.get("start_step")) or event.step
        if self.about and not start and self.about.get("run_dir") != data.get("run_dir"):
            self._forget()
            self.time = event.time
        self.about, self.step = dict(data), start
        self.steps = _whole(data.get("steps"))
        self.began, self.finished = event.time, None
        self.losses = [point for point in self.losses if point[0] <= start]
        self.rewards = [point for point in self.rewards if point[0] <= start]
        self.evals = [point for point in self.evals if point[0] <= start]
        self.bests = [point for point in self.bests if point[0] <= start]
        self._recent.clear()
        self._recent.append((event.time, start))

    def _forget(self) -> None:
        """Begin another run, such as the next stage of a pipeline."""
        fresh = Board()
        for part in fields(self):
            setattr(self, part.name, getattr(fresh, part.name))

    def _see_step(self, event: Event, data: dict[str, Any]) -> None:
        self._see_moved(event, {})
        self._take_metrics(data)
        if (loss := as_number(data.get("loss"))) is not None:
            self.losses.append((event.step, loss))
        if (reward := as_number(data.get("reward"))) is not None:
            self.rewards.append((event.step, reward))
        self.losses, self.rewards = _bounded(self.losses), _bounded(self.rewards)

    def _see_moved(self, event: Event, data: dict[str, Any]) -> None:
        self.step, self.doing = event.step, printable(data.get("doing"))
        if not self._recent or self._recent[-1][1] < event.step:
            self._recent.append((event.time, event.step))

    def _see_eval(self, event: Event, data: dict[str, Any]) -> None:
        self._take_metrics(data)
        reward = as_number(data.get("eval_reward"))
        value = as_number(data.get("eval_loss")) if reward is None else reward
        if value is None:
            return
        self.evals.append((event.step, value))
        if better_eval(data, self.best_eval[1] if self.best_eval else None) is not None:
            self.bests.append((event.step, value))

    def _see_saved(self, event: Event, data: dict[str, Any]) -> None:
        self.saved_step = event.step
        if data.get("best"):
            self.best_step = event.step

    def _see_sample(self, event: Event, data: dict[str, Any]) -> None:
        self.sample = {key: printable(data.get(key)) for key in ("prompt", "target", "completion")}

    def _see_completions(self, event: Event, data: dict[str, Any]) -> None:
        rows = data.get("rows")
        self.completions = (
            [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        )

    def _see_note(self, event: Event, data: dict[str, Any]) -> None:
        self.notes.append(printable(data.get("text") or "?"))

    def _see_warning(self, event: Event, data: dict[str, Any]) -> None:
        self.warnings.append((printable(data.get("text") or "?"), printable(data.get("hint"))))

    def _see_finished(self, event: Event, data: dict[str, Any]) -> None:
        self.finished = dict(data)

    def _take_metrics(self, data: dict[str, Any]) -> None:
        numbers = {key: as_number(value) for key, value in data.items()}
        self.latest.update({key: value for key, value in numbers.items() if value is not None})


def _bounded(points: list[Point]) -> list[Point]:
    return _halved(points) if len(points) >= MOST_POINTS else points


def _halved(points: list[Point]) -> list[Point]:
    """Neighbours averaged in pairs; the newest point stays as it is."""
    *old, newest = points
    pairs = zip(old[::2], old[1::2], strict=False)
    return [(late[0], (early[1] + late[1]) / 2) for early, late in pairs] + [newest]
