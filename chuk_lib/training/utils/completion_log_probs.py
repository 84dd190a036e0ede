"""Log-probs and entropies of completions under a model as it stands, without gradients: the policy
that sampled, and the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.data.batching import Rounding
from chuk_lib.models.heads import OutputHead, output_head
from chuk_lib.models.randomness import evaluating
from chuk_lib.training.utils.log_probs import StatOptions, completion_arrays, completion_stats


@dataclass(frozen=True)
class Shapes:
    """How rows are put together: the id that fills them up, at most `rows` at once, widths rounded
    to a `multiple`, and whether shapes should be few (see `completion_arrays`)."""

    rows: int
    pad_token_id: int = 0
    multiple: int | Rounding | None = None
    few: bool = False

    def arrays(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Any], masks: Any = None
    ) -> Any:
        """Rows of prompt + completion as losses read them."""
        return completion_arrays(
            prompts,
            completions,
            masks=masks,
            pad_token_id=self.pad_token_id,
            multiple=self.multiple,
            few_shapes=self.few,
        )


class RowStats(NamedTuple):
    """Of each completion, float32 (tokens,): log-probs of its tokens, and entropies where they were
    predicted."""

    logps: list[np.ndarray]
    entropy: list[np.ndarray]


def row_stats(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Any],
    temperature: float,
    shapes: Shapes,
    head: OutputHead | None = None,
    masks: Sequence[np.ndarray] | None = None,
) -> RowStats:
    """Statistics of each completion under `model`, without dropout, in the order given. Rows of
    like length run together. `masks` (each as long as its completion) say which tokens the model
    wrote: the others are context, and 0 in what comes back."""
    head = head or output_head(model)
    empty = np.zeros(0, np.float32)
    logps, entropy = [empty] * len(prompts), [empty] * len(prompts)
    with evaluating(model):
        for rows in by_length(
            [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)], shapes.rows
        ):
            kept = None if masks is None else [masks[i] for i in rows]
            arrays = shapes.arrays([prompts[i] for i in rows], [completions[i] for i in rows], kept)
            found = completion_stats(head, model, arrays, StatOptions(temperature, gradient=False))
            mx.eval(found.logps, found.entropy)
            for at, (values, entropies) in zip(
                rows, zip(*map(np.array, found[:2]), strict=True), strict=True
            ):
                size = len(completions[at])
                logps[at], entropy[at] = values[:size].copy(), entropies[:size].copy()
    return RowStats(logps, entropy)


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows in parts of `size`, those of like length together, longest first."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[start : start + size] for start in range(0, len(order), size)]
