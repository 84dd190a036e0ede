"""Learning-rate schedules as pure functions of the update, with the formulas of transformers 5
(`get_scheduler`).

The rate is a function of (update, all updates), never hidden state: a resumed run needs nothing but
its step. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from chuk_lib.training.tables import pick


@dataclass(frozen=True)
class Schedule:
    """A schedule. `kind` is one of `SCHEDULES`; steps are optimizer updates, counted from 0."""

    kind: str = "linear"
    warmup_steps: int = 0
    total_steps: int = 1
    num_cycles: float = 1.0
    power: float = 1.0
    min_lr_rate: float = 0.0
    num_decay_steps: int | None = None
    peak: float = 1.0

    def factor(self, step: int) -> float:
        """What the peak learning rate is multiplied by at 0-based `step`. Raises ConfigError on an
        unknown kind."""
        shape = pick(SCHEDULES, self.kind, "lr_scheduler_type")
        if shape.warms_up and step < self.warmup_steps:
            return step / self.warmup_steps
        return shape.factor(self, step)

    def learning_rate(self, step: int) -> float:
        """The learning rate used at 0-based `step`."""
        return self.peak * self.factor(step)

    def progress(self, step: int) -> float:
        """The share of the updates after warmup that are done at 0-based `step`."""
        return (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)


def warmup_of(warmup_steps: float, warmup_ratio: float, updates: int) -> int:
    """Updates of warmup in a run of `updates`. A share of them, `warmup_ratio` or a `warmup_steps`
    below 1, is rounded up, as transformers does."""
    return (
        int(warmup_steps)
        if warmup_steps >= 1
        else math.ceil(updates * (warmup_steps or warmup_ratio))
    )


@dataclass(frozen=True)
class ScheduleShape:
    """A schedule after its warmup: the factor at a 0-based step, and which settings it reads."""

    factor: Callable[[Schedule, int], float]
    reads: tuple[str, ...] = ("warmup_steps", "warmup_ratio")
    warms_up: bool = True


def _reading(*names: str) -> tuple[str, ...]:
    return ("warmup_steps", "warmup_ratio", *names)


def _cosine(progress: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))


def _with_floor(schedule: Schedule, step: int) -> float:
    return _cosine(schedule.progress(step)) * (1 - schedule.min_lr_rate) + schedule.min_lr_rate


def _with_restarts(schedule: Schedule, step: int) -> float:
    progress = schedule.progress(step)
    return 0.0 if progress >= 1 else _cosine((schedule.num_cycles * progress) % 1.0)


def _polynomial(schedule: Schedule, step: int) -> float:
    progress, end = schedule.progress(step), 1e-7 / schedule.peak  # transformers' lr_end
    return end if progress > 1 else (1 - end) * (1 - progress) ** schedule.power + end


def _inverse_sqrt(schedule: Schedule, step: int) -> float:
    timescale = schedule.warmup_steps or 10_000
    return 1.0 / math.sqrt((step + timescale - schedule.warmup_steps) / timescale)


def _stable_decay(schedule: Schedule, step: int) -> float:
    decay = schedule.num_decay_steps or max(1, schedule.total_steps // 10)
    begin = schedule.total_steps - decay
    return 1.0 if step < begin else _cosine((step - begin) / decay)


SCHEDULES: dict[str, ScheduleShape] = {
    "constant": ScheduleShape(lambda schedule, step: 1.0, reads=(), warms_up=False),
    "constant_with_warmup": ScheduleShape(lambda schedule, step: 1.0),
    "linear": ScheduleShape(lambda schedule, step: max(0.0, 1.0 - schedule.progress(step))),
    "cosine": ScheduleShape(lambda schedule, step: _cosine(schedule.progress(step))),
    "cosine_with_restarts": ScheduleShape(_with_restarts, _reading("num_cycles")),
    "cosine_with_min_lr": ScheduleShape(_with_floor, _reading("min_lr_rate")),
    "polynomial": ScheduleShape(_polynomial, _reading("lr_power")),
    "inverse_sqrt": ScheduleShape(_inverse_sqrt),
    "warmup_stable_decay": ScheduleShape(_stable_decay, _reading("num_decay_steps")),
}
"""Every value of `lr_scheduler_type`."""
