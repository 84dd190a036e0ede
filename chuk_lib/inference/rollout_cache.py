"""What the rows of a batch remember: keys and values in buffers made once, or mlx-lm's own caches.

A store prefills prompts, once each, gives their memory to as many rows as want it (`admit`), takes in another store's
rows (`join`) and lets rows go (`keep`). Which one fits depends on the caches that a model makes for its layers:

    PlainStore    all layers keep all keys: own buffers; no mask while all rows are as long as each other
    MergedStore   every layer's cache knows how to hold rows of several lengths (rotating, recurrent, lists of those)
    LockstepStore anything else: rows of one prompt at a time, in step (quantized, chunked), or one row at a time

All but the last token of a prompt is prefilled: the last is the first that the rows decode.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

PREFILL_TOKENS = 8192
"""Tokens of prompts that run at once, over all rows."""
LEAST_COLUMNS = 32
COLUMNS = 256
"""Buffers have a multiple of this many columns; on a GPU the fast attention for long caches needs it."""

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


_LOCKSTEP = ("KVCache", "RotatingKVCache", "ArraysCache", "QuantizedKVCache", "ChunkedKVCache")
_PROBES = ((1, 2, 3), (4, 5))


def new_store(model: nn.Module, max_tokens: int, kv_bits: int | None = None, together: bool = True) -> Store:
    """The store that suits the model. `kv_bits` quantizes plain caches to so many bits. `together`: rows of several
    prompts will run at once."""
    layers = _layer_caches(model)
    plain = all(_kind(layer) == "KVCache" for layer in layers)
    if kv_bits is None and (plain or all(_merges(layer) for layer in layers)):
        store: Store = PlainStore(model, max_tokens) if plain else MergedStore(model)
        if not together or _holds_unlike_rows(model, store):
            return store
    mix: Mix = "group" if all(_kind(layer) in _LOCKSTEP for layer in layers) else "row"
    return LockstepStore(model, mix, kv_bits if plain else None)


def _holds_unlike_rows(model: nn.Module, store: Store) -> bool:
    """Whether two rows of different length get the logits they get alone. Some models cannot take a mask for each
    row; MLX then raises what does not fit."""
    try:
        store.admit(store.prefill(_PROBES), [1, 1])
        got = model(mx.array([[probe[-1]] for probe in _PROBES]), cache=store.caches)[:, -1]
        want = mx.concatenate([model(mx.array([probe]))[:, -1] for probe in _PROBES])
        got, want = got.astype(mx.float32), want.astype(mx.float32)
        loose = 5e-2 * mx.maximum(1.0, mx.abs(want).max())
        return bool((mx.abs(got - want).max() <= loose).item())
    except (ValueError, RuntimeError, TypeError, NotImplementedError):
        return False


def keeps_all(model: nn.Module) -> bool:
    """Whether all layers keep the keys and values of all tokens."""
    return all(_kind(layer) == "KVCache" for layer in _layer_caches(model))


Memory = list[tuple[mx.array, mx.array]]
"""Keys and values (1, K, P, D) of a prompt, layer by layer; P may be 0."""


def prefill_plain(model: nn.Module, prompts: Sequence[Sequence[int]]) -> list[Memory]:
    """Prompts side by side, padded on the right: what follows a token does not change its keys and values. Prompts
    of like length should stand together."""
    memories: list[Memory] = []
    begin = 0
    while begin < len(prompts):
        longest, end = len(prompts[begin]), begin + 1
        while end < len(prompts) and max(longest, len(prompts[end])) * (end + 1 - begin) <= PREFILL_TOKENS:
            longest, end = max(longest, len(prompts[end])), end + 1
        memories += _prefill_together(model, prompts[begin:end], longest - 1)
        begin = end
    return memories


def _prefill_together(model: nn.Module, prompts: Sequence[Sequence[int]], columns: int) -> list[Memory]:
    ids = np.zeros((len(prompts), max(1, columns)), np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt) - 1] = prompt[:-1]
    caches = _layer_caches(model)
    _run_prompt(model, mx.array(ids), caches)
    return [
        [(c.keys[row : row + 1, :, : len(prompt) - 1], c.values[row : row + 1, :, : len(prompt) - 1]) for c in caches]
        for row, prompt in enumerate(prompts)
    ]


def _run_prompt(model: nn.Module, ids: mx.array, caches: list[Any]) -> None:
    """Run (B, T) tokens, some columns at a time; the logits are never computed."""
    columns = max(LEAST_COLUMNS, PREFILL_TOKENS // ids.shape[0])
    for start in range(0, ids.shape[1], columns):
        model(ids[:, start : start + columns], cache=caches)
        mx.eval([cache.state for cache in caches])


def _layer_caches(model: nn.Module) -> list[Any]:
    from mlx_lm.models.cache import make_prompt_cache

    return list(make_prompt_cache(model))


def _kind(layer: Any) -> str:
    return type(layer).__name__


def _merges(layer: Any) -> bool:
    inner = getattr(layer, "caches", None)  # a list of caches
    return all(map(_merges, inner)) if inner is not None else callable(getattr(layer, "merge", None))


class FixedCache:
    """Keys and values of one layer (B, K, C, D) in a buffer of C columns, written in place. All layers share their
    store's place to write."""

    def __init__(self, store: PlainStore) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self._store = store

    @property
    def offset(self) -> int | mx.array:
        """Position of the next token: one number, or one a row (B,)."""
        return self._store.offset

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None]:
        """The buffers."""
        return self.keys, self.values

    def written(self, end: int) -> tuple[mx.array, mx.array]:
        """Keys and values (B, K, end, D) of the first columns."""
        if self.keys is None or self.values is None:
            raise ValueError("nothing is written yet")
        return self.keys[:, :, :end], self.values[:, :, :end]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write one column and return all that are written."""
        begin, end = self._store.column, self._store.column + keys.shape[2]
        if self.keys is None or self.values is None:
            self.keys = mx.zeros((*keys.shape[:2], self._store.capacity, keys.shape[3]), keys.dtype)
            self.values = mx.zeros((*values.shape[:2], self._store.capacity, values.shape[3]), values.dtype)
        self.keys[..., begin:end, :] = keys
        self.values[..., begin:end, :] = values
        return self.keys[..., :end, :], self.values[..., :end, :]

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """None while all rows have as many columns and see them all."""
        return self._store.mask(length, return_array, window_size)


class PlainStore:
    """Buffers for models whose layers all keep every key. Rows end in the same column: what is shorter begins later
    (`pads`). Where all begin in column 0 attention needs no mask."""

    mix: Mix = "any"

    def __init__(self, model: nn.Module, max_tokens: int) -> None:
        self.model, self._max_tokens = model, max_tokens
        self.pads = np.zeros(0, np.int64)
        self.column = 0
        self.capacity = 0
        self.caches = [FixedCache(self) for _ in _layer_caches(model)]

    @property
    def equal(self) -> bool:
        """Whether all rows are as long as each other."""
        return not self.pads.any()

    @property
    def offset(self) -> int | mx.array:
        """Position of the next token of all rows, or of each."""
        return self.column if self.equal else mx.array(self.column - self.pads)

    def twin(self) -> PlainStore:
        """An empty store of this kind."""
        return PlainStore(self.model, self._max_tokens)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Memory]:
        """See `prefill_plain`."""
        return prefill_plain(self.model, prompts)

    def admit(self, memories: Sequence[Memory], rows: Sequence[int]) -> None:
        """Copy prompts to their rows."""
        parts = [(memory, count, memory[0][0].shape[2]) for memory, count in zip(memories, rows, strict=True)]
        self.column = max(length for _, _, length in parts)
        self.pads = np.concatenate([np.full(count, self.column - length) for _, count, length in parts])
        self._make_room()
        if self.column == 0:
            self.caches = [FixedCache(self) for _ in self.caches]
            return
        for index, cache in enumerate(self.caches):
            cache.keys = self._stack([(memory[index][0], count) for memory, count, _ in parts])
            cache.values = self._stack([(memory[index][1], count) for memory, count, _ in parts])
        mx.eval([cache.state for cache in self.caches])

    def advance(self) -> None:
        """One column was written by all layers."""
        self.column += 1
        if self.column == self.capacity:
            self._place(np.arange(len(self.pads)))

    def join(self, other: PlainStore) -> None:
        """Add rows, ending in the same column."""
        ours, theirs = self.column, other.column
        self.column = max(ours, theirs)
        self.pads = np.concatenate([self.pads + self.column - ours, other.pads + self.column - theirs])
        self._make_room()
        for cache, arrived in zip(self.caches, other.caches, strict=True):
            (keys, values), (other_keys, other_values) = cache.written(ours), arrived.written(theirs)
            cache.keys, cache.values = (
                self._stack([(keys, 1), (other_keys, 1)]),
                self._stack([(values, 1), (other_values, 1)]),
            )
        self._place(np.arange(len(self.pads)))

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only."""
        self._place(rows)

    def mask(self, length: int, return_array: bool, window_size: int | None) -> Any:
        """Bool (B, 1, T, columns), or None when every row sees every column."""
        from mlx_lm.models.base import create_causal_mask

        if self.equal and length == 1 and window_size is None and not return_array:
            return None
        pads = None if self.equal else mx.array(self.pads)
        return create_causal_mask(length, offset=self.column, window_size=window_size, left_padding=pads)

    def _place(self, rows: np.ndarray) -> None:
        """Rows in new buffers, without the columns that none of them uses."""
        first, end = int(self.pads[rows].min(initial=self.column)), self.column
        self.pads, self.column = self.pads[rows] - first, end - first
        self._make_room()
        index = mx.array(rows)
        for cache in self.caches:
            keys, values = cache.written(end)
            cache.keys = self._stack([(keys[:, :, first:][index], 1)])
            cache.values = self._stack([(values[:, :, first:][index], 1)])
        mx.eval([cache.state for cache in self.caches])

    def _make_room(self) -> None:
        """Columns for the longest row and what it may still get."""
        self.capacity = -(-(self.column + self._max_tokens + 1) // COLUMNS) * COLUMNS

    def _stack(self, parts: Sequence[tuple[mx.array, int]]) -> mx.array:
        """(B, K, C, D): each part (b, K, P, D) as often as wanted, ending in the current column."""
        padded = []
        for part, count in parts:
            edges = (self.column - part.shape[2], self.capacity - self.column)
            wide = mx.pad(part, [(0, 0), (0, 0), edges, (0, 0)])
            padded.append(mx.repeat(wide, count, axis=0) if count > 1 else wide)
        return mx.contiguous(mx.concatenate(padded) if len(padded) > 1 else padded[0])


class MergedStore:
    """mlx-lm's batch caches. A prompt runs alone and unpadded through the model's own cache, which is then copied to
    its rows."""

    mix: Mix = "any"

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.caches: list[Any] = []

    def twin(self) -> MergedStore:
        """An empty store of this kind."""
        return MergedStore(self._model)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        """One list of caches a prompt."""
        return [_prefill_alone(self._model, prompt) for prompt in prompts]

    def admit(self, memories: Sequence[Any], rows: Sequence[int]) -> None:
        """Merge as many copies of each."""
        spread = [memory for memory, count in zip(memories, rows, strict=True) for _ in range(count)]
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


class LockstepStore:
    """The model's own caches with as many rows as one prompt has: all at the same position for as long as they live."""

    def __init__(self, model: nn.Module, mix: Mix, kv_bits: int | None) -> None:
        self._model, self._kv_bits = model, kv_bits
        self.mix: Mix = mix
        self.caches: list[Any] = []

    def twin(self) -> LockstepStore:
        """An empty store of this kind."""
        return LockstepStore(self._model, self.mix, self._kv_bits)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        """One list of caches a prompt, quantized when asked for."""
        memories = [_prefill_alone(self._model, prompt) for prompt in prompts]
        if self._kv_bits is None:
            return memories
        return [[layer.to_quantized(bits=self._kv_bits) for layer in memory] for memory in memories]

    def admit(self, memories: Sequence[Any], rows: Sequence[int]) -> None:
        """A copy of the prompt's caches with each array repeated."""
        (memory,), (count,) = memories, rows
        self.caches = [_mapped(layer, lambda array: mx.repeat(array, count, axis=0)) for layer in memory]

    def join(self, other: LockstepStore) -> None:
        """Rows never join."""
        raise NotImplementedError("rows of this cache cannot join others")

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only."""
        index = mx.array(rows)
        self.caches = [_mapped(layer, lambda array: array[index]) for layer in self.caches]

    def advance(self) -> None:
        """The caches count for themselves."""


def _mapped(layer: Any, change: Any) -> Any:
    """A copy of a cache with every array of its state changed."""
    if layer.empty():
        return copy.deepcopy(layer)
    state = tree_map(lambda leaf: change(leaf) if isinstance(leaf, mx.array) and leaf.ndim else leaf, layer.state)
    return type(layer).from_state(state)


def _prefill_alone(model: nn.Module, prompt: Sequence[int]) -> list[Any]:
    caches = _layer_caches(model)
    if len(prompt) > 1:
        _run_prompt(model, mx.array([list(prompt[:-1])]), caches)
    return caches
