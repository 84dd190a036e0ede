"""Advantages of steps in time: generalised advantage estimation, and whitening. Nothing here knows
about text.

A row is one sequence of steps: the tokens of a completion, or what one agent did in its
environment. Arrays are (B, T) NumPy; what a mask leaves out counts as not there. GAE: Schulman et
al. 2016."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_TINY = 1e-8


class Estimate(NamedTuple):
    """Per step, float32 (B, T): the `advantages`, and the `returns` that a value function should
    have given."""

    advantages: np.ndarray
    returns: np.ndarray


def gae(
    rewards: np.ndarray,
    values: np.ndarray,
    *,
    gamma: float,
    lam: float,
    mask: np.ndarray | None = None,
    dones: np.ndarray | None = None,
    last_values: np.ndarray | None = None,
) -> Estimate:
    """Advantages A and returns A + V, right to left:

        δ_t = r_t + γ·V_{t+1} − V_t        A_t = δ_t + γλ·A_{t+1}

    `mask` (B, T) is 0 where a row has no step, at its end or in between (results there are 0, and
    the steps on both sides are neighbours). `dones` (B, T) says which steps ended an episode:
    nothing that comes later in the row reaches back over them. `last_values` (B,) is V after a
    row's last step, 0 unless given: for rows that were cut, not ended."""
    rows, steps = rewards.shape
    kept = np.ones((rows, steps)) if mask is None else np.asarray(mask, np.float64)
    goes_on = np.ones((rows, steps)) if dones is None else 1.0 - np.asarray(dones, np.float64)
    rewards, values = (
        np.where(kept > 0, np.asarray(part, np.float64), 0.0) for part in (rewards, values)
    )
    following = np.zeros(rows) if last_values is None else np.asarray(last_values, np.float64)
    advantages = np.zeros((rows, steps))
    ahead = np.zeros(rows)
    for step in reversed(range(steps)):
        here = kept[:, step] > 0
        delta = rewards[:, step] + gamma * goes_on[:, step] * following - values[:, step]
        reached = delta + gamma * lam * goes_on[:, step] * ahead
        # where there is no step, what comes later reaches over to the step before
        ahead, following = (
            np.where(here, reached, ahead),
            np.where(here, values[:, step], following),
        )
        advantages[:, step] = np.where(here, reached, 0.0)
    return Estimate(advantages.astype(np.float32), (advantages + values).astype(np.float32))


def whiten(values: np.ndarray, mask: np.ndarray, *, shift_mean: bool = True) -> np.ndarray:
    """(x − mean)/√(var + 1e-8) over what the mask keeps, var unbiased; 0 elsewhere. Float32 of the
    same shape.

    Without `shift_mean` the mean stays what it was. A single value has no variance: it is only
    shifted."""
    kept = np.asarray(mask, bool)
    chosen = np.asarray(values, np.float64)[kept]
    if not chosen.size:
        return np.zeros(values.shape, np.float32)
    mean, spread = chosen.mean(), chosen.var(ddof=1) if chosen.size > 1 else 1.0
    result = np.zeros(values.shape)
    result[kept] = (chosen - mean) / np.sqrt(spread + _TINY) + (0.0 if shift_mean else mean)
    return result.astype(np.float32)
