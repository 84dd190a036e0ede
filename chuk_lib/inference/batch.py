"""Many prompts from JSON lines, answered together by one decoder, in the order of the input.

A line is a row: an object with a prompt (text, messages or token ids) and, where it wants others
than those of all, its own sampling settings. Rows of any length and settings decode together within
the decoder's budget of cache. The answers come in the order of the lines; at most `WINDOW` are read
ahead. A line that cannot be answered gives a row with `error`.

Each answer is what `generate` gives for that prompt with that row's settings and seed, wherever the
row stands and whatever runs beside it (but for ties in the last bits of a product).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import mlx.nn as nn

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ChukError, ConfigError, DataError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.guides import Constraint
from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.inference.prompts import encode_prompt, room
from chuk_lib.inference.text import decode
from chuk_lib.inference.vocabulary import check_prompt_tokens

WINDOW = 1024
"""Answers that are asked for at most before the first of them is given: what is read ahead and held
in memory."""
MOST_LOGPROBS = 20
_NO_NUMBER = "the model's output is not a number: its weights may be damaged"
_WORDS = {float: "a number", int: "a whole number"}
_OWN: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "max_tokens": int,
    "seed": int,
}
ROW_SETTINGS = (*_OWN, "stop")
"""Columns that are the row's own sampling settings; null means that of all rows."""


@dataclass(frozen=True)
class BatchSettings:
    """What holds for all rows of a batch.

    `sampling`: where a row gives no setting of its own. Without a seed there, each line gets one of
    its own, `drawn` and the line's number added up. `column` holds the prompt (None: `prompt`, else
    `messages`), `samples` answers are given to each row, `logprobs` (None: none) likeliest tokens
    are told beside the log-prob of each token. `chat` and `system`: see `encode_prompt`; a row's
    own system message takes the place of `system`."""

    sampling: SamplingConfig
    drawn: int = 0
    column: str | None = None
    samples: int = 1
    logprobs: int | None = None
    chat: bool | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples is {self.samples}, it must be 1 or more")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise ConfigError(f"logprobs is {self.logprobs}, it must be from 0 to {MOST_LOGPROBS}")


@dataclass(frozen=True)
class InputRow:
    """A line of the input by its number, counted from 1: its `columns`, or why it has none
    (`error`)."""

    line: int
    columns: dict[str, Any] | None
    error: str = ""


def read_rows(lines: Iterable[bytes]) -> Iterator[InputRow]:
    """The rows of JSON lines in UTF-8; empty lines are passed over, but counted."""
    for number, raw in enumerate(lines, 1):
        raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if raw.strip():
            try:
                yield InputRow(number, _columns(raw))
            except (ValueError, RecursionError) as error:
                yield InputRow(number, None, _why(error))


def answer_rows(
    model: nn.Module,
    tokenizer: LoadedTokenizer,
    rows: Iterable[InputRow],
    settings: BatchSettings,
    on_row: Callable[[dict[str, Any]], None],
    *,
    constraint: Constraint | None = None,
    token_budget: int | None = None,
    window: int = WINDOW,
    there: Callable[[InputRow], int] = lambda row: 0,
) -> None:
    """Give `on_row` the answers to all rows in their order, `settings.samples` for each, or one
    with `error`.

    An answer has `line`, `sample` (when there are several), `input` (the row's columns), `text`,
    `finish_reason`, `prompt_tokens`, `generation_tokens`, `seed` (unless greedy), `problem` (with a
    `constraint`: why the text is not what that wants, or None), and `logprobs` when asked for.
    `token_budget` bounds rows × columns of cache. `there` says how many of a row's answers exist
    already: those are not given. An answer for which the model's output is not a number has `error`
    too; the others go on."""
    with Decoder(model, tokenizer, token_budget=token_budget) as decoder:
        work = _Work(
            model, tokenizer, decoder, settings, iter(rows), on_row, window, there, constraint
        )
        while work.fill():
            decoder.run(work.ended)


@dataclass(eq=False)
class _Answer:
    """An answer that is waited for, or known."""

    row: InputRow
    member: int
    result: dict[str, Any] | None = None


