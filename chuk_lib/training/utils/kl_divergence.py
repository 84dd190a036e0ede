"""Estimates of KL(policy ‖ reference) for each sampled token, from its two log-probs (Schulman, "Approximating KL
divergence", 2020). With d = reference − policy:  k1 = −d,  k2 = d²/2,  k3 = exp(d) − d − 1."""

from __future__ import annotations

import mlx.core as mx


def k1(policy: mx.array, reference: mx.array) -> mx.array:
    """Unbiased, of either sign."""
    return policy - reference


def k2(policy: mx.array, reference: mx.array) -> mx.array:
    """Never negative; its gradient is that of the true divergence."""
    return mx.square(reference - policy) / 2


def k3(policy: mx.array, reference: mx.array) -> mx.array:
    """Unbiased and never negative."""
    gap = reference - policy
    return mx.exp(gap) - gap - 1
