"""From a step's episodes to updates: which rows each sees, in which micro-batches, divided by what.

Denominators count every row of an update. Rows that cannot matter (advantage 0 and no KL or entropy
term, or no token that counts) are left out of the forward pass. What is divided by is known before
anything runs, so that any split into micro-batches adds up to the same gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from chuk_lib import runtime
from chuk_lib.training.algorithm import Arrays, Update
from chuk_lib.training.losses.policy_gradient import denominator
from chuk_lib.training.losses.policy_kinds import Sizes
from chuk_lib.training.losses.sums import Per, scale_arrays
from chuk_lib.training.online.episode import Episode, episode_arrays, padded
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.utils.completion_log_probs import Shapes, by_length


@dataclass(frozen=True)
class Extra:
    """What one update has of its own: `entropy_masks` (tokens,) by row, and the coefficient of the
    entropy bonus."""

    entropy_masks: dict[int, np.ndarray] = field(default_factory=dict)
    entropy_coef: float = 0.0


def split_rows(count: int, size: int, seed: int) -> list[np.ndarray]:
    """The rows of each update of a pass: all as they stand, or parts of `size` in an order drawn
    from `seed`."""
    if size >= count:
        return [np.arange(count)]
    order = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    return [order[start : start + size] for start in range(0, count, size)]


def make_update(
    episodes: Sequence[Episode],
    rows: Sequence[int],
    config: GRPOConfig,
    shapes: Shapes,
    extra: Extra,
) -> Update:
    """The update of some (`rows`) of a step's episodes."""
    tokens = np.array([one.written for one in episodes], np.int64)
    counted = int(tokens[list(rows)].sum())
    run = _rows_that_matter(episodes, rows, config.all_rows_matter, shapes)
    parts = [
        [run[i] for i in part]
        for part in by_length([len(episodes[row]) for row in run], shapes.rows)
    ]
    mine, idle = runtime.this_world().deal(parts)
    count = runtime.this_world().dealt(parts)
    seen = int(tokens[run].sum())
    # The loss is a mean over the whole update, run or not: a row without advantage has loss 0, and
    # leaving it out of the divisor would make the others count more.
    room = len(rows) * config.max_completion_length
    weight = denominator(
        config, Sizes(len(rows), counted, float(tokens.sum()) / config.updates_per_pass, room)
    )
    sizes = {
        Per.TOKEN: counted,
        Per.ROW: len(rows),
        Per.SEEN_TOKEN: seen,
        # On a GPU rows without tokens may fill a micro-batch up.
        Per.SEEN_ROW: max(1, sum(bool(episodes[row].mask.any()) for row in run)),
        Per.MICRO_BATCH: count,
        # A row that is not run has a minimum of 0, and so has the update: 0 leaves the sum out.
        Per.LEAST: count if len(run) == len(rows) else 0,
    }
    # The entropy bonus is a mean over the tokens that it is for, whatever the loss is a mean of.
    bonus = extra.entropy_coef * (weight / max(_entropy_tokens(episodes, run, extra, seen), 1))
    shared = scale_arrays(weight, sizes) | {
        "entropy_scale": mx.array(bonus, mx.float32),
        # Weights of micro-batches add up to the update's.
        "weight": mx.array(weight / count, mx.float32),
    }
    sampling = _reads_sampler(config, episodes)
    batches = [_arrays(episodes, part, shapes, extra, sampling=sampling) | shared for part in mine]
    return Update(batches, weight, {"trained_tokens": seen}, idle)


def _entropy_tokens(
    episodes: Sequence[Episode], run: Sequence[int], extra: Extra, seen: int
) -> int:
    """Tokens that the entropy bonus is for: those of the entropy masks, else all of the rows that
    are run."""
    if not extra.entropy_masks:
        return seen
    return sum(int((extra.entropy_masks[row] * episodes[row].mask).sum()) for row in run)


def _rows_that_matter(
    episodes: Sequence[Episode], rows: Sequence[int], all_rows: bool, shapes: Shapes
) -> list[int]:
    """Rows that the gradient or a quantile can depend on; the shortest one when there is none, so
    that the optimizer's moments go on. With few shapes others fill the last micro-batch up."""
    has_tokens = [int(row) for row in rows if episodes[row].mask.any()]
    kept = [row for row in has_tokens if all_rows or episodes[row].advantages.any()]
    if not kept:
        return [int(min(rows, key=lambda row: len(episodes[row])))]
    missing = -len(kept) % shapes.rows if shapes.few else 0
    return kept + [int(row) for row in rows if int(row) not in set(kept)][:missing]


def _reads_sampler(config: GRPOConfig, episodes: Sequence[Episode]) -> bool:
    """Whether a loss reads the sampler's log-probs, and they are known of all that was written."""
    if not config.importance_sampling_correction and config.chosen_threshold is None:
        return False
    return not any(np.isnan(one.logps[one.mask > 0]).any() for one in episodes)


def _arrays(
    episodes: Sequence[Episode],
    rows: Sequence[int],
    shapes: Shapes,
    extra: Extra,
    *,
    sampling: bool,
) -> Arrays:
    """One micro-batch: log-probs (B, C) where a loss reads them, and advantages (B, 1) or (B,
    C)."""
    chosen = [episodes[row] for row in rows]
    arrays: Arrays = episode_arrays(chosen, shapes)
    width = arrays["mask"].shape[1]
    for name, values in (
        ("old", [one.old for one in chosen]),
        ("reference", [one.reference for one in chosen]),
    ):
        if values[0] is not None:  # then no row is without
            arrays[name] = mx.array(padded(values, width))
    if sampling:  # what a player gave for tokens of others is not read
        arrays["sampling"] = mx.array(
            padded([np.where(one.mask > 0, one.logps, 0) for one in chosen], width)
        )
    if extra.entropy_masks:
        arrays["entropy_mask"] = mx.array(padded([extra.entropy_masks[row] for row in rows], width))
    by_token = any(len(one.advantages) > 1 for one in chosen)
    return arrays | {
        "advantages": mx.array(padded([one.advantages for one in chosen], width if by_token else 1))
    }
