"""Sums over the processes that train together. In a world of one all of these give back what they
got."""

from __future__ import annotations

import zlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from chuk_lib import runtime

_MOST = 1 << 26
"""Numbers in one sum, 256 MB: gradients of a whole model go in several."""


def check_alike(model: nn.Module) -> None:
    """Raise TrainingError on all ranks unless all have trained the same weights, bit for bit as far
    as a sum of each array tells."""
    world = runtime.this_world()
    if world.size == 1:
        return
    sums = [leaf.astype(mx.float32).sum() for _, leaf in tree_flatten(model.trainable_parameters())]
    checksum = zlib.crc32(np.array(mx.stack(sums)).tobytes())
    world.check_same({"checksum of its weights": checksum}, "weights")


def summed(sums: dict[str, float]) -> dict[str, float]:
    """Sums by name over all ranks, in float32. Every rank has the same names."""
    world = runtime.this_world()
    if world.size == 1:
        return sums
    names = sorted(sums)
    found = np.array(world.sum(mx.array([sums[name] for name in names], mx.float32), "metrics"))
    return {name: float(value) for name, value in zip(names, found, strict=True)}


def summed_update(
    gradients: Any, sums: dict[str, float], idle: bool
) -> tuple[Any, dict[str, float]]:
    """Gradients (float32) and metric sums over all ranks; nothing of an idle one counts.

    A gradient that is not finite on one rank is not finite in the sum: all ranks see it, and none
    goes on alone. Everything goes in one flat buffer, metrics in front, as far as it fits one sum:
    few large sums are faster than one a leaf, and their order is that of the names on all ranks."""
    world = runtime.this_world()
    if world.size == 1:
        return gradients, sums
    if idle:
        gradients = tree_map(mx.zeros_like, gradients)
        sums = dict.fromkeys(sums, 0.0)
    names, leaves = sorted(sums), tree_flatten(gradients)
    waiting = [mx.array([sums[name] for name in names], mx.float32)]
    waiting += [leaf.astype(mx.float32).reshape(-1) for _, leaf in leaves]
    found: list[mx.array] = []
    while waiting:
        size = count = 0
        while count < len(waiting) and (not count or size + waiting[count].size <= _MOST):
            size, count = size + waiting[count].size, count + 1
        part, waiting = waiting[:count], waiting[count:]
        ends = np.cumsum([leaf.size for leaf in part])[:-1].tolist()
        total = world.sum(mx.concatenate(part), "gradients")
        del part
        found += mx.split(total, ends) if ends else [total]
    values = np.array(found[0])
    summed_leaves = [
        (name, flat.reshape(leaf.shape))
        for (name, leaf), flat in zip(leaves, found[1:], strict=True)
    ]
    return tree_unflatten(summed_leaves), {
        name: float(value) for name, value in zip(names, values, strict=True)
    }