class _Work:
    """Rows on their way through a decoder."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: LoadedTokenizer,
        decoder: Decoder,
        settings: BatchSettings,
        rows: Iterator[InputRow],
        on_row: Callable[[dict[str, Any]], None],
        window: int,
        there: Callable[[InputRow], int],
        constraint: Constraint | None,
    ) -> None:
        self._model, self._tokenizer, self._decoder, self._settings = (
            model,
            tokenizer,
            decoder,
            settings,
        )
        self._rows, self._on_row, self._window, self._there = rows, on_row, window, there
        self._constraint = constraint
        self._waiting: deque[_Answer] = deque()  # in the order of the input
        self._running: dict[Row, _Answer] = {}

    def fill(self) -> bool:
        """Read rows until the window is full, and let them wait; whether any row waits or runs
        then."""
        requests: list[Request] = []
        asked: list[_Answer] = []
        while len(self._waiting) < self._window and (row := next(self._rows, None)) is not None:
            there = self._there(row)
            try:
                found = [] if there >= self._settings.samples else self._requests(row)[there:]
            except ChukError as error:
                if not there:
                    self._waiting.append(_Answer(row, 0, _failed(row, error.message)))
                    self._give()  # maybe nothing runs that would give it when it ends
                continue
            requests += found
            answers = [_Answer(row, request.member) for request in found]
            self._waiting.extend(answers)
            asked += answers
            self._give()
        if requests:
            self._running.update(zip(self._decoder.submit(requests), asked, strict=True))
        return bool(self._running)

    def ended(self, row: Row) -> None:
        """A row has ended: give what is next in order, and read on once half of the window is
        free."""
        answer = self._running.pop(row)
        answer.result = self._result(answer, row)
        self._give()
        if 2 * len(self._waiting) <= self._window:
            self.fill()

    def _give(self) -> None:
        while self._waiting and (result := self._waiting[0].result) is not None:
            self._waiting.popleft()
            self._on_row(result)

    def _requests(self, row: InputRow) -> list[Request]:
        """What a row asks for. Raises ChukError saying what is wrong with it."""
        if row.columns is None:
            raise DataError(row.error)
        settings = self._settings
        config = _sampling(row, settings)
        prompt = _prompt(row.columns, settings.column)
        own = (
            isinstance(prompt, list)
            and isinstance(prompt[0], dict)
            and prompt[0].get("role") == "system"
        )
        ids = encode_prompt(
            self._tokenizer, prompt, chat=settings.chat, system=None if own else settings.system
        )
        check_prompt_tokens(self._model, self._tokenizer, [ids])
        room(self._model, len(ids), config.max_tokens)
        return [
            Request(
                ids,
                config,
                member=member,
                tops=settings.logprobs or 0,
                constraint=self._constraint,
            )
            for member in range(settings.samples)
        ]

    def _result(self, answer: _Answer, row: Row) -> dict[str, Any]:
        config, asked = row.request.config, self._settings
        sample = {"sample": answer.member} if asked.samples > 1 else {}
        if row.reason == "failed":
            return {**_failed(answer.row, _NO_NUMBER), **sample}
        return {
            "line": answer.row.line,
            **sample,
            "input": answer.row.columns,
            "text": row.text,
            "finish_reason": row.reason,
            "prompt_tokens": len(row.request.ids),
            "generation_tokens": len(row.ids),
            **({} if config.greedy else {"seed": config.seed}),
            **({} if self._constraint is None else {"problem": row.problem}),
            **({} if asked.logprobs is None else {"logprobs": self._logprobs(row)}),
        }

    def _logprobs(self, row: Row) -> list[dict[str, Any]]:
        ids, own = row.ids.tolist(), row.logps.tolist()
        named = [self._token(token, logp) for token, logp in zip(ids, own, strict=True)]
        for entry, top in zip(named, row.tops, strict=False):
            # What was drawn has the one log-prob that the decoder drew it with.
            entry["top"] = [
                self._token(t, entry["logprob"] if t == entry["token"] else logp) for t, logp in top
            ]
        return named

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token,
            "text": decode(self._tokenizer, [token]),
            "logprob": round(logprob, 6),
        }


def _failed(row: InputRow, reason: str) -> dict[str, Any]:
    return {
        "line": row.line,
        **({} if row.columns is None else {"input": row.columns}),
        "error": reason,
    }


def _columns(raw: bytes) -> dict[str, Any]:
    """The object of a line. Raises ValueError for what is none, or could not be written again as it
    is."""
    row = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")
    return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(name for at, (name, _) in enumerate(pairs) if name in dict(pairs[:at]))
        raise ValueError(f"it has the key `{twice[:60]}` twice")
    return row


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON: {error.msg[0].lower()}{error.msg[1:]} at column {error.pos + 1}"
    if isinstance(error, UnicodeDecodeError):
        return (
            f"it is not UTF-8 (byte 0x{error.object[error.start]:02x} at position"
            f" {error.start + 1})"
        )
    if isinstance(error, UnicodeEncodeError):
        return "it holds half a character: text was cut inside one"
    if isinstance(error, RecursionError):
        return "it is not JSON: brackets in brackets in brackets"
    return "it holds NaN or infinity" if "JSON compliant" in str(error) else str(error)


def _prompt(columns: dict[str, Any], column: str | None) -> Any:
    """Text, messages or ids. Raises DataError for anything else."""
    if column is None:
        there = [name for name in ("prompt", "messages") if columns.get(name) is not None]
        if len(there) != 1:
            raise DataError(
                "it has both `prompt` and `messages`"
                if there
                else "it has neither `prompt` nor `messages`"
            )
        column = there[0]
    prompt = columns.get(column)
    if prompt is None:
        raise DataError(f"it has no `{column}`")
    if isinstance(prompt, str) and prompt:
        return prompt
    items = prompt if isinstance(prompt, list) else []
    kinds = {type(item) for item in items}
    if (kinds == {int} and min(items) >= 0) or (
        kinds == {dict} and all(isinstance(item.get("role"), str) for item in items)
    ):
        return items
    raise DataError(
        f"`{column}` must be text, a list of messages with a role each, or a list of token ids, not"
        " empty"
    )


def _sampling(row: InputRow, settings: BatchSettings) -> SamplingConfig:
    """The settings of a row. Raises ChukError for a value that is none."""
    columns = row.columns or {}
    own: dict[str, Any] = {}
    for name, kind in _OWN.items():
        value = columns.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | kind):
                raise DataError(f"`{name}` must be {_WORDS[kind]}")
            own[name] = value
    stop = columns.get("stop")
    if stop is not None:
        if not isinstance(stop, str | list):
            raise DataError("`stop` must be text, or a list of texts")
        own["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    config = replace(settings.sampling, **own)
    return (
        config
        if config.seed is not None
        else replace(config, seed=(settings.drawn + row.line) % 2**32)
    )
