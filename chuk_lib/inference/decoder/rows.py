"""What is asked of a row, what it has written, and the numbers of all rows that run.

A row is one sequence: its prompt, then stretches that the model wrote and stretches that it was
given (`append`). Sampling settings, seed, limit and stops are its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.draws import Arrival
from chuk_lib.inference.decoder.engine import Held
from chuk_lib.inference.decoder.guides import Bias, Constraint
from chuk_lib.inference.text import decode

Reason = Literal["eos", "stop", "length", "cancelled", "failed"]
"""The model ended, a stop text or stop token came, there was no room for more, nobody wants more,
or the model's output was not a number."""
STOP_STEPS = 8
"""Tokens of a row after which its text is searched for a stop text: decoding costs more than a
step's sampling. What was sampled beyond one is taken back."""
_NEVER = 1 << 60
_CUT = {
    "length": "cut at the limit: ",
    "stop": "ended by a stop text or token: ",
    "cancelled": "cancelled: ",
    "failed": "the model's output is not a number: ",
}


@dataclass(frozen=True, eq=False)
class Request:
    """A row to be written after `ids`. Requests of one `submit` with the same object as `ids` share
    its prefill.

    `config.seed` with `number` (of the prompt) and `member` (of those that continue it) decides
    what is drawn; without a seed 0 is taken. `stop_ids` end a row like the tokenizer's end tokens.
    `hold`: keep the row's cache when it ends, for `append`. `eager`: search stop texts after each
    token, so that none is ever taken back. `constraint`: what the text must be, each stretch that
    the model writes for itself. `held`: what a row that ended remembers of tokens that `ids` begin
    with, fewer than all of them; it serves once. `bias`: what is added to the logits of some
    tokens, which changes what is drawn and not its log-prob. `tops`: how many of the likeliest
    tokens are told at each place. `adapter`: which of the decoder's it is written under, 0 for
    none; rows that share a prompt share it."""

    ids: Sequence[int]
    config: SamplingConfig
    number: int = 0
    member: int = 0
    stop_ids: Sequence[int] = ()
    hold: bool = False
    eager: bool = False
    bias: Mapping[int, float] | None = None
    tops: int = 0
    constraint: Constraint | None = None
    held: Held | None = None
    adapter: int = 0


class Row:
    """A request and what became of it so far. `reason` is None while the row waits or runs.

    `ids` (C,) int32: all tokens after the prompt; `logps` (C,) float32: the log-prob of each under
    softmax(logits / temperature) before any filter (temperature 1 when sampling is greedy);
    `written` (C,) bool: True where the model wrote, False (and log-prob 0) where it was given. They
    are brought up to date when the row ends. `text`: of the last stretch, without special tokens
    and without what ended it; `problem`: why it is not what the request's constraint wants. `tops`:
    for each token that the model wrote the likeliest at its place and their log-probs, likeliest
    first, as many as the request wants."""

    def __init__(self, request: Request, limit: int) -> None:
        self.request, self.limit = request, limit
        self.reason: Reason | None = None
        self.text = ""
        self.problem: str | None = None
        self.ids = np.zeros(0, np.int32)
        self.logps = np.zeros(0, np.float32)
        self.written = np.zeros(0, bool)
        self.tops: list[list[tuple[int, float]]] = []
        self.source: Sequence[int] = request.ids  # all tokens to continue
        self.held = request.held
        self.cached = 0  # tokens of its prompt that a prefix cache knew

    @property
    def columns(self) -> int:
        """Tokens that the row may have in all."""
        return len(self.source) + self.limit

    @property
    def arrival(self) -> Arrival:
        """The row as it joins a batch: its random numbers go on where they were."""
        request = self.request
        drawn = int(self.written.sum())
        guide = None if request.constraint is None else request.constraint.start()
        biased = request.bias or request.config.counts
        bias = Bias(request.bias or {}, request.config) if biased else None
        return Arrival(
            self.source,
            request.config,
            request.number,
            request.member,
            self.limit,
            drawn,
            guide,
            bias,
            request.tops,
            request.adapter,
        )

    def raise_failed(self) -> None:
        """Raise ModelError when the model's output was not a number for this row."""
        if self.reason == "failed":
            raise ModelError(
                "the model's output is not a number",
                "its weights may be damaged: look at the run's losses, or load an earlier"
                " checkpoint",
            )

    def take(self, ids: np.ndarray, logps: np.ndarray, written: bool) -> None:
        """Add a stretch (n,)."""
        self.ids = np.concatenate([self.ids, ids])
        self.logps = np.concatenate([self.logps, logps])
        self.written = np.concatenate([self.written, np.full(len(ids), written)])

    def resume(self, given: Sequence[int], limit: int) -> None:
        """Wait again, to be continued after `given` tokens by up to `limit`."""
        self.take(np.asarray(given, np.int32), np.zeros(len(given), np.float32), written=False)
        self.source = [*self.request.ids, *self.ids.tolist()]
        self.reason, self.text, self.problem, self.limit = None, "", None, limit


