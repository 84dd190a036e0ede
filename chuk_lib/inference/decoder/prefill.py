"""Prompts through a model, once each, before their rows decode. All but the last token of a prompt
is prefilled: the last is the first that the rows decode, so no logits are computed here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.runtime import prefill_tokens

LEAST_COLUMNS = 32

Memory = list[tuple[mx.array, mx.array]]
"""Keys and values (1, K, P, D) of a prompt, layer by layer; P may be 0."""


def prefill_plain(model: nn.Module, prompts: Sequence[Sequence[int]]) -> list[Memory]:
    """Prompts side by side, padded on the right: what follows a token does not change its keys and
    values. Prompts of like length should stand together."""
    memories: list[Memory] = []
    begin, most = 0, prefill_tokens()
    while begin < len(prompts):
        longest, end = len(prompts[begin]), begin + 1
        # As many neighbours as fit into `most` slots when all are padded to the longest of them.
        while end < len(prompts) and max(longest, len(prompts[end])) * (end + 1 - begin) <= most:
            longest, end = max(longest, len(prompts[end])), end + 1
        memories += _prefill_together(model, prompts[begin:end], longest - 1)
        begin = end
    return memories


def _prefill_together(
    model: nn.Module, prompts: Sequence[Sequence[int]], columns: int
) -> list[Memory]:
    ids = np.zeros((len(prompts), max(1, columns)), np.int32)
    for row, prompt in enumerate(prompts):
        # Padding on the right, with token 0: under a causal mask no real token sees it, and its
        # keys are cut off below.
        ids[row, : len(prompt) - 1] = prompt[:-1]
    caches = layer_caches(model)
    _run_prompt(model, mx.array(ids), caches)
    return [
        [
            (
                c.keys[row : row + 1, :, : len(prompt) - 1],
                c.values[row : row + 1, :, : len(prompt) - 1],
            )
            for c in caches
        ]
        for row, prompt in enumerate(prompts)
    ]


def _run_prompt(model: nn.Module, ids: mx.array, caches: list[Any]) -> None:
    """Run (B, T) tokens, some columns at a time; the logits are never computed."""
    columns = max(LEAST_COLUMNS, prefill_tokens() // ids.shape[0])
    for start in range(0, ids.shape[1], columns):
        model(ids[:, start : start + columns], cache=caches)
        # Evaluated chunk by chunk: the activations of a long prompt never exist whole.
        mx.eval([cache.state for cache in caches])


def layer_caches(model: nn.Module) -> list[Any]:
    """The caches that the model makes for its layers, empty."""
    from mlx_lm.models.cache import make_prompt_cache

    return list(make_prompt_cache(model))


def prefill_alone(model: nn.Module, prompt: Sequence[int]) -> list[Any]:
    """One prompt through the model's own caches, which are returned."""
    caches = layer_caches(model)
    if len(prompt) > 1:
        _run_prompt(model, mx.array([list(prompt[:-1])]), caches)
    return caches


def run_tokens(model: nn.Module, ids: Sequence[int], caches: list[Any]) -> list[Any]:
    """More tokens of one row over its caches, which are returned."""
    if len(ids):
        _run_prompt(model, mx.array([list(ids)]), caches)
    return caches


def extend_plain(model: nn.Module, memory: Memory, ids: Sequence[int]) -> Memory:
    """A memory with more tokens, run through the model after those it holds."""
    if not len(ids):
        return memory
    caches = layer_caches(model)
    for cache, (keys, values) in zip(caches, memory, strict=True):
        if keys.shape[2]:
            cache.keys, cache.values, cache.offset = keys, values, keys.shape[2]
    run_tokens(model, ids, caches)
    held = [(c.keys[:, :, : c.offset], c.values[:, :, : c.offset]) for c in caches]
    mx.eval(held)
    return held
