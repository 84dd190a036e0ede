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
from chuk_lib.training.losses.policy_gradient import denominator
from chuk_lib.training.losses.policy_kinds import Sizes
from chuk_lib.training.losses.sums import Per, scale_arrays
from chuk_lib.training.online.grpo_config import GRPOConfig
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


def make_update(rollout: TrainingRows, rows: Sequence[int], config: GRPOConfig, shapes: Shapes, extra: Extra) -> Update:
    """The update of some rows of a rollout."""
    tokens = rollout.tokens
    counted = int(tokens[list(rows)].sum())
    run = _rows_that_matter(rollout, rows, config.all_rows_matter, shapes)
    parts = [[run[i] for i in part] for part in by_length(rollout.lengths(run), shapes.rows)]
    seen = int(tokens[run].sum())
    # The loss is a mean over the whole update, run or not: a row without advantage has loss 0, and
    # leaving it out of the divisor would make the others count more.
    room = len(rows) * config.max_completion_length
    weight = denominator(config, Sizes(len(rows), counted, float(tokens.sum()) / config.updates_per_pass, room))
    sizes = {
        Per.TOKEN: counted,
        Per.ROW: len(rows),
        Per.SEEN_TOKEN: seen,
        Per.SEEN_ROW: len(run),
        Per.MICRO_BATCH: len(parts),
        # A row that is not run has a minimum of 0, and so has the update: 0 leaves the sum out.
        Per.LEAST: len(parts) if len(run) == len(rows) else 0,
    }
    # The entropy bonus is a mean over the tokens that it is for, whatever the loss is a mean of.
    bonus = extra.entropy_coef * (weight / max(_entropy_tokens(rollout, run, extra, seen), 1))
    shared = scale_arrays(weight, sizes) | {
        "entropy_scale": mx.array(bonus, mx.float32),
        "weight": mx.array(weight / len(parts), mx.float32),  # weights of micro-batches add up to the update's
    }
    batches = [_arrays(rollout, part, shapes, extra) | shared for part in parts]
    return Update(batches, weight, {"trained_tokens": seen})


def _entropy_tokens(rollout: TrainingRows, run: Sequence[int], extra: Extra, seen: int) -> int:
    """Tokens that the entropy bonus is for: those of the entropy masks, else all of the rows that are run."""
    if not extra.entropy_masks:
        return seen
    return sum(int((extra.entropy_masks[row] * rollout.masks[row]).sum()) for row in run)


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
