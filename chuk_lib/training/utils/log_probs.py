"""Log-probs of target tokens: the one place where hidden states meet the output head.

Only positions that have a target are projected to the vocabulary; prompts and padding cost nothing
there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.data.batching import Rounding
from chuk_lib.models.heads import OutputHead
from chuk_lib.models.randomness import drops
from chuk_lib.models.transforms import tempered
from chuk_lib.training.algorithm import Arrays
from chuk_lib.training.utils.fused_head import FusedHead, StatOptions
from chuk_lib.training.utils.head_products import HeadProduct, LayerProduct, WeightProduct

DEFAULT = StatOptions()


class TokenStats(NamedTuple):
    """For target tokens, float32, (N,) or (B, C): log-prob of the target, entropy of the
    distribution (nats), and whether the target was the most likely token; with moments also the
    mean logit and log Σp², and with `gap` how far the target's logit is above the mean.

    `logps` and `gap` carry a gradient, and `entropy` when it was asked for.
    """

    logps: mx.array
    entropy: mx.array
    correct: mx.array
    mean_logits: mx.array | None = None
    log_sum_sq: mx.array | None = None
    gap: mx.array | None = None


def target_stats(
    head: OutputHead,
    model: nn.Module,
    input_ids: mx.array,
    positions: mx.array,
    targets: mx.array,
    segment_ids: mx.array | None = None,
    options: StatOptions = DEFAULT,
) -> TokenStats:
    """Statistics of `targets` (N,) predicted at flat `positions` (N,) = row·T + column of
    `input_ids` (B, T).

    With `segment_ids` (B, T) documents of a row do not see each other.
    """
    hidden = head.hidden(model, input_ids, segment_ids)
    hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
    fused = fused_head(head, model, options.temperature)
    if fused is not None:
        stats = TokenStats(*fused.stats(hidden, targets, options))
    else:
        stats = logit_stats(head.logits(model, hidden), targets, options)
    return stats._replace(gap=_gap(head, model, hidden, targets)) if options.gap else stats


def _gap(head: OutputHead, model: nn.Module, hidden: mx.array, targets: mx.array) -> mx.array:
    """The targets' logits less the mean logits, (N,) float32. Where logits are W·h that is
    h·(W_y − mean W): no logits are made."""
    fused = fused_head(head, model)
    if fused is None or fused.transform is not None or not isinstance(fused.product, WeightProduct):
        logits = head.logits(model, hidden).astype(mx.float32)
        at_target = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return at_target - logits.mean(axis=-1)
    weight: mx.array = head.module(model).weight
    share = mx.full((1, weight.shape[0]), 1 / weight.shape[0], weight.dtype)
    rows = weight[targets].astype(mx.float32) - (share @ weight).astype(mx.float32)
    products: mx.array = hidden.astype(mx.float32) * rows
    return products.sum(axis=-1)


def completion_arrays(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    masks: Sequence[Sequence[bool]] | None = None,
    pad_token_id: int = 0,
    multiple: int | Rounding | None = None,
    few_shapes: bool = False,
) -> Arrays:
    """Rows of prompt + completion as `completion_stats` reads them.

    `input_ids` (B, T) right-padded; `positions` (N,) and `targets` (N,) of the completion tokens
    that count, flat; `index` (B, C): where token c of completion b is among those N; `mask` (B, C)
    float32: 1 where a token counts, by `masks` (each as long as its completion, with holes where
    the model did not write) or everywhere. `multiple` rounds T up, and C too with `few_shapes`,
    which also rounds N up (to B·C), so that a compiled step meets few shapes."""
    rows, width, longest = len(prompts), 0, max(1, *(len(one) for one in completions))
    width = max(
        len(prompt) + len(completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    )
    rounded = Rounding.of(multiple)
    width, longest = rounded(width), rounded(longest) if few_shapes else longest
    ids = np.full((rows, width), pad_token_id, np.int32)
    index, mask = np.zeros((rows, longest), np.int32), np.zeros((rows, longest), np.float32)
    positions: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    count = 0
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start, size = len(prompt), len(completion)
        ids[row, :start], ids[row, start : start + size] = prompt, completion
        mask[row, :size] = 1.0 if masks is None else np.asarray(masks[row], np.float32)
        counted = np.flatnonzero(mask[row])  # the others are context: no head is run for them
        positions.append(row * width + start - 1 + counted)
        targets.append(ids[row, start + counted])
        index[row, counted] = np.arange(count, count + len(counted))
        count += len(counted)
    extra = rows * longest - count if few_shapes else int(count == 0)
    flat = [
        np.pad(np.concatenate(part).astype(np.int32), (0, extra)) for part in (positions, targets)
    ]
    names = ("input_ids", "positions", "targets", "index", "mask")
    return {
        name: mx.array(part) for name, part in zip(names, (ids, *flat, index, mask), strict=True)
    }


def completion_stats(
    head: OutputHead, model: nn.Module, arrays: Arrays, options: StatOptions = DEFAULT
) -> TokenStats:
    """Statistics (B, C) of the completion tokens of `completion_arrays`, exactly 0 where the mask
    is 0."""
    found = target_stats(
        head,
        model,
        arrays["input_ids"],
        arrays["positions"],
        arrays["targets"],
        arrays.get("segment_ids"),
        options,
    )
    counted, index = arrays["mask"] > 0, arrays["index"]
    rows = [None if one is None else mx.where(counted, one[index], 0.0) for one in found]
    return TokenStats(*cast("list[mx.array]", rows))


def fused_head(head: OutputHead, model: nn.Module, temperature: float = 1.0) -> FusedHead | None:
    """The head in the form that is run in tiles; None when the model could not be taken apart, or
    when dropout on the head's adapters would make its second run differ from the first."""
    if not head.split:
        return None
    module = head.module(model)
    if drops(module):
        return None
    return FusedHead(
        _product(module, tied=head.head is None), tempered(head.transform, temperature)
    )


def _product(module: Any, tied: bool) -> HeadProduct:
    if type(module) in (nn.Linear, nn.Embedding) and "bias" not in module:
        return WeightProduct(module.weight, "weight" in module.trainable_parameters())
    size = next(part.weight.shape[0] for part in module.modules() if "weight" in part)
    return LayerProduct(module, tied, size)


def logit_stats(logits: mx.array, targets: mx.array, options: StatOptions = DEFAULT) -> TokenStats:
    """Statistics of targets (N,) under logits (N, V), computed in float32."""
    logits = logits.astype(mx.float32) / options.temperature
    log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    logps = mx.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0]
    fixed = log_probs if options.entropy_gradient else mx.stop_gradient(log_probs)
    entropy = -(mx.exp(fixed) * fixed).sum(axis=-1)
    correct = (mx.argmax(mx.stop_gradient(logits), axis=-1) == targets).astype(mx.float32)
    if not options.moments:
        return TokenStats(logps, entropy, correct)
    still = mx.stop_gradient(log_probs)
    log_sum_sq = mx.log(mx.square(mx.exp(still)).sum(axis=-1))
    return TokenStats(logps, entropy, correct, mx.stop_gradient(logits).mean(axis=-1), log_sum_sq)
