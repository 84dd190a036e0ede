"""When one evaluation is better than another: one answer for checkpoints, patience and screens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from chuk_lib.events import as_number


def improves(
    value: float, best: float | None, *, greater: bool = False, threshold: float = 0.0
) -> bool:
    """Whether `value` is better than `best` (None: nothing yet) by more than `threshold`; lower is
    better unless `greater`. NaN is never better, and any number is better than NaN."""
    if math.isnan(value):
        return False
    if best is None or math.isnan(best):
        return True
    return (value - best if greater else best - value) > threshold


def better_eval(data: Mapping[str, Any], best: float | None) -> float | None:
    """The watched value of an `eval` event (its eval_reward where it has one, else its eval_loss)
    when it is the best so far, else None. The run itself says so (`early_stopping_threshold`
    counts); older logs did not."""
    reward = as_number(data.get("eval_reward"))
    value = as_number(data.get("eval_loss")) if reward is None else reward
    told = data.get("best")
    if value is None:
        return None
    is_best = improves(value, best, greater=reward is not None) if told is None else bool(told)
    return value if is_best else None
