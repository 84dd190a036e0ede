"""A batch of rows that sample together: admit rows, step, let rows go.

`NumpyEngine` runs Llama-like float32 models on a CPU; `ModelEngine` calls any model of mlx-lm. Both give a row the
tokens of its own random numbers, whatever rows are beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.draws import Arrival, Draws, choose, choose_lazily, compiled_choice, seen_tokens
from chuk_lib.inference.decoder.forwards import Decode, Forward, new_forward
from chuk_lib.inference.decoder.llama import LlamaParts, read_llama
from chuk_lib.inference.decoder.prefill import Memory, prefill_plain
from chuk_lib.inference.decoder.stores import Mix, Store, keeps_all, new_store
from chuk_lib.runtime import on_cpu

if TYPE_CHECKING:
    from chuk_lib.inference.decoder.numpy_llama import NumpyLlama, Prefix

_PROBE = (1, 2)
_TIDY_STEPS = 256
"""Steps after which MLX gives back the buffers that it keeps for reuse."""


class Engine(Protocol):
    """A batch of rows. `drop_share`: the share of finished rows from which dropping them pays for the copy."""

    mix: Mix
    drop_share: float

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        """The memory of each prompt, for `admit`."""

    def admit(self, arrivals: Sequence[Arrival], memories: Sequence[Any]) -> None:
        """Add the rows of `arrivals` at the end, each after its prompt's memory."""

    def step(self, last: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The next token (B,) int32 of each row and its log-prob (B,) float32. `last`: no step follows."""

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only, in this order; `rows` ascends."""


def new_engine(
    model: nn.Module,
    config: SamplingConfig,
    positions: int,
    *,
    together: bool = True,
    kv_bits: int | None = None,
    decode: Decode = "auto",
) -> Engine:
    """The fastest engine that is right for `model` here. `positions`: the longest prompt with all that may be
    written after it. `together`: there is more than one row. `decode` other than `auto` names one of `ModelEngine`'s
    ways."""
    if decode == "auto" and kv_bits is None and on_cpu() and keeps_all(model):
        parts = read_llama(model)
        rows = _numpy_llama(model, parts, max(positions, len(_PROBE)), max(config.max_tokens, len(_PROBE)))
        if rows is not None:
            return NumpyEngine(model, rows, config)
    return ModelEngine(model, config, new_store(model, config.max_tokens, kv_bits, together), decode)


def _all_float32(model: nn.Module) -> bool:
    from mlx.utils import tree_flatten

    return all(leaf.dtype == mx.float32 for _, leaf in tree_flatten(model.parameters()))


def _numpy_llama(model: nn.Module, parts: LlamaParts | None, positions: int, columns: int) -> NumpyLlama | None:
    """An empty batch, when the parts computed one after the other give the model's own logits."""
    from chuk_lib.inference.decoder.numpy_llama import NumpyLlama

    if parts is None or parts.blocks[0].head_dim % 2 or not _all_float32(model):
        return None
    rows = NumpyLlama(parts, positions, columns)
    empty = np.zeros((parts.blocks[0].kv_heads, 0, parts.blocks[0].head_dim), np.float32)
    rows.admit([(empty, empty)] * len(parts.blocks), 1)
    got = np.concatenate([rows.step(np.array([token])) for token in _PROBE])
    rows.keep(np.zeros(0, np.int64))
    want = np.array(model(mx.array([_PROBE])))[0]
    loose = 1e-3 * max(1.0, float(np.abs(want).max()))
    return rows if got.shape == want.shape and np.allclose(got, want, atol=loose) else None


class NumpyEngine:
    """Decoding without MLX: no step waits for a graph, and a group reads its prompt's keys once."""

    mix: Mix = "any"
    drop_share = 0.1

    def __init__(self, model: nn.Module, rows: NumpyLlama, config: SamplingConfig) -> None:
        self._model, self._rows, self._config = model, rows, config
        self._draws = Draws(config)
        self._tokens = np.zeros(0, np.int32)
        self._seen = None if config.repetition_penalty == 1 else np.zeros((0, rows.vocabulary), bool)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
        """Through the model itself; the keys and values stay where MLX put them."""
        memories = prefill_plain(self._model, prompts)
        return [_views(memory, len(prompt) - 1) for memory, prompt in zip(memories, prompts, strict=True)]

    def admit(self, arrivals: Sequence[Arrival], memories: Sequence[Prefix]) -> None:
        """Add rows; nothing is copied."""
        for arrival, memory in zip(arrivals, memories, strict=True):
            self._rows.admit(memory, len(arrival.members))
            self._tokens = np.append(self._tokens, np.full(len(arrival.members), arrival.ids[-1], np.int32))
        self._draws.admit(arrivals)
        if self._seen is not None:
            self._seen = np.concatenate([self._seen, seen_tokens(arrivals, self._rows.vocabulary)])

    def step(self, last: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """One token for each row, at once."""
        logits = self._rows.step(self._tokens)
        self._tokens, logps = choose(logits, self._config, self._draws.next(), self._seen)
        if self._seen is not None:
            self._seen[np.arange(len(logits)), self._tokens] = True
        return self._tokens, logps

    def keep(self, rows: np.ndarray) -> None:
        """Move these rows to the front."""
        self._rows.keep(rows)
        self._draws.keep(rows)
        self._tokens = self._tokens[rows]
        self._seen = None if self._seen is None else self._seen[rows]


def _views(memory: Memory, columns: int) -> Prefix:
    """A prompt's memory as NumPy sees it, (K, P, D)."""
    from chuk_lib.runtime.cpu_math import view

    return [(view(keys)[0, :, :columns], view(values)[0, :, :columns]) for keys, values in memory]


class ModelEngine:
    """Decoding by calling the model.

    On a GPU a step is sent off before the tokens of the one before are read: the processor that builds the graph and
    the one that runs it work at the same time. On a CPU tokens are chosen in NumPy, whose exp is 20 times faster.
    """

    def __init__(self, model: nn.Module, config: SamplingConfig, store: Store, decode: Decode = "auto") -> None:
        self._model, self._config = model, config
        self._store, self._decode = store, decode
        self._forward: Forward | None = None
        self._draws = Draws(config)
        self._lazy = not on_cpu()
        self._choose = compiled_choice(config)
        self._tokens: Any = None  # (B,) chosen and not yet given to the model
        self._logps: Any = None
        self._read = True  # whether `_tokens` have been returned
        self._seen: Any = None  # (B, V) bool, with a repetition penalty
        self._steps = 0
        self.mix: Mix = self._store.mix
        self.drop_share = 0.25

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        """Through the model, each prompt once."""
        return self._store.prefill(prompts)

    def admit(self, arrivals: Sequence[Arrival], memories: Sequence[Any]) -> None:
        """The rows get their first token in a batch of their own, then join."""
        if self._tokens is not None and self._read:
            self._advance(self._draws.next())
        arrived = self if self._tokens is None else ModelEngine(self._model, self._config, self._store.twin(), "plain")
        counts = [len(arrival.members) for arrival in arrivals]
        first = 0 if self._tokens is None else len(self._tokens)
        self._draws.admit(arrivals)
        arrived._store.admit(memories, counts)
        arrived._tokens = mx.array(np.repeat([arrival.ids[-1] for arrival in arrivals], counts).astype(np.int32))
        if self._config.repetition_penalty != 1:
            vocabulary = self._model(mx.array([[0]])).shape[-1]
            arrived._seen = self._own(seen_tokens(arrivals, vocabulary))
        arrived._advance(self._draws.next(first))
        if arrived is not self:
            self._join(arrived)

    def step(self, last: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The tokens sent off before, while the next are computed."""
        if self._read:
            self._advance(self._draws.next())
        tokens, logps = self._tokens, self._logps
        self._read = True
        if self._lazy and not last:
            self._advance(self._draws.next())
        return np.array(tokens, np.int32), np.array(logps, np.float32)

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only."""
        self._draws.keep(rows)
        if not len(rows):
            self._tokens = self._logps = self._seen = None
            self._read = True
            return
        self._store.keep(rows)
        index: Any = mx.array(rows) if self._lazy else rows
        self._tokens, self._logps = self._tokens[index], self._logps[index]
        self._seen = None if self._seen is None else self._seen[index]

    def _advance(self, numbers: np.ndarray) -> None:
        if self._forward is None:
            self._forward = new_forward(self._model, self._store, self._decode)
        tokens = self._tokens if isinstance(self._tokens, mx.array) else mx.array(self._tokens)
        logits = self._forward(tokens, len(numbers))
        if self._lazy:
            chances = mx.array(numbers.astype(np.float32))
            if self._seen is None:
                tokens, self._logps = self._choose(logits, chances)
            else:
                tokens, self._logps = choose_lazily(logits, self._config, chances, self._seen)
                self._seen = mx.put_along_axis(self._seen, tokens[:, None], mx.array(True), axis=-1)
            self._tokens = tokens
            mx.async_eval(tokens, self._logps)
        else:
            rows = np.array(logits.astype(mx.float32))
            self._tokens, self._logps = choose(rows, self._config, numbers, self._seen)
            if self._seen is not None:
                self._seen[np.arange(len(rows)), self._tokens] = True
        self._read = False
        self._steps += 1
        if self._steps % _TIDY_STEPS == 0:
            mx.clear_cache()

    def _join(self, arrived: ModelEngine) -> None:
        self._store.join(arrived._store)
        both: Any = mx.concatenate if self._lazy else np.concatenate
        self._tokens = both([self._tokens, arrived._tokens])
        self._logps = both([self._logps, arrived._logps])
        self._seen = None if self._seen is None else both([self._seen, arrived._seen])

    def _own(self, array: np.ndarray) -> Any:
        return mx.array(array) if self._lazy else array
