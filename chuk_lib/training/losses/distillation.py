"""Distillation: how far a student's next-token distribution is from a teacher's.

The generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2023,
https://arxiv.org/abs/2306.13649, eq. 1). With P the teacher, Q the student and
M = beta P + (1 - beta) Q:

    beta KL(P | M) + (1 - beta) KL(Q | M)

At the ends, where that is 0, its limits: beta 0 is KL(P | Q), beta 1 is KL(Q | P).
"""

from __future__ import annotations

import math

import mlx.core as mx


def generalised_jsd(
    student: mx.array, teacher: mx.array, beta: float = 0.5, temperature: float = 1.0
) -> mx.array:
    """The divergence at each position, in nats: float32 (B, T).

    `student` and `teacher` are logits (B, T, V) over one vocabulary; both are divided by
    `temperature` first. Raises ValueError when `beta` is not within 0 and 1 or `temperature` not
    above 0."""
    if not 0 <= beta <= 1 or not temperature > 0:
        raise ValueError(
            f"beta should be from 0 to 1 and temperature above 0, not {beta} and {temperature}"
        )
    q, p = (_log_softmax(logits.astype(mx.float32) / temperature) for logits in (student, teacher))
    if beta == 0:
        return _divergence(p, q)
    if beta == 1:
        return _divergence(q, p)
    mixture = mx.logaddexp(q + math.log1p(-beta), p + math.log(beta))
    return beta * _divergence(p, mixture) + (1 - beta) * _divergence(q, mixture)


def _log_softmax(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _divergence(p: mx.array, q: mx.array) -> mx.array:
    """KL(p | q) of log-probabilities over the last axis."""
    return (mx.exp(p) * (p - q)).sum(axis=-1)
