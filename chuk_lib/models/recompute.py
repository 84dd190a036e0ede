"""Gradient checkpointing: keep a block's inputs only, and run the block again when its gradient is
needed.

Per model, not per class: each block becomes an instance of a subclass made for its type, so other
models of the same family are left alone and parameter names stay as they are. Dropout in adapters
draws the same elements both times."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from chuk_lib.models.randomness import Dropout, fresh_key

_PLAIN = "_chuk_plain_type"


def checkpoint_layers(model: nn.Module, blocks: int | None = None) -> int:
    """Make the first `blocks` blocks of `model` (all by default) recompute their activations in
    training; returns how many do."""
    chosen = model.layers if blocks is None else model.layers[:blocks]
    for block in chosen:
        if not is_checkpointed(block):
            plain: Any = type(block)
            block.__class__ = _recomputing(plain)
    return len(chosen)


def uncheckpoint_layers(model: nn.Module) -> None:
    """Undo `checkpoint_layers`."""
    for block in model.layers:
        if is_checkpointed(block):
            block.__class__ = getattr(type(block), _PLAIN)


def is_checkpointed(block: nn.Module) -> bool:
    """Whether a block recomputes its activations."""
    return hasattr(type(block), _PLAIN)


@cache
def _recomputing(plain: Any) -> Any:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            return plain.__call__(self, *args, **kwargs)
        return _run(self, plain.__call__, args, kwargs)

    names = {
        "__call__": call,
        _PLAIN: plain,
        "__doc__": plain.__doc__,
        "__module__": plain.__module__,
    }
    return type(plain.__name__, (plain,), names)


def _run(
    block: nn.Module, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """`function(block, *args)` as a checkpoint over the block's trainable parameters and its array
    arguments."""
    dropouts = [
        module for module in block.modules() if isinstance(module, Dropout) and module.active
    ]
    keys = mx.random.split(fresh_key(), len(dropouts)) if dropouts else ()

    def inner(parameters: Any, arrays: list[mx.array]) -> Any:
        before = block.trainable_parameters()
        block.update(parameters)
        for index, dropout in enumerate(dropouts):
            dropout.draws.key = keys[index]
        full_args, full_kwargs = _put_arrays((args, kwargs), arrays)
        try:
            return function(block, *full_args, **full_kwargs)
        finally:
            block.update(before)
            for dropout in dropouts:
                dropout.draws.key = None

    return mx.checkpoint(inner)(block.trainable_parameters(), _take_arrays((args, kwargs)))


def _take_arrays(tree: Any) -> list[mx.array]:
    """The floating-point arrays of nested arguments in order: what gradients flow through."""
    return [
        leaf
        for _, leaf in tree_flatten(tree, is_leaf=nn.Module.is_module)
        if _is_differentiable(leaf)
    ]


def _put_arrays(tree: Any, arrays: list[mx.array]) -> Any:
    """The same arguments with their arrays replaced, in the same order."""
    following = iter(arrays)
    return tree_map(
        lambda leaf: next(following) if _is_differentiable(leaf) else leaf,
        tree,
        is_leaf=nn.Module.is_module,
    )


def _is_differentiable(leaf: Any) -> bool:
    return isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)
