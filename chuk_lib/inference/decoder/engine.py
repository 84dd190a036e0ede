"""A batch of rows that sample together: admit rows, step, let rows go.

`NumpyEngine` runs Llama-like float32 models on a CPU; `ModelEngine` calls any model of mlx-lm. Both
give a row the tokens of its own settings and random numbers, whatever rows are beside it. What is
left of them is arithmetic: the last bits of a product may depend on how many rows it has."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.errors import ConfigError
from chuk_lib.inference.decoder.draft import Drafting, DraftModel
from chuk_lib.inference.decoder.draws import (
    Arrival,
    Draws,
    choose_rows,
    choose_rows_lazily,
    seen_tokens,
)
from chuk_lib.inference.decoder.forwards import Decode, Forward, new_forward
from chuk_lib.inference.decoder.likeliest import Likeliest, joined
from chuk_lib.inference.decoder.lookahead import Lookahead
from chuk_lib.inference.decoder.numpy_llama import NumpyLlama, Prefix, Remembered
from chuk_lib.inference.decoder.prefill import Memory, extend_plain, prefill_plain
from chuk_lib.inference.decoder.stores import Mix, Store
from chuk_lib.runtime import has_values, on_cpu
from chuk_lib.runtime.cpu_math import view

_TIDY_STEPS = 256
"""Steps after which MLX gives back the buffers that it keeps for reuse."""


class Held(NamedTuple):
    """What a row remembers, outside of the batch: its memory, of its first `tokens` tokens."""

    memory: Any
    tokens: int


class Engine(Protocol):
    """A batch of rows. `drop_share`: the share of finished rows from which dropping them pays for
    the copy."""

    mix: Mix
    drop_share: float
    likeliest: Likeliest | None
    """Of the tokens that `step` has returned, when a row asked for it."""

    def under(self, adapter: int) -> Engine:
        """The same engine for prompts under an adapter: what `prefill`, `extend` and `grow` run
        them through. 0 is the model itself."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        """The memory of each prompt, for `admit`."""

    def admit(self, arrivals: Sequence[Arrival], memories: Sequence[Any]) -> None:
        """Add the rows of `arrivals` at the end, each after its prompt's memory."""

    def step(self, last: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The next token (B,) int32 of each row and its log-prob (B,) float32. `last`: no step
        follows."""

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only, in this order; `rows` ascends."""

    def hold(self, row: int, length: int) -> Held | None:
        """A row's memory of its first `length` tokens, which may be one less than it has, or one
        more when the caches cannot forget it; None when they cannot forget enough."""

    def extend(self, memory: Any, ids: Sequence[int]) -> Any:
        """A memory, which is used up, with more tokens."""

    def cut(self, memory: Any, spare: int) -> Any | None:
        """A memory, which is used up, without its last `spare` tokens; None when its caches cannot
        forget them."""

    def plain(self, memory: Any) -> Memory:
        """The keys and values of a memory of a model whose layers keep all of them. `extend` takes
        them too."""

    def grow(self, memory: Any, ids: Sequence[int]) -> Any:
        """The memory of the first tokens of a prompt, which is used up, with more of them."""


class NumpyEngine:
    """Decoding without MLX: no step waits for a graph, and a group reads its prompt's keys once."""

    mix: Mix = "any"
    drop_share = 0.1

    def __init__(
        self,
        model: nn.Module,
        rows: NumpyLlama,
        ahead: bool = False,
        draft: DraftModel | None = None,
        adapted: Sequence[nn.Module] = (),
    ) -> None:
        self._model, self._rows = model, rows
        self._models = [model, *adapted]
        self._looks = ahead  # whether one row alone may look ahead
        self._draft = draft
        self._drafting: Drafting | None = None
        self._look: Lookahead | None = None
        self._ahead: list[tuple[int, float]] = []  # tokens that were run before they are asked for
        self._draws = Draws()
        self._tokens = np.zeros(0, np.int32)
        self.likeliest: Likeliest | None = None
        self._seen: np.ndarray | None = None  # (B, V) bool, when a row has a repetition penalty

    def under(self, adapter: int) -> NumpyEngine:
        """One that runs prompts through the model under that adapter."""
        if self._models[adapter] is self._model:
            return self
        other = copy.copy(self)
        other._model = self._models[adapter]
        return other

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Remembered]:
        """Through the model itself; the keys and values stay where MLX put them."""
        memories = prefill_plain(self._model, prompts)
        return [
            Remembered(_views(memory, len(prompt) - 1))
            for memory, prompt in zip(memories, prompts, strict=True)
        ]

    def admit(self, arrivals: Sequence[Arrival], memories: Sequence[Remembered]) -> None:
        """Add rows; nothing is copied but what a row had written itself."""
        self._settle()
        if self._seen is not None or any(one.config.repetition_penalty != 1 for one in arrivals):
            self._seen = _with_rows(
                self._seen, len(self._tokens), seen_tokens(arrivals, self._rows.vocabulary)
            )
        self._rows.admit(
            memories, [one.limit for one in arrivals], [one.adapter for one in arrivals]
        )
        self._tokens = np.append(self._tokens, _last_tokens(arrivals))
        self._draws.admit(arrivals)
        if len(self._tokens) == 1 and self._draws.plain:
            (only,) = arrivals
            self._look = Lookahead(only.ids, run_cost) if self._looks else None
            if self._draft is not None:
                self._drafting = Drafting(self._draft, only.ids, only.limit)

    def step(self, last: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """One token for each row, at once."""
        if self._look is None and self._drafting is None:
            return self._step()
        if not self._ahead:
            self._run_ahead()
        token, logp = self._ahead.pop(0)
        self._tokens = np.array([token], np.int32)
        return self._tokens, np.array([logp], np.float32)

    def _run_ahead(self) -> None:
        """One step of the only row, with what it may write next."""
        most = self._draws.left - 1
        run: int | None = None
        guessed = [] if self._look is None else self._look.guess(most)
        if guessed or self._drafting is None:
            run = 1 + len(guessed)
        else:
            guessed = self._drafting.guess(most, self._draws.coming(most), self._drawn)
        if not guessed:
            tokens, logps = self._step()
        else:
            logits = self._rows.run(np.array([int(self._tokens[0]), *guessed]))
            numbers = self._draws.coming(len(logits))
            tokens, logps = choose_rows(logits, self._draws.groups, numbers)
            wrong = np.flatnonzero(tokens[:-1] != guessed)
            right = int(wrong[0]) + 1 if len(wrong) else len(tokens)
            self._rows.forget(len(tokens) - right)
            self._draws.skip(right)
            tokens, logps = tokens[:right], logps[:right]
        if self._look is not None:
            self._look.add(tokens.tolist(), run)
        if self._drafting is not None:
            self._drafting.add(tokens.tolist())
        self._ahead = list(zip(tokens.tolist(), logps.tolist(), strict=True))

    def _drawn(self, logits: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return choose_rows(logits, self._draws.groups, numbers)[0]

    def _settle(self) -> None:
        """Take back what was run and not asked for: rows join, or the row leaves."""
        if self._ahead:
            self._rows.forget(len(self._ahead))
            self._draws.skip(-len(self._ahead))
        self._ahead, self._look, self._drafting = [], None, None

    def _step(self) -> tuple[np.ndarray, np.ndarray]:
        logits = self._rows.step(self._tokens)
        self.likeliest = self._draws.likeliest(logits)
        self._tokens, logps = choose_rows(
            logits, self._draws.groups, self._draws.next(), self._seen
        )
        if self._seen is not None:
            self._seen[np.arange(len(logits)), self._tokens] = True
        self._draws.follow(self._tokens)
        return self._tokens, logps

    def keep(self, rows: np.ndarray) -> None:
        """Move these rows to the front."""
        if not len(rows):
            self._settle()
        self._rows.keep(rows)
        self._draws.keep(rows)
        self._tokens = self._tokens[rows]
        self._seen = None if self._seen is None or not self._draws.penalized else self._seen[rows]

    def hold(self, row: int, length: int) -> Held:
        """The prompt is shared still, the rest a copy."""
        return Held(self._rows.memory(row, length), length)

    def extend(self, memory: Remembered | Memory, ids: Sequence[int]) -> Remembered:
        """Through the model itself, over a copy of all that the row remembers."""
        if not isinstance(memory, Remembered):
            memory = Remembered(_views(memory, memory[0][0].shape[2]))
        if not len(ids):
            return memory
        begin, whole = memory.prefix[0][0].shape[1], self.plain(memory)
        length = whole[0][0].shape[2] + len(ids)
        held = extend_plain(self._model, whole, ids)
        return Remembered(
            memory.prefix, [(k[:, begin:], v[:, begin:]) for k, v in _views(held, length)]
        )

    def plain(self, memory: Remembered) -> Memory:
        """A copy in one piece."""
        tail = memory.tail or [(k[:, :0], v[:, :0]) for k, v in memory.prefix]
        return [
            (_joined(before[0], after[0]), _joined(before[1], after[1]))
            for before, after in zip(memory.prefix, tail, strict=True)
        ]

    def cut(self, memory: Remembered, spare: int) -> Remembered:
        """From the row's own tokens first."""
        begin = memory.prefix[0][0].shape[1]
        own = 0 if memory.tail is None else memory.tail[0][0].shape[1]
        length = begin + own - spare
        if length < begin:
            return Remembered([(k[:, :length], v[:, :length]) for k, v in memory.prefix])
        tail = memory.tail or []
        return Remembered(
            memory.prefix, [(k[:, : own - spare], v[:, : own - spare]) for k, v in tail]
        )

    def grow(self, memory: Remembered, ids: Sequence[int]) -> Remembered:
        """Through the model itself."""
        before = [(_as_mlx(keys), _as_mlx(values)) for keys, values in memory.prefix]
        length = memory.prefix[0][0].shape[1] + len(ids)
        return Remembered(_views(extend_plain(self._model, before, ids), length))


def _as_mlx(part: np.ndarray) -> mx.array:
    return mx.array(part[None])


def run_cost(tokens: int) -> float:
    """A step of several tokens of one row in steps of one: products with 2 to 4 and with 5 to 8
    columns cost the same (SmolLM2-135M, OpenBLAS: 2.1 at 4, 2.8 at 8, 3.1 at 12, 3.7 at 16, 5.6 at
    32)."""
    if tokens <= 8:
        return 1.0 if tokens == 1 else 2.1 if tokens <= 4 else 2.8
    return 2.0 + 0.11 * tokens


def _joined(before: np.ndarray, after: np.ndarray) -> mx.array:
    """Keys or values (K, P, D) and (K, S, D) as MLX's (1, K, P + S, D)."""
    return mx.array(np.concatenate([before, after], axis=1)[None])


def _last_tokens(arrivals: Sequence[Arrival]) -> np.ndarray:
    return np.array([arrival.ids[-1] for arrival in arrivals], np.int32)


def _with_rows(seen: np.ndarray | None, rows: int, arrived: np.ndarray) -> np.ndarray:
    """`seen` (B, V) with new rows. Rows from before the first with a penalty have none themselves:
    theirs are empty."""
    before = np.zeros((rows, arrived.shape[1]), bool) if seen is None else seen
    return np.concatenate([before, arrived])


def _views(memory: Memory, columns: int) -> Prefix:
    """A prompt's memory as NumPy sees it, (K, P, D)."""
    return [(view(keys)[0, :, :columns], view(values)[0, :, :columns]) for keys, values in memory]


class ModelEngine:
    """Decoding by calling the model.

    On a GPU a step is sent off before the tokens of the one before are read: the processor that
    builds the graph and the one that runs it work at the same time. On a CPU tokens are chosen in
    NumPy, whose exp is 20 times faster."""

    def __init__(self, model: nn.Module, store: Store, decode: Decode = "auto") -> None:
        self._model = model
        self._store, self._decode = store, decode
        self._forward: Forward | None = None
        self._draws = Draws()
        self._lazy = not on_cpu()
        self._tokens: Any = None  # (B,) chosen and not yet given to the model
        self._logps: Any = None
        self._tops: Likeliest | None = None  # beside `_tokens`
        self.likeliest: Likeliest | None = None
        self._read = True  # whether `_tokens` have been returned
        self._fed = np.zeros(0, np.int64)  # (B,) tokens in the store
        self._seen: Any = None  # (B, V) bool, when a row has a repetition penalty
        self._steps = 0
        self.mix: Mix = self._store.mix
        self.drop_share = 0.25

    def under(self, adapter: int) -> ModelEngine:
        """There is one model only."""
        if adapter:
            raise ConfigError("rows of several adapters do not decode together with this model")
        return self

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        """Through the model, each prompt once."""
        return self._store.prefill(prompts)

    def admit(self, arrivals: Sequence[Arrival], memories: Sequence[Any]) -> None:
        """The rows get their first token in a batch of their own, then join."""
        if self._tokens is not None and self._read:
            self._advance(self._draws)
        arrived = (
            self if self._tokens is None else ModelEngine(self._model, self._store.twin(), "plain")
        )
        arrived._begin(arrivals, memories)
        if arrived is not self:
            self._join(arrived)

    def step(self, last: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The tokens sent off before, while the next are computed."""
        if self._read:
            self._advance(self._draws)
        tokens, logps, tops = self._tokens, self._logps, self._tops
        self._read = True
        if self._lazy and not last:
            self._advance(self._draws)
        self.likeliest = None if tops is None else tops.read()
        return np.array(tokens, np.int32), np.array(logps, np.float32)

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only."""
        self._draws.keep(rows)
        self._fed = self._fed[rows]
        if not len(rows):
            self._tokens = self._logps = self._seen = self._tops = None
            self._read = True
            return
        self._store.keep(rows)
        index: Any = mx.array(rows.astype(np.int32)) if self._lazy else rows
        self._tokens, self._logps = self._tokens[index], self._logps[index]
        self._tops = None if self._tops is None else self._tops.keep(index)
        self._seen = None if self._seen is None or not self._draws.penalized else self._seen[index]

    def hold(self, row: int, length: int) -> Held | None:
        """Caches that cannot forget give what they have, when that is one token more: the last was
        sent off ahead."""
        spare = int(self._fed[row]) - length
        memory = self._store.memory(row, spare)
        if memory is None and spare == 1:
            memory, spare = self._store.memory(row, 0), 0
        return None if memory is None else Held(memory, int(self._fed[row]) - spare)

    def extend(self, memory: Any, ids: Sequence[int]) -> Any:
        """As the store does it."""
        return self._store.extend(memory, ids)

    def plain(self, memory: Any) -> Memory:
        """As the store has them."""
        return list(memory)

    def cut(self, memory: Any, spare: int) -> Any | None:
        """As the store does it."""
        return self._store.cut(memory, spare)

    def grow(self, memory: Any, ids: Sequence[int]) -> Any:
        """As any memory."""
        return self._store.extend(memory, ids)

    def _begin(self, arrivals: Sequence[Arrival], memories: Sequence[Any]) -> None:
        """The first rows of a batch, with their first token."""
        runs = [list(run) for _, run in groupby(memories, key=id)]
        self._store.admit([run[0] for run in runs], [len(run) for run in runs])
        self._draws.admit(arrivals)
        self._tokens = mx.array(_last_tokens(arrivals))
        self._fed = np.array([len(arrival.ids) - 1 for arrival in arrivals])
        if self._draws.penalized:
            self._seen = self._own(seen_tokens(arrivals, self._vocabulary()))
        self._advance(self._draws, first=True)

    def _advance(self, draws: Draws, first: bool = False) -> None:
        """One step: of `_tokens` to the next ones. `first`: those are of prompts."""
        if self._forward is None:
            self._forward = new_forward(self._model, self._store, self._decode)
        numbers = draws.next()
        tokens = self._tokens if isinstance(self._tokens, mx.array) else mx.array(self._tokens)
        logits = self._forward(tokens, len(numbers))
        if draws.guided and not first:
            # Guides need the tokens that the model runs on: sent off, it runs while they look.
            mx.async_eval(logits)
            draws.follow(np.array(tokens))
        if self._lazy:
            self._tops = draws.likeliest(logits)
            chances = mx.array(numbers.astype(np.float32))
            self._tokens, self._logps = choose_rows_lazily(
                logits, draws.groups, chances, self._seen
            )
            if self._seen is not None:
                self._seen = mx.put_along_axis(
                    self._seen, self._tokens[:, None], mx.array(True), axis=-1
                )
            mx.async_eval(self._tokens, self._logps, *(self._tops or ()))
            if not has_values():
                # What nobody chose may be no token at all: its row of the embedding would be read
                # outside of it, which ends the process.
                self._tokens, self._logps = mx.zeros_like(self._tokens), mx.zeros(len(numbers))
        else:
            rows = np.array(logits.astype(mx.float32))
            self._tops = draws.likeliest(rows)
            self._tokens, self._logps = choose_rows(rows, draws.groups, numbers, self._seen)
            if self._seen is not None:
                self._seen[np.arange(len(rows)), self._tokens] = True
        self._fed += 1
        self._read = False
        self._steps += 1
        if self._steps % _TIDY_STEPS == 0:
            mx.clear_cache()

    def _join(self, arrived: ModelEngine) -> None:
        self._store.join(arrived._store)
        both: Any = mx.concatenate if self._lazy else np.concatenate
        if self._seen is not None or arrived._seen is not None:
            self._seen = both([self._seen_or_none(), arrived._seen_or_none()])
        self._tokens = both([self._tokens, arrived._tokens])
        self._logps = both([self._logps, arrived._logps])
        self._tops = joined(self._tops, len(self._fed), arrived._tops, len(arrived._fed))
        self._fed = np.concatenate([self._fed, arrived._fed])
        self._draws.join(arrived._draws)

    def _seen_or_none(self) -> Any:
        """What rows with a penalty have seen; of a batch without one nothing, which nobody
        reads."""
        if self._seen is not None:
            return self._seen
        return self._own(np.zeros((len(self._tokens), self._vocabulary()), bool))

    def _vocabulary(self) -> int:
        return int(self._model(mx.array([[0]])).shape[-1])  # a graph that is never run

    def _own(self, array: np.ndarray) -> Any:
        return mx.array(array) if self._lazy else array
