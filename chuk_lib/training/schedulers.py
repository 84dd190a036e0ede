"""Learning-rate schedules as pure functions of the step, with the formulas of transformers 5 (`get_scheduler`).

The rate is a function of (step, total steps), never hidden state: a resumed run needs nothing but its step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from chuk_lib.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """A schedule's shape. `kind` is one of `SCHEDULES` in `training.config`; steps are optimizer steps."""

    kind: str = "linear"
    warmup_steps: int = 0
    total_steps: int = 1
    num_cycles: float = 1.0
    power: float = 1.0
    min_lr_rate: float = 0.0
    num_decay_steps: int | None = None
    peak: float = 1.0

    def factor(self, step: int) -> float:
        """What the peak learning rate is multiplied by at 0-based `step`. Raises ConfigError on an unknown kind."""
        if self.kind == "constant":
            return 1.0
        if step < self.warmup_steps:
            return step / max(1, self.warmup_steps)
        shapes: dict[str, Callable[[float], float]] = {
            "constant_with_warmup": lambda _: 1.0,
            "linear": lambda p: max(0.0, 1.0 - p),
            "cosine": lambda p: _cosine(p),
            "cosine_with_min_lr": lambda p: _cosine(p) * (1 - self.min_lr_rate) + self.min_lr_rate,
            "cosine_with_restarts": lambda p: 0.0 if p >= 1 else _cosine((self.num_cycles * p) % 1.0),
            "polynomial": self._polynomial,
            "inverse_sqrt": lambda _: self._inverse_sqrt(step),
            "warmup_stable_decay": lambda _: self._stable_decay(step),
        }
        if self.kind not in shapes:
            raise ConfigError(f"unknown lr_scheduler_type `{self.kind}`", f"one of: constant, {', '.join(shapes)}")
        return shapes[self.kind]((step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))

    def learning_rate(self, step: int) -> float:
        """The learning rate used at 0-based `step`."""
        return self.peak * self.factor(step)

    def _polynomial(self, progress: float) -> float:
        end = 1e-7 / self.peak  # transformers' lr_end
        return end if progress > 1 else (1 - end) * (1 - progress) ** self.power + end

    def _inverse_sqrt(self, step: int) -> float:
        timescale = self.warmup_steps or 10_000
        return 1.0 / math.sqrt((step + timescale - self.warmup_steps) / timescale)

    def _stable_decay(self, step: int) -> float:
        decay = self.num_decay_steps or max(1, self.total_steps // 10)
        begin = self.total_steps - decay
        return 1.0 if step < begin else _cosine((step - begin) / decay)


def _cosine(progress: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))
