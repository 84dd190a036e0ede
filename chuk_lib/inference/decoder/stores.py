"""What the rows of a batch remember: keys and values in buffers made once, or mlx-lm's own caches.

A store prefills prompts, once each, gives their memory to as many rows as want it (`admit`), takes
in another store's rows (`join`) and lets rows go (`keep`). Which one fits depends on the caches
that a model makes for its layers:

    PlainStore    all layers keep all keys: own buffers; no mask while all rows are as long as each
                  other
    MergedStore   every layer's cache knows how to hold rows of several lengths (rotating,
                  recurrent, lists of those)
    LockstepStore anything else: rows of one prompt at a time, in step (quantized, chunked), or one
                  row at a time
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from chuk_lib.errors import ConfigError
from chuk_lib.inference.decoder.plain_store import PlainStore
from chuk_lib.inference.decoder.prefill import layer_caches, prefill_alone, run_tokens
from chuk_lib.runtime import has_values

Mix = Literal["any", "group", "row"]
"""Which rows may decode together: any, those of one prompt that begin together, or one alone."""


class Store(Protocol):
    """The memory of a batch of rows."""

    caches: list[Any]
    mix: Mix

    def twin(self) -> Store:
        """An empty store of this kind."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        """The memory of each prompt but its last token."""

    def admit(self, memories: Sequence[Any], rows: Sequence[int]) -> None:
        """Add `rows[i]` rows that continue `memories[i]`."""

    def join(self, other: Any) -> None:
        """Add the rows of another store of this kind."""

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only."""

    def advance(self) -> None:
        """The model has run one token of each row over the caches."""

    def memory(self, row: int, spare: int) -> Any | None:
        """A row's memory without its last `spare` tokens, for `admit`; None when its caches cannot
        forget."""

    def extend(self, memory: Any, ids: Sequence[int]) -> Any:
        """A memory with more tokens; the given one is used up."""

    def cut(self, memory: Any, spare: int) -> Any | None:
        """A memory without its last `spare` tokens; the given one is used up. None when its caches
        cannot forget."""


_LOCKSTEP = ("KVCache", "RotatingKVCache", "ArraysCache", "QuantizedKVCache", "ChunkedKVCache")
_PROBES = ((1, 2, 3), (4, 5))
KV_BITS = (8, 6, 4)
_KV_GROUP = 64
"""Neighbours that share a scale: MLX-LM's."""


def new_store(
    model: nn.Module, max_tokens: int, kv_bits: int | None = None, together: bool = True
) -> Store:
    """The store that suits the model. `kv_bits` quantizes plain caches to so many bits. `together`:
    rows of several prompts will run at once."""
    layers = layer_caches(model)
    plain = all(_kind(layer) == "KVCache" for layer in layers)
    if kv_bits is None and (plain or all(_merges(layer) for layer in layers)):
        store: Store = PlainStore(model, max_tokens) if plain else MergedStore(model)
        # The question costs two tiny forward passes and is asked only where it matters: with rows
        # of one length no mask is needed, and every model can do that.
        if not together or _holds_unlike_rows(model, store):
            return store
    mix: Mix = "group" if all(_kind(layer) in _LOCKSTEP for layer in layers) else "row"
    return LockstepStore(model, mix, kv_bits if plain else None)


def _holds_unlike_rows(model: nn.Module, store: Store) -> bool:
    """Whether two rows of different length get the logits they get alone. Some models cannot take a
    mask for each row; MLX then raises what does not fit."""
    try:
        store.admit(store.prefill(_PROBES), [1, 1])
        got = model(mx.array([[probe[-1]] for probe in _PROBES]), cache=store.caches)[:, -1]
        want = mx.concatenate([model(mx.array([probe]))[:, -1] for probe in _PROBES])
        got, want = got.astype(mx.float32), want.astype(mx.float32)
        # Loose: bfloat16 products of other shapes differ in their last bits. A model that ignores
        # the mask is off by whole logits.
        loose = 5e-2 * mx.maximum(1.0, mx.abs(want).max())
        return bool((mx.abs(got - want).max() <= loose).item()) or not has_values()
    except (ValueError, RuntimeError, TypeError, NotImplementedError):
        return False


def keeps_all(model: nn.Module) -> bool:
    """Whether all layers keep the keys and values of all tokens."""
    return all(_kind(layer) == "KVCache" for layer in layer_caches(model))


def quantized_share(model: nn.Module, bits: int) -> float:
    """What a cache of so many bits takes of the memory of one that is not quantized. Raises
    ConfigError where there is none for this model."""
    if bits not in KV_BITS:
        raise ConfigError(f"kv_bits is {bits}", f"it may be {', '.join(map(str, KV_BITS))}")
    caches = layer_caches(model)
    if not all(_kind(layer) == "KVCache" for layer in caches):
        raise ConfigError(
            "the caches of this model cannot be quantized: not all of its layers keep every key",
            "leave out kv_bits",
        )
    model(mx.array([[1]]), cache=caches)  # a graph that is never run
    keys = caches[0].keys
    if keys.shape[-1] % _KV_GROUP or caches[0].values.shape[-1] % _KV_GROUP:
        raise ConfigError(
            f"the model's heads have a width of {keys.shape[-1]}: caches are quantized in groups of"
            f" {_KV_GROUP}",
            "leave out kv_bits",
        )
    size = 8 * keys.dtype.size
    return float((bits + 2 * size / _KV_GROUP) / size)


