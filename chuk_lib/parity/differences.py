"""Where chuk means to compute something else than TRL: how far the two are apart, checked like
everything else.

Each case is a row of docs/trl.md. A difference that grows beyond its bound fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chuk_lib.parity.checks import Checker

DIFFERENCES: dict[str, dict[str, float]] = {
    "dpo_sft_accum2": {"loss": 0.06, "grad_norm": 0.1},
    "kto_accum2_beta0.5": {"loss": 0.6, "grad_norm": 0.6},
    "orpo_accum2": {"loss": 0.03, "grad_norm": 0.08},
    "cpo_accum2": {"loss": 0.03, "grad_norm": 0.05},
    "bnpo_accum2": {"loss": 2.0, "grad_norm": 0.8},
    "dapo_bonus_accum2": {"loss": 0.005, "grad_norm": 0.02},
    "dapo_quantile_accum2": {"loss": 0.1, "grad_norm": 0.3},
}
"""For a case: the largest difference of a metric over its steps, as a share of TRL's largest value.
"""


def check_difference(
    check: Checker,
    name: str,
    bounds: Mapping[str, float],
    steps: Sequence[Mapping[str, Any]],
    wanted: Sequence[Mapping[str, Any]],
) -> None:
    """One check a metric: no step is further away than its bound. They stand apart, as
    `differences`."""
    check = check.under("differences")
    check.equal(f"{name}/steps", len(steps), len(wanted))
    for metric, bound in bounds.items():
        got, want = (np.array([step[metric] for step in rows]) for rows in (steps, wanted))
        largest = np.abs(want).max()
        check.close(f"{name}/{metric}", got / largest, want / largest, rtol=0.0, atol=bound)