class Ledger:
    """Tokens, log-probs and counts of the rows that run, a line of numbers for each; lines are used
    again."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._ids = np.zeros((0, 0), np.int32)
        self._logps = np.zeros((0, 0), np.float32)
        self.counts = np.zeros(0, np.int64)
        self.limits = np.zeros(0, np.int64)
        self._searched = np.zeros(0, np.int64)  # tokens that hold no stop text
        self._steps = np.zeros(0, np.int64)  # tokens between two searches
        self._ends = np.zeros((0, 0), np.int32)  # stop tokens of a row's own, -1 where it has fewer

    def open(self, row: Row) -> int:
        """A line for a row."""
        if not self._free or row.limit > self._ids.shape[1]:
            self._grow(row.limit)
        line, request = self._free.pop(), row.request
        self.counts[line] = self._searched[line] = 0
        self.limits[line] = row.limit
        every = 1 if request.eager or request.hold else STOP_STEPS
        self._steps[line] = every if request.config.stop else _NEVER
        own = len(request.stop_ids)
        self._ends = _wider(self._ends, len(self._ends), own, -1)
        self._ends[line] = -1
        self._ends[line, :own] = request.stop_ids
        return line

    def close(self, line: int, row: Row) -> None:
        """Give a row what was written, and the line to others."""
        count = int(self.counts[line])
        row.take(self._ids[line, :count].copy(), self._logps[line, :count].copy(), written=True)
        del row.tops[int(row.written.sum()) :]
        self._free.append(line)

    def note(self, lines: np.ndarray, tokens: np.ndarray, logps: np.ndarray) -> np.ndarray:
        """One more token for each line; (B,) bool: which rows a token of their own ends."""
        at = self.counts[lines]
        self._ids[lines, at], self._logps[lines, at] = tokens, logps
        self.counts[lines] = at + 1
        return np.asarray((tokens[:, None] == self._ends[lines]).any(axis=1))

    def due(self, lines: np.ndarray, over: np.ndarray) -> np.ndarray:
        """Indices of the lines whose text is to be searched now; `over` (B,): which end anyway."""
        steps = self._steps[lines]
        since = self.counts[lines] - self._searched[lines]
        return np.flatnonzero((steps < _NEVER) & (over | (since >= steps)))

    def stops(self, line: int, tokenizer: LoadedTokenizer, stops: Sequence[str]) -> bool:
        """Whether a row's text holds a stop text; then it ends with the token that completes it."""
        count, searched = int(self.counts[line]), int(self._searched[line])
        # A stop text may have begun in tokens that were searched before, at least a byte each.
        reach = 1 + max(len(text.encode()) for text in stops)
        ids = self._ids[line, max(0, searched - reach) : count].tolist()
        self._searched[line] = count
        if stop_place(tokenizer, ids, stops) is None:
            return False
        for kept in range(len(ids) - (count - searched) + 1, len(ids) + 1):
            if stop_place(tokenizer, ids[:kept], stops) is not None:
                self.counts[line] = count - len(ids) + kept
                return True
        return False

    def _grow(self, columns: int) -> None:
        lines = len(self.counts)
        more = lines if self._free else max(2 * lines, 8)
        self._free += range(more - 1, lines - 1, -1)
        wide = max(columns, self._ids.shape[1])
        self._ids, self._logps = _wider(self._ids, more, wide), _wider(self._logps, more, wide)
        self._ends = _wider(self._ends, more, self._ends.shape[1], -1)
        self.counts, self.limits, self._searched, self._steps = (
            np.pad(part, (0, more - lines))
            for part in (self.counts, self.limits, self._searched, self._steps)
        )


def stop_place(tokenizer: LoadedTokenizer, ids: Sequence[int], stops: Sequence[str]) -> int | None:
    """Where the first stop text begins in the text of `ids`."""
    text = decode(tokenizer, ids)
    places = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return min(places) if places else None


def text_of(row: Row, tokenizer: LoadedTokenizer, count: int, by_token: bool) -> str:
    """The text of a row's last `count` tokens, which a token ended or not."""
    ids = row.ids[len(row.ids) - count :].tolist()
    text = decode(tokenizer, ids[:-1] if by_token else ids)
    if row.reason == "stop" and not by_token:
        text = text[: stop_place(tokenizer, ids, row.request.config.stop)]
    return text


def problem_of(row: Row, count: int, by_token: bool) -> str | None:
    """Why the last `count` tokens of a row are not what its constraint wants."""
    if row.request.constraint is None:
        return None
    ids = row.ids[len(row.ids) - count :].tolist()
    found = row.request.constraint.problem(row.text, ids[:-1] if by_token else ids)
    return None if found is None else f"{_CUT.get(row.reason or '', '')}{found}"


def checked(requests: Sequence[Request]) -> None:
    """Raise ConfigError for a request with nothing to continue."""
    empty = next((index for index, request in enumerate(requests) if len(request.ids) == 0), None)
    if empty is not None:
        raise ConfigError(f"prompt {empty} is empty", "give at least one token to continue")


def _wider(table: np.ndarray, rows: int, columns: int, value: int = 0) -> np.ndarray:
    """A table with at least so many rows and columns."""
    room = (max(0, rows - len(table)), max(0, columns - table.shape[1]))
    return (
        np.pad(table, ((0, room[0]), (0, room[1])), constant_values=value) if any(room) else table
    )
