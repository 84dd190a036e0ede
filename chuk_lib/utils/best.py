"""When one evaluation is better than another: one answer for checkpoints, patience and screens."""

from __future__ import annotations

import math


def improves(value: float, best: float | None, *, greater: bool = False, threshold: float = 0.0) -> bool:
    """Whether `value` is better than `best` (None: nothing yet) by more than `threshold`; lower is better unless
    `greater`. NaN is never better, and any number is better than NaN."""
    if math.isnan(value):
        return False
    if best is None or math.isnan(best):
        return True
    return (value - best if greater else best - value) > threshold