def _kind(layer: Any) -> str:
    return type(layer).__name__


def _merges(layer: Any) -> bool:
    inner = getattr(layer, "caches", None)  # a list of caches
    return (
        all(map(_merges, inner)) if inner is not None else callable(getattr(layer, "merge", None))
    )


class MergedStore:
    """mlx-lm's batch caches. A prompt runs alone and unpadded through the model's own cache, which
    is then copied to its rows."""

    mix: Mix = "any"

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.caches: list[Any] = []

    def twin(self) -> MergedStore:
        """An empty store of this kind."""
        return MergedStore(self._model)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        """One list of caches a prompt."""
        return [prefill_alone(self._model, prompt) for prompt in prompts]

    def admit(self, memories: Sequence[Any], rows: Sequence[int]) -> None:
        """Merge as many copies of each."""
        spread = [
            memory for memory, count in zip(memories, rows, strict=True) for _ in range(count)
        ]
        # A cache's `merge` pads on the left, so that all rows end in one column.
        self.caches = [layers[0].merge(list(layers)) for layers in zip(*spread, strict=True)]

    def join(self, other: MergedStore) -> None:
        """Add rows."""
        for layer, arrived in zip(self.caches, other.caches, strict=True):
            layer.extend(arrived)

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only."""
        for layer in self.caches:
            layer.filter(rows.tolist())

    def advance(self) -> None:
        """The caches count for themselves."""

    def memory(self, row: int, spare: int) -> list[Any] | None:
        """The row out of each batch cache."""
        return _without_last([layer.extract(row) for layer in self.caches], spare)

    def extend(self, memory: list[Any], ids: Sequence[int]) -> list[Any]:
        """Through the model, over its own caches."""
        return run_tokens(self._model, ids, memory)

    def cut(self, memory: list[Any], spare: int) -> list[Any] | None:
        """Where the caches can forget."""
        return _without_last(memory, spare)


class LockstepStore:
    """The model's own caches with as many rows as one prompt has: all at the same position for as
    long as they live."""

    def __init__(self, model: nn.Module, mix: Mix, kv_bits: int | None) -> None:
        self._model, self._kv_bits = model, kv_bits
        self.mix: Mix = mix
        self.caches: list[Any] = []

    def twin(self) -> LockstepStore:
        """An empty store of this kind."""
        return LockstepStore(self._model, self.mix, self._kv_bits)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        """One list of caches a prompt, quantized when asked for."""
        memories = [prefill_alone(self._model, prompt) for prompt in prompts]
        if self._kv_bits is None:
            return memories
        # Quantized once, after the whole prompt: its prefill attends to keys in full precision.
        return [[layer.to_quantized(bits=self._kv_bits) for layer in memory] for memory in memories]

    def admit(self, memories: Sequence[Any], rows: Sequence[int]) -> None:
        """A copy of the prompt's caches with each array repeated."""
        (memory,), (count,) = memories, rows
        self.caches = [
            _mapped(layer, lambda array: mx.repeat(array, count, axis=0)) for layer in memory
        ]

    def join(self, other: LockstepStore) -> None:
        """Rows never join."""
        raise NotImplementedError("rows of this cache cannot join others")

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only."""
        index = mx.array(rows)
        self.caches = [_mapped(layer, lambda array: array[index]) for layer in self.caches]

    def advance(self) -> None:
        """The caches count for themselves."""

    def memory(self, row: int, spare: int) -> list[Any] | None:
        """A copy of each cache with one row."""
        return _without_last(
            [_mapped(layer, lambda array: array[row : row + 1]) for layer in self.caches], spare
        )

    def extend(self, memory: list[Any], ids: Sequence[int]) -> list[Any]:
        """Through the model, over its own caches."""
        return run_tokens(self._model, ids, memory)

    def cut(self, memory: list[Any], spare: int) -> list[Any] | None:
        """Where the caches can forget."""
        return _without_last(memory, spare)


def _without_last(caches: list[Any], spare: int) -> list[Any] | None:
    """The caches of one row without its last tokens. A recurrent state has no way back, a full
    window neither."""
    from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

    # A row may have been fed tokens that are not kept of it, such as those of a stop text.
    if spare and not can_trim_prompt_cache(caches):
        return None
    if spare:
        trim_prompt_cache(caches, spare)
    mx.eval([cache.state for cache in caches])
    return caches


def _mapped(layer: Any, change: Any) -> Any:
    """A copy of a cache with every array of its state changed."""
    if layer.empty():
        return copy.deepcopy(layer)
    # Scalars of a state (offsets) are shared by all rows; arrays have the rows in front.
    state = tree_map(
        lambda leaf: change(leaf) if isinstance(leaf, mx.array) and leaf.ndim else leaf, layer.state
    )
    return type(layer).from_state(state)
