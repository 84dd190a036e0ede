"""Micro-batches of preferences as arrays: rows [chosen; rejected] of pairs, or single completions.

A loss is a sum over pairs (or rows) with their number as weight. What is a mean over tokens instead
is multiplied by pairs / tokens of the whole update, numbers that lie in every micro-batch: so
accumulation changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import mlx.core as mx
import numpy as np

from chuk_lib import runtime
from chuk_lib.data.batches import FolderPlan
from chuk_lib.data.batching import Rounding, RowPlan
from chuk_lib.data.preference_dataset import PairExample, UnpairedExample
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.training.algorithm import Arrays, Update
from chuk_lib.training.preference.config import PreferenceConfig
from chuk_lib.training.sft_trainer import pad_rounding, pad_token_id
from chuk_lib.training.utils.log_probs import completion_arrays
from chuk_lib.training.utils.over_ranks import summed

Row = TypeVar("Row", bound=PairExample | UnpairedExample)


@dataclass(frozen=True)
class Layout:
    """How rows are padded. `few_shapes`: lengths and numbers of tokens are rounded up, for compiled
    steps."""

    pad_token_id: int = 0
    multiple: int | Rounding | None = None
    few_shapes: bool = False

    @classmethod
    def of(cls, config: PreferenceConfig, tokenizer: LoadedTokenizer) -> Layout:
        """As the settings say; on a GPU in few lengths unless they say otherwise."""
        return cls(pad_token_id(tokenizer), pad_rounding(config), not runtime.on_cpu())

    def arrays(self, prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray]) -> Arrays:
        """`completion_arrays` of these rows. Where there is no prompt the first token stands for
        it: nothing predicts that."""
        bare = [len(prompt) == 0 for prompt in prompts]
        parts = list(zip(prompts, completions, bare, strict=True))
        return completion_arrays(
            [(part[:1] if empty else prompt).tolist() for prompt, part, empty in parts],
            [(part[1:] if empty else part).tolist() for _, part, empty in parts],
            pad_token_id=self.pad_token_id,
            multiple=self.multiple,
            few_shapes=self.few_shapes,
        )


@dataclass(frozen=True)
class Batches(Generic[Row]):
    """The examples of a data set, the plan of their steps, and how they are laid out."""

    examples: Sequence[Row]
    plan: RowPlan | FolderPlan
    layout: Layout

    def rows(self, step: int) -> list[list[int]]:
        """The rows of each micro-batch of a step."""
        return self.plan.micro_batches(step)

    def window(self, step: int) -> list[Row]:
        """All examples of a step, in the order of its micro-batches."""
        return [self.examples[row] for part in self.rows(step) for row in part]

    def update(
        self, step: int, arrays_of: Callable[[Sequence[int], Sequence[Row]], Arrays]
    ) -> Update:
        """The one update of a step, each micro-batch made by `arrays_of(rows, examples)`."""
        parts, idle = runtime.this_world().deal(self.rows(step))
        made = [arrays_of(rows, [self.examples[row] for row in rows]) for rows in parts]
        window = self.window(step)
        sizes = [
            (len(one.completions) * len(one.prompt), sum(map(len, one.completions)))
            for one in window
        ]
        counts = {
            "tokens": sum(prompts + completions for prompts, completions in sizes),
            "trained_tokens": sum(completions for _, completions in sizes),
            "slots": _slots(made, idle),
            "rows": len(window),
        }
        return Update(made, float(len(window)), counts, idle)

    def where(self, step: int) -> str:
        """The source lines that a step trains on."""
        sources = [str(one.source or "a row") for one in self.window(step)]
        more = f" and {len(sources) - 4} more" if len(sources) > 4 else ""
        return ", ".join(sources[:4]) + more


def _slots(micro_batches: Sequence[Arrays], idle: bool) -> int:
    """Places for tokens in the micro-batches of all processes."""
    own = 0 if idle else sum(arrays["input_ids"].size for arrays in micro_batches)
    return int(summed({"slots": own})["slots"])


def pair_arrays(pairs: Sequence[PairExample], layout: Layout) -> Arrays:
    """Rows [chosen; rejected] of B pairs: see `completion_arrays`, B there is 2B."""
    prompts = [pair.prompt for pair in pairs]
    return layout.arrays(
        prompts * 2, [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    )


def whole_pair_arrays(pairs: Sequence[PairExample], layout: Layout) -> Arrays:
    """As `pair_arrays`, but every token of the chosen rows after their first is a target, as ORPO
    learns them; `completion` (2B, C) float32 is 1 on the completions' tokens alone."""
    starts = [min(1, len(pair.prompt)) for pair in pairs]
    heads = [pair.prompt[:start] for pair, start in zip(pairs, starts, strict=True)]
    tails = [
        np.concatenate([pair.prompt[start:], pair.chosen])
        for pair, start in zip(pairs, starts, strict=True)
    ]
    arrays = layout.arrays(
        [*heads, *(pair.prompt for pair in pairs)], [*tails, *(pair.rejected for pair in pairs)]
    )
    completion = np.array(arrays["mask"])
    for row, (pair, start) in enumerate(zip(pairs, starts, strict=True)):
        completion[row, : len(pair.prompt) - start] = 0.0
    return arrays | {"completion": mx.array(completion)}


def pair_shares(window: Sequence[PairExample]) -> Arrays:
    """Pairs of an update for each of its tokens, scalars: of the chosen, of the rejected, of
    both."""
    chosen, rejected = (
        sum(len(pair.chosen) for pair in window),
        sum(len(pair.rejected) for pair in window),
    )
    sums = {"per_chosen": chosen, "per_rejected": rejected, "per_token": chosen + rejected}
    return {name: mx.array(len(window) / max(1, total), mx.float32) for name, total in sums.items()}


def single_arrays(rows: Sequence[UnpairedExample], layout: Layout) -> Arrays:
    """One row a completion, and `is_good` (B,) float32."""
    arrays = layout.arrays([row.prompt for row in rows], [row.completion for row in rows])
    return arrays | {"is_good": mx.array([float(row.label) for row in rows], mx.float32)}


def single_shares(window: Sequence[UnpairedExample]) -> Arrays:
    """Rows of an update for each of its good and bad rows and tokens, scalars; 0 where there are
    none."""
    good, bad = ([row for row in window if row.label is kind] for kind in (True, False))
    tokens = lambda rows: sum(len(row.completion) for row in rows)  # noqa: E731
    sums = {
        "per_good": len(good),
        "per_bad": len(bad),
        "per_good_token": tokens(good),
        "per_bad_token": tokens(bad),
        "per_token": tokens(window),
    }
    return {
        name: mx.array(len(window) / total if total else 0.0, mx.float32)
        for name, total in sums.items()
    }


def mismatched(window: Sequence[UnpairedExample], limit: int | None) -> list[UnpairedExample]:
    """Each prompt with the whole completion of the row before it, the first with the last one's,
    then cut to `limit`: what KTO's KL is of."""
    shifted = [window[-1], *window[:-1]]
    rows = [
        UnpairedExample(own.prompt, other.uncut, own.label, own.source)
        for own, other in zip(window, shifted, strict=True)
    ]
    return rows if limit is None else [row.cut(limit) for row in rows]
