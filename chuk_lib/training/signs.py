"""Signs that a run learns nothing: told while it goes on, and again at its end.

A loss that moves says little about learning from rewards, and a gradient of 0 looks like any other
number in a log. What is counted here are steps in which something makes learning impossible, or all
but so; the counts are part of the run's progress, so that a resumed run knows those before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from chuk_lib.training.utils.gradient_utils import add_up

Metrics = Mapping[str, float]
STREAK = 5
"""Steps in a row with the same sign before it is told."""
ROUNDING = 1e-6
"""A gradient norm that is 0 but for rounding: equal rows that should cancel out leave some 1e-7."""
_COUNT = "idle/"


class Sign(NamedTuple):
    """`holds` of a step's metrics and the gradient norms of its updates; `text` and `hint` are for
    people."""

    name: str
    holds: Callable[[Metrics, Sequence[float]], bool]
    text: str
    hint: str


def _is_flat(metrics: Metrics, norms: Sequence[float]) -> bool:
    """No group has a difference (of those learned from, where others gave way); without groups, no
    batch has."""
    groups = ("dynamic_sampling/frac_zero_std", "frac_reward_zero_std")
    share = next((metrics[name] for name in groups if name in metrics), None)
    return metrics.get("reward_std") == 0.0 if share is None else share >= 1.0


SIGNS = (
    Sign(
        "unscored",
        lambda metrics, norms: math.isnan(metrics.get("reward", 0.0)),
        "no reward could score a completion",
        "look at some with `chuk runs show RUN --completions`: what returns None for all of them"
        " teaches nothing",
    ),
    Sign(
        "cut",
        lambda metrics, norms: metrics.get("completions/clipped_ratio", 0.0) >= 1.0,
        "every completion was cut off",
        "raise max_completion_length, or teach the model to end its answers first",
    ),
    Sign(
        "flat",
        _is_flat,
        "all completions that are compared scored the same, which teaches nothing",
        "begin with a model that is right sometimes, give easier prompts or a reward with degrees,"
        " or lower the learning rate if it was right before",
    ),
    Sign(
        "still",
        lambda metrics, norms: all(norm < ROUNDING for norm in norms),
        "the gradient was 0: nothing was learned",
        "look at the rows with --dry-run: is there anything to learn in them?",
    ),
)
"""In the order in which they explain: where several hold, the first is told."""


class Signs:
    """Counts signs step by step into `counts`, a part of the run's progress, and says what is to be
    said."""

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts
        self._streaks = dict.fromkeys((sign.name for sign in SIGNS), 0)

    def see(self, metrics: Metrics, norms: Sequence[float]) -> list[dict[str, Any]]:
        """Take a step: the metrics that it reported, and the gradient norm of each update. Returns
        warnings, as the data of events: one when a sign has held for `STREAK` steps, and no other
        before it has gone."""
        for sign in SIGNS:
            held = sign.holds(metrics, norms)
            self._streaks[sign.name] = self._streaks[sign.name] + 1 if held else 0
            if held:
                add_up(self._counts, {_COUNT + sign.name: 1})
        lasting = next((sign for sign in SIGNS if self._streaks[sign.name] >= STREAK), None)
        if lasting is None or self._streaks[lasting.name] > STREAK:
            return []
        return [_warning(lasting, f"in the last {STREAK} steps")]

    def sum_up(self, steps: int) -> list[dict[str, Any]]:
        """A warning at the end of `steps` steps, when a sign held in half of them or more."""
        for sign in SIGNS:
            count = self._counts.get(_COUNT + sign.name, 0)
            if count and 2 * count >= steps:
                return [_warning(sign, f"in {count:,} of {steps:,} steps")]
        return []


def _warning(sign: Sign, when: str) -> dict[str, Any]:
    return {"text": f"{when} {sign.text}", "hint": sign.hint}
