"""pass@k: the chance that one of k samples passes.

    pass@k = 1 − C(n − c, k) / C(n, k)      n samples of a prompt, c of which pass

and of that the mean over prompts. Unbiased for every n ≥ k: Chen et al. 2021, "Evaluating Large
Language Models Trained on Code", eq. 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chuk_lib.errors import ConfigError


def pass_at_k(samples: int, passed: Sequence[int] | np.ndarray, k: int) -> np.ndarray:
    """pass@k float64 (P,) of P prompts, each with `samples` samples, of which `passed` (P,) pass.

    Computed as 1 − Π (1 − k / i) for i from n − c + 1 to n, which never forms a large number.
    Raises ConfigError when k is not from 1 to `samples`."""
    if not 1 <= k <= samples:
        raise ConfigError(
            f"pass@{k} cannot be told from {samples} samples",
            f"k is from 1 to {samples}; see --samples",
        )
    passed = np.asarray(passed)
    numbers = np.arange(1, samples + 1)
    counts = numbers[None, :] > samples - passed[:, None]
    factors = np.where(counts, np.maximum(0.0, 1.0 - k / numbers)[None, :], 1.0)
    return np.asarray(1.0 - factors.prod(axis=1))
