"""How far a difference between two models can be trusted: a paired bootstrap over the prompts they
both answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 5_000
_AT_ONCE = 250


@dataclass(frozen=True)
class Difference:
    """A mean difference over `rows` prompts, and the interval that holds it with 95 %
    confidence."""

    difference: float
    low: float
    high: float
    rows: int


def paired_difference(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> Difference | None:
    """The mean of ours − theirs (P,) over the prompts for which both are numbers; None when there
    is none.

    The interval is the 2.5th to the 97.5th percentile of the mean over prompts drawn with
    replacement (Efron 1979), the same for the same seed."""
    gaps = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    gaps = gaps[~np.isnan(gaps)]
    if not len(gaps):
        return None
    random = np.random.Generator(np.random.PCG64(seed))
    means = [
        random.multinomial(len(gaps), np.full(len(gaps), 1 / len(gaps)), size=_AT_ONCE)
        @ gaps
        / len(gaps)
        for _ in range(RESAMPLES // _AT_ONCE)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Difference(float(gaps.mean()), float(low), float(high), len(gaps))
