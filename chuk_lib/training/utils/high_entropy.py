"""Learning only from the tokens where the policy is least sure (Wang et al. 2025, "Beyond the 80/20
rule")."""

from __future__ import annotations

import numpy as np


def high_entropy_mask(entropy: np.ndarray, mask: np.ndarray, share: float) -> np.ndarray:
    """1 on the `share` of the tokens under `mask` whose entropy is highest, float32; both arrays
    have any shape."""
    seen = entropy[mask > 0]
    if not seen.size:
        return np.zeros_like(mask, np.float32)
    threshold = np.quantile(seen, 1 - share)
    kept: np.ndarray = (entropy >= threshold) & (mask > 0)
    return kept.astype(np.float32)
