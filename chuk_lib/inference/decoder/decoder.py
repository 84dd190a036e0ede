"""Continuous batching: rows wait, join a running batch, write, and leave, at any time.

    with Decoder(model, tokenizer) as decoder:
        rows = decoder.submit([Request(ids, config)])
        while decoder.busy:
            for row in decoder.step().ended:
                print(row.text)

A prompt is prefilled once for all rows that share it, rows that end make room for rows that wait,
and how many run at once follows from a budget of cache. What a row holds depends on the model, its
prompt, its settings and its random numbers, not on the rows beside it (but for ties in the last
bits of a product)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import NamedTuple

import mlx.nn as nn
import numpy as np

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError
from chuk_lib.inference.decoder.budget import (
    Budget,
    default_token_budget,
    limited,
    token_bytes,
)
from chuk_lib.inference.decoder.engine import Engine, Held
from chuk_lib.inference.decoder.engines import new_engine
from chuk_lib.inference.decoder.forwards import Decode
from chuk_lib.inference.decoder.plain_store import COLUMNS
from chuk_lib.inference.decoder.prefill import Memory
from chuk_lib.inference.decoder.prefixes import PrefixCache
from chuk_lib.inference.decoder.queue import Queue
from chuk_lib.inference.decoder.rows import (
    Ledger,
    Reason,
    Request,
    Row,
    checked,
    problem_of,
    text_of,
)
from chuk_lib.inference.decoder.stores import keeps_all, quantized_share
from chuk_lib.inference.prompts import room
from chuk_lib.inference.vocabulary import check_prompt_tokens
from chuk_lib.models.randomness import evaluating
from chuk_lib.runtime import computing, prepare, users_own


class Step(NamedTuple):
    """One new token of each running row: `rows` B, `tokens` (B,) int32, `logps` (B,) float32; and
    the rows that ended. A stop text may take back tokens of a row that is not `eager`."""

    rows: list[Row]
    tokens: np.ndarray
    logps: np.ndarray
    ended: list[Row]


class Decoder:
    """Rows that decode together over one model, whose weights must stay as they are.

    `token_budget` bounds rows × columns of cache (default: what the memory of the machine allows),
    `most_rows` the rows; 1 spares a look at whether the model takes rows of several lengths.
    `kv_bits` quantizes the cache, `decode` is one of `forwards.py`, and with `ahead` a row that
    runs alone is guessed at (`lookahead.py`), with `draft` by a smaller model (`draft.py`), which
    changes its last bits at most. `adapted`: the same model under adapters (see
    `engines.holds_adapters`), which requests call 1, 2, … `gradual`: a step runs one stretch of the
    prompts that wait, so that no row waits for a long prompt of another; then `prefixes` may know
    what they begin with, of the model called `name`, and learn what is written. `peak_rows` is the
    largest number of rows that decoded together."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: LoadedTokenizer,
        *,
        token_budget: int | None = None,
        most_rows: int | None = None,
        kv_bits: int | None = None,
        decode: Decode = "auto",
        ahead: bool = False,
        gradual: bool = False,
        draft: nn.Module | None = None,
        adapted: Sequence[nn.Module] = (),
        prefixes: PrefixCache | None = None,
        name: Hashable = "",
    ) -> None:
        if kv_bits is not None:
            quantized_share(model, kv_bits)  # refuses what cannot be
        self._model, self._tokenizer = model, tokenizer
        self._gradual, self._name = gradual, name
        self._prefixes = prefixes if gradual and kv_bits is None and keeps_all(model) else None
        self._token_budget, self._most_rows = token_budget, most_rows
        self._kv_bits, self._decode, self._ahead = kv_bits, decode, ahead
        self._ends = np.array(sorted(tokenizer.eos_token_ids), np.int32)
        self._draft, self._adapted = draft, adapted
        self._ledger = Ledger()
        self._bytes: int | None = None  # of cache that a token takes
        self._queue: Queue | None = None
        self._engine: Engine | None = None
        self._arriving: list[Row] = []  # rows whose prompts are run stretch by stretch
        self._active: list[Row] = []  # rows in the engine, in its order
        self._lines = np.zeros(0, np.int64)  # (B,) of the ledger
        self._live = np.zeros(0, bool)  # (B,) which of them go on
        self._stack = ExitStack()
        self.peak_rows = 0

    def __enter__(self) -> Decoder:
        prepare()
        for model in (self._model, *self._adapted):
            self._stack.enter_context(evaluating(model))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def busy(self) -> bool:
        """Whether a row waits or runs."""
        return bool(self._live.any()) or bool(self._queue) or bool(self._arriving)

    @property
    def running(self) -> int:
        """Rows that write."""
        return int(self._live.sum())

    def submit(self, requests: Sequence[Request]) -> list[Row]:
        """Rows that wait now, the longest prompts first. Raises ConfigError for an empty prompt,
        DataError for a token without a row in the embedding, ModelError for a prompt that fills the
        context."""
        checked(requests)
        prompts = {id(request.ids): request.ids for request in requests}
        check_prompt_tokens(self._model, self._tokenizer, list(prompts.values()))
        rows = [
            Row(one, room(self._model, len(one.ids), one.config.max_tokens)) for one in requests
        ]
        self._waiting.add(sorted(rows, key=lambda row: -len(row.source)))
        return rows

    def append(
        self, rows: Sequence[Row], tokens: Sequence[Sequence[int]], limit: int | None = None
    ) -> None:
        """Let rows that have ended go on after tokens that they are given (a tool's result, a
        further question), by up to `limit` tokens more (default: their `max_tokens`). A row with
        `hold` keeps its cache, others are prefilled anew. Raises ConfigError for a row that has not
        ended or is given nothing, ModelError when the context is full."""
        for row, given in zip(rows, tokens, strict=True):
            if row.reason is None or not len(given):
                raise ConfigError("a row goes on when it has ended, after at least one token")
        check_prompt_tokens(self._model, self._tokenizer, tokens)
        lengths = [
            len(row.request.ids) + len(row.ids) + len(given)
            for row, given in zip(rows, tokens, strict=True)
        ]
        wanted = [row.request.config.max_tokens if limit is None else limit for row in rows]
        limits = [
            room(self._model, length, most) for length, most in zip(lengths, wanted, strict=True)
        ]
        for row, given, most in zip(rows, tokens, limits, strict=True):
            row.resume(given, most)
        self._waiting.add(rows)

    def shortened(self, held: Held, tokens: int) -> Held | None:
        """The same memory of its first `tokens` tokens only, at least one fewer than the row that
        goes on from it has; None when its caches cannot forget the others. `held` is used up."""
        if tokens >= held.tokens or self._engine is None:
            return held if tokens == held.tokens else None
        with computing():
            memory = self._engine.cut(held.memory, held.tokens - tokens)
        return None if memory is None else Held(memory, tokens)

    def plain(self, held: Held) -> Memory:
        """The keys and values of a memory, for a model whose layers keep all of them."""
        if self._engine is None:
            raise ConfigError("nothing was written yet", "step first")
        return self._engine.plain(held.memory)

    def cancel(self, row: Row) -> None:
        """End a row that waits or runs, with what it has. It leaves the batch before the next
        step."""
        if row.reason is not None:
            return
        if row in self._waiting or row in self._arriving:
            (self._waiting if row in self._waiting else self._arriving).remove(row)
            row.reason = "cancelled"
            return
        at = next(index for index, one in enumerate(self._active) if one is row)
        with computing():
            self._finish(at, "cancelled", by_token=False)
            self._live[at] = False
            self._drop()

    def step(self) -> Step:
        """Let rows join as there is room, and write one token of each. A row for which the model's
        output is not a number fails; the others go on."""
        with self._limited(), computing():
            return self._step()

    def run(self, on_end: Callable[[Row], None] | None = None) -> None:
        """Step until nothing waits or runs; `on_end` gets each row as it ends."""
        with self._limited(), computing():
            while self.busy:
                for row in self._step().ended:
                    if on_end is not None:
                        with users_own():
                            on_end(row)

    def _limited(self) -> AbstractContextManager[None]:
        """On CUDA, MLX's memory limit for the rows that wait and run."""
        columns = [row.columns for row in [*self._waiting, *self._arriving, *self._active]]
        needed = len(columns) * (max(columns, default=0) + COLUMNS)
        return limited(self._token_bytes, min(self._waiting.budget.tokens, needed))

    def _token_bytes(self) -> int:
        if self._bytes is None:
            self._bytes = token_bytes(self._model)
        return self._bytes

    def _step(self) -> Step:
        self._admit()
        if self._engine is None or not self._live.any():
            return Step([], np.zeros(0, np.int32), np.zeros(0, np.float32), [])
        lines = self._lines[self._live]
        last = not (self._queue or self._arriving) and bool(
            (self._ledger.counts[lines] + 1 >= self._ledger.limits[lines]).all()
        )
        step = self._take(*self._engine.step(last))
        self._drop()
        return step

    @property
    def _waiting(self) -> Queue:
        if self._queue is None:
            tokens = (
                default_token_budget(self._model)
                if self._token_budget is None
                else self._token_budget
            )
            budget = Budget(tokens, self._most_rows)
            self._queue = Queue(budget, self._prefixes, self._name)
        return self._queue

    def _admit(self) -> None:
        if self._queue is None or not (self._queue or self._arriving):
            return
        if self._engine is None:
            together = self._most_rows != 1
            self._engine = new_engine(
                self._model,
                self._queue.max_tokens,
                together=together,
                kv_bits=self._kv_bits,
                decode=self._decode,
                ahead=self._ahead,
                draft=self._draft,
                adapted=self._adapted,
            )
        alive = [row for row, lives in zip(self._active, self._live, strict=True) if lives]
        arriving = self._queue.next([*alive, *self._arriving], self._engine.mix)
        if self._gradual:
            self._arriving += arriving
            arriving = self._queue.whole(self._arriving, self._engine)
            self._arriving = [row for row in self._arriving if row not in arriving]
        if not arriving:
            return
        if len(alive) < len(self._active):
            self._keep()
        memories = self._queue.memories(arriving, self._engine)
        self._engine.admit([row.arrival for row in arriving], memories)
        self._active += arriving
        self._lines = np.append(self._lines, [self._ledger.open(row) for row in arriving])
        self._live = np.append(self._live, np.ones(len(arriving), bool))
        self.peak_rows = max(self.peak_rows, len(self._active))

    def _take(self, tokens: np.ndarray, logps: np.ndarray) -> Step:
        """Note one token for each row that goes on, and finish those that end with it."""
        at = np.flatnonzero(self._live)
        lines, tokens, logps = self._lines[at], tokens[at], logps[at]
        failed = ~np.isfinite(logps)
        own = self._ledger.note(lines, tokens, logps) & ~failed
        self._ledger.counts[lines[failed]] -= 1  # what was drawn from no numbers is no token
        ended = (tokens[:, None] == self._ends).any(axis=1) & ~failed
        over = ended | own | failed | (self._ledger.counts[lines] >= self._ledger.limits[lines])
        self._note_likeliest(at)
        stopped = np.zeros(len(lines), bool)
        for index in self._ledger.due(lines, over).tolist():
            stops = self._active[at[index]].request.config.stop
            stopped[index] = self._ledger.stops(int(lines[index]), self._tokenizer, stops)
        rows = [self._active[index] for index in at.tolist()]
        done = np.flatnonzero(over | stopped).tolist()
        for index in done:
            by_token = bool(ended[index] or own[index]) and not stopped[index]
            reason: Reason = (
                "stop" if stopped[index] or (own[index] and not ended[index]) else "length"
            )
            if failed[index]:
                reason = "failed"
            self._finish(int(at[index]), "eos" if by_token and ended[index] else reason, by_token)
        self._live[at[done]] = False
        return Step(rows, tokens, logps, [rows[index] for index in done])

    def _note_likeliest(self, at: np.ndarray) -> None:
        """Of rows that asked for them, the likeliest tokens at the place of the one just
        written."""
        found = None if self._engine is None else self._engine.likeliest
        if found is None:
            return
        for index in at.tolist():
            row = self._active[index]
            if row.request.tops:
                ids, logps = (part[index, : row.request.tops].tolist() for part in found)
                row.tops.append(list(zip(ids, logps, strict=True)))

    def _finish(self, at: int, reason: Reason, by_token: bool) -> None:
        """A row's last numbers, and its cache when it may go on."""
        row, line = self._active[at], int(self._lines[at])
        count = int(self._ledger.counts[line])
        self._ledger.close(line, row)
        row.reason = reason
        row.text = text_of(row, self._tokenizer, count, by_token)
        row.problem = problem_of(row, count, by_token)
        if row.request.hold and self._engine is not None:
            # Its last token was never run, and tokens behind a stop text are none of it: all before
            # is remembered.
            row.held = self._engine.hold(at, len(row.source) + count - 1)
        if self._prefixes is not None and reason not in ("cancelled", "failed"):
            self._remember(self._prefixes, at, row, len(row.source) + count - 1)

    def _remember(self, prefixes: PrefixCache, at: int, row: Row, length: int) -> None:
        """What a row has behind it begins the next turn of its conversation."""
        held = None if self._engine is None else self._engine.hold(at, length)
        if held is not None and self._engine is not None:
            tokens = [*row.request.ids, *row.ids.tolist()][: held.tokens]
            prefixes.keep(
                (self._name, row.request.adapter), tokens, self._engine.plain(held.memory)
            )

    def _drop(self) -> None:
        """Take finished rows out of the batch once there are enough of them: the rest is copied."""
        dead = len(self._active) - int(self._live.sum())
        if (
            self._engine
            and dead
            and (dead == len(self._active) or dead >= self._engine.drop_share * len(self._active))
        ):
            self._keep()

    def _keep(self) -> None:
        rows = np.flatnonzero(self._live)
        if self._engine is not None:
            self._engine.keep(rows)
        self._active = [self._active[row] for row in rows.tolist()]
        self._lines, self._live = self._lines[rows], self._live[rows]
