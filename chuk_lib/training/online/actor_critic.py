"""A policy and its value function as one model, so that one optimizer trains both.

The value function is a score head on the policy's own body (hidden states are made once and serve
both), or a score model of its own. Values stand before each token of a completion, and one after
its last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.models.heads import output_head
from chuk_lib.models.value_head import ScoreModel
from chuk_lib.training.algorithm import Arrays
from chuk_lib.training.utils.log_probs import StatOptions, TokenStats, fused_head, logit_stats


class ActorCriticStats(NamedTuple):
    """Float32: log-probs and entropies of completion tokens (B, C), and values (B, C + 1); 0 where
    there is none."""

    logps: mx.array
    entropy: mx.array
    values: mx.array


class ActorCritic(nn.Module):
    """`policy`, and `value`: a score model of its own, or the bare score head (`shared`) on the
    policy's body."""

    def __init__(self, policy: nn.Module, value: ScoreModel, *, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self.policy = policy
        self.value = value.head if shared else value
        self._output_head = output_head(policy)

    def __call__(self, arrays: Arrays, options: StatOptions) -> ActorCriticStats:
        """What the policy thinks of the completions in `arrays` (see `with_values`), and what they
        are worth."""
        ids, counted = arrays["input_ids"], arrays["mask"] > 0
        hidden = self._output_head.hidden(self.policy, ids)
        flat = hidden.reshape(-1, hidden.shape[-1])
        stats = self._stats(flat[arrays["positions"]], arrays["targets"], options)
        logps, entropy = (
            mx.where(counted, part[arrays["index"]], 0.0) for part in (stats.logps, stats.entropy)
        )
        at = flat if self.shared else self.value.hidden(ids).reshape(flat.shape[0], -1)
        return ActorCriticStats(
            logps, entropy, self._of_hidden(at[arrays["value_positions"]]) * arrays["value_mask"]
        )

    def _stats(self, hidden: mx.array, targets: mx.array, options: StatOptions) -> TokenStats:
        fused = fused_head(self._output_head, self.policy, options.temperature)
        if fused is not None:
            return TokenStats(*fused.stats(hidden, targets, options))
        return logit_stats(self._output_head.logits(self.policy, hidden), targets, options)

    def _of_hidden(self, hidden: mx.array) -> mx.array:
        weight = self.value.weight if self.shared else self.value.head.weight
        return cast(mx.array, (hidden.astype(mx.float32) @ weight.astype(mx.float32).T)[..., 0])


def with_values(arrays: Arrays, prompts: Sequence[Sequence[int]], value_mask: np.ndarray) -> Arrays:
    """`completion_arrays` of the rows with flat `value_positions` (B, C + 1), the tokens that
    values are read at, and `value_mask` (B, C + 1). The given one may be narrower: rows are padded
    to few widths."""
    width, columns = arrays["input_ids"].shape[1], arrays["mask"].shape[1] + 1
    mask = np.pad(value_mask, ((0, 0), (0, columns - value_mask.shape[1]))).astype(np.float32)
    before = np.array([len(prompt) - 1 for prompt in prompts])[:, None] + np.arange(columns)[None]
    flat = np.where(mask > 0, np.arange(len(prompts))[:, None] * width + before, 0)
    return arrays | {
        "value_positions": mx.array(flat.astype(np.int32)),
        "value_mask": mx.array(mask),
    }
