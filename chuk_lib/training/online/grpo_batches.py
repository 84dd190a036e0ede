"""From a step's completions to updates: which rows each sees, in which micro-batches, divided by what.

Denominators count every row of an update. Rows that cannot matter (advantage 0 and no KL or entropy term, or no token
that counts) are left out of the forward pass. What is divided by is known before anything runs, so that any split into
micro-batches adds up to the same gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from chuk_lib.training.algorithm import Arrays, Update
from chuk_lib.training.losses.policy_gradient import PolicyLoss
from chuk_lib.training.utils.completion_log_probs import Shapes, by_length

Ragged = list[np.ndarray]


@dataclass
class TrainingRows:
    """A step's completions ready to be learned from: N rows.

    `prompts` and `completions` are token ids; `masks` (tokens,) say which count; `advantages` (N, 1), or (N, C) when
    each token has its own; `old`, `reference` and `sampling` are log-probs (tokens,) or None where no loss reads them.
    """

    prompts: list[list[int]]
    completions: Ragged
    masks: Ragged
    advantages: np.ndarray
    old: Ragged | None = None
    reference: Ragged | None = None
    sampling: Ragged | None = None

    @property
    def tokens(self) -> np.ndarray:
        """Tokens that count in each row (N,)."""
        return np.array([mask.sum() for mask in self.masks], dtype=np.int64)

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """Prompt and completion together, of these rows."""
        return [len(self.prompts[row]) + len(self.completions[row]) for row in rows]


@dataclass(frozen=True)
class Extra:
    """What one update has of its own: `entropy_masks` (tokens,) by row, and the coefficient of the entropy bonus."""

    entropy_masks: dict[int, np.ndarray] = field(default_factory=dict)
    entropy_coef: float = 0.0


def split_rows(count: int, size: int, seed: int) -> list[np.ndarray]:
    """The rows of each update of a pass: all as they stand, or parts of `size` in an order drawn from `seed`."""
    if size >= count:
        return [np.arange(count)]
    order = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    return [order[start : start + size] for start in range(0, count, size)]


def make_update(
    rollout: TrainingRows,
    rows: Sequence[int],
    options: PolicyLoss,
    shapes: Shapes,
    updates_per_pass: int,
    extra: Extra,
    *,
    all_rows: bool,
    counts: dict[str, int],
) -> Update:
    """The update of some rows of a rollout. `all_rows`: also rows without advantage matter."""
    tokens = rollout.tokens
    of_update = int(tokens[list(rows)].sum())
    weight = options.denominator(len(rows), of_update, float(tokens.sum()) / updates_per_pass)
    run = _rows_that_matter(rollout, rows, all_rows, shapes)
    parts = [[run[i] for i in part] for part in by_length(rollout.lengths(run), shapes.rows)]
    seen = int(tokens[run].sum())
    learned = sum(int((extra.entropy_masks[row] * rollout.masks[row]).sum()) for row in run if extra.entropy_masks)
    sizes = {
        "tokens": of_update, "rows": len(rows), "seen": seen, "seen_rows": len(run), "once": len(parts),
        "learned": learned if extra.entropy_masks else seen,
    }  # fmt: skip
    scales = {name: weight / max(size, 1) for name, size in sizes.items()}
    scales["least"] = 0.0 if len(run) < len(rows) else scales["once"]
    scales["entropy_coef"] = extra.entropy_coef * scales["learned"]  # a mean over tokens, whatever the loss is of
    scales["weight"] = weight / len(parts)
    numbers = {f"per/{name}": mx.array(value, mx.float32) for name, value in scales.items()}
    batches = [_arrays(rollout, part, shapes, extra) | numbers for part in parts]
    return Update(batches, weight, counts | {"trained_tokens": seen})


def _rows_that_matter(rollout: TrainingRows, rows: Sequence[int], all_rows: bool, shapes: Shapes) -> list[int]:
    """Rows that the gradient or a quantile can depend on; the shortest one when there is none, so that the optimizer's
    moments go on. With few shapes others fill the last micro-batch up."""
    has_tokens = [int(row) for row in rows if rollout.masks[row].any()]
    kept = [row for row in has_tokens if all_rows or rollout.advantages[row].any()]
    if not kept:
        return [int(min(rows, key=lambda row: len(rollout.completions[row]) + len(rollout.prompts[row])))]
    missing = -len(kept) % shapes.rows if shapes.few else 0
    return kept + [int(row) for row in rows if int(row) not in set(kept)][:missing]


def _arrays(rollout: TrainingRows, rows: Sequence[int], shapes: Shapes, extra: Extra) -> Arrays:
    """One micro-batch."""
    pick = lambda values: [values[row] for row in rows]  # noqa: E731
    arrays: Arrays = shapes.arrays(pick(rollout.prompts), pick(rollout.completions), pick(rollout.masks))
    width = arrays["mask"].shape[1]
    for name, values in (("old", rollout.old), ("reference", rollout.reference), ("sampling", rollout.sampling)):
        if values is not None:
            arrays[name] = mx.array(padded(pick(values), width))
    if extra.entropy_masks:
        arrays["entropy_mask"] = mx.array(padded(pick(extra.entropy_masks), width))
    advantages = rollout.advantages[list(rows)]
    if advantages.shape[1] > 1:
        advantages = padded([row[:width] for row in advantages], width)
    return arrays | {"advantages": mx.array(advantages)}


def padded(values: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Rows of unequal length as one float32 matrix (rows, width), 0 where there is nothing."""
    matrix = np.zeros((len(values), width), np.float32)
    for row, part in zip(matrix, values, strict=True):
        row[: len(part)] = part
    return matrix
