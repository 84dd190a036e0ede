"""Log-probs of target tokens: the one place where hidden states meet the output head.

Only positions that have a target are projected to the vocabulary; prompts and padding cost nothing there.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.models.heads import OutputHead
from chuk_lib.training.utils.fused_head import FusedHead


class TokenStats(NamedTuple):
    """For N target tokens, float32 (N,): log-prob of the target, entropy of the distribution (nats), and whether
    the target was the most likely token. Only `logps` carries a gradient."""

    logps: mx.array
    entropy: mx.array
    correct: mx.array


def target_stats(
    head: OutputHead,
    model: nn.Module,
    input_ids: mx.array,
    positions: mx.array,
    targets: mx.array,
    segment_ids: mx.array | None = None,
    gradient: bool = True,
) -> TokenStats:
    """Statistics of `targets` (N,) predicted at flat `positions` (N,) = row·T + column of `input_ids` (B, T).

    With `segment_ids` (B, T) documents of a row do not see each other. `gradient=False`, for evaluation, saves the
    work that only a backward pass needs.
    """
    hidden = head.hidden(model, input_ids, segment_ids)
    hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
    fused = fused_head(head, model)
    if fused is not None:
        return TokenStats(*fused.stats(hidden, targets, gradient))
    return logit_stats(head.logits(model, hidden), targets)


def fused_head(head: OutputHead, model: nn.Module) -> FusedHead | None:
    """The head in the form that is run in tiles, None when it is no plain weight (quantized, adapted, biased)."""
    if not head.split:
        return None
    module = head.module(model)
    if type(module) not in (nn.Linear, nn.Embedding) or "bias" in module:
        return None
    return FusedHead(module.weight, "weight" in module.trainable_parameters(), head.transform)


def logit_stats(logits: mx.array, targets: mx.array) -> TokenStats:
    """Statistics of targets (N,) under logits (N, V), computed in float32."""
    logits = logits.astype(mx.float32)
    log_z = mx.logsumexp(logits, axis=-1, keepdims=True)
    logps = mx.take_along_axis(logits - log_z, targets[:, None], axis=-1)[:, 0]
    fixed = mx.stop_gradient(logits)
    probs = mx.exp(fixed - mx.stop_gradient(log_z))
    entropy = mx.stop_gradient(log_z[:, 0]) - (probs * fixed).sum(axis=-1)
    correct = (mx.argmax(fixed, axis=-1) == targets).astype(mx.float32)
    return TokenStats(logps, entropy, correct)
