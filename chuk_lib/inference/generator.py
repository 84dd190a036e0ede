"""Write on from a prompt: as a stream, as one completion, or for many prompts at once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import mlx.nn as nn

from chuk_lib.errors import ModelError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoding import Decoder, decodes_together, evaluating
from chuk_lib.inference.prompts import Prompt, encode_prompt, expects_chat, room
from chuk_lib.inference.text import StopText, TextStream, decode
from chuk_lib.inference.vocabulary import check_prompt_tokens
from chuk_lib.runtime import prepare, uncompiled

FinishReason = Literal["eos", "stop", "length"]
"""The model ended, a stop text came, or there was no room for more."""
BATCH_ROWS = 256


@dataclass(frozen=True)
class Chunk:
    """One token of a stream. `text` is what became certain with it and may be empty; `logprob` is the model's
    own, before temperature and filters. The last chunk has the `finish_reason`."""

    text: str
    token: int
    logprob: float
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """What a model wrote. `tokens` holds all that was generated, a final end token included; `text` ends
    before it, and before a stop text. `seconds` is the whole call, shared by rows that ran together.
    `logprobs`, when asked for: the model's own, one a token, before temperature and filters."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    seconds: float
    logprobs: tuple[float, ...] | None = None

    @property
    def generation_tokens(self) -> int:
        """Number of tokens generated."""
        return len(self.tokens)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of this row by the time of the call."""
        return len(self.tokens) / self.seconds if self.seconds else 0.0


def stream(
    model: nn.Module,
    tokenizer: Any,
    prompt: Prompt,
    config: SamplingConfig | None = None,
    *,
    chat: bool | None = None,
    system: str | None = None,
) -> Iterator[Chunk]:
    """Yield a Chunk a token. For `prompt`, `chat` and `system` see `encode_prompt`.

    Raises ModelError when the prompt does not fit the context or the model's output is not a number.
    """
    config = config or SamplingConfig()
    chat = expects_chat(model) if chat is None and system is None else chat
    ids = encode_prompt(tokenizer, prompt, chat=chat, system=system)
    check_prompt_tokens(model, tokenizer, [ids])
    row = _Row(0, ids, tokenizer, config, room(model, len(ids), config.max_tokens), streams=True)
    prepare()
    with evaluating(model):
        decoder = Decoder(model, config)
        with uncompiled():
            decoder.admit([ids], [0], alone=True)
        while row.reason is None:
            with uncompiled():  # not while the caller has the chunk
                step = decoder.step(last=row.left == 1)
            text = row.add(step.tokens[0], step.scores[0])
            yield Chunk(text, step.tokens[0], step.scores[0], row.reason)


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: Prompt,
    config: SamplingConfig | None = None,
    *,
    chat: bool | None = None,
    system: str | None = None,
    logprobs: bool = False,
) -> Completion:
    """The completion of one prompt; see `stream`."""
    return generate_many(model, tokenizer, [prompt], config, chat=chat, system=system, logprobs=logprobs)[0]


def generate_many(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: SamplingConfig | None = None,
    *,
    chat: bool | None = None,
    system: str | None = None,
    logprobs: bool = False,
    batch_rows: int = BATCH_ROWS,
) -> list[Completion]:
    """Completions of many prompts in their order, decoded together, at most `batch_rows` at once.

    Rows that end make room for rows that wait. What a row gets depends on its prompt, its place in `prompts`
    and the seed, not on the rows beside it: greedy decoding gives what `generate` gives, but for ties in the
    last bits.
    """
    config = config or SamplingConfig()
    began = time.perf_counter()
    chat = expects_chat(model) if chat is None and system is None else chat
    rows = []
    encoded = [encode_prompt(tokenizer, prompt, chat=chat, system=system) for prompt in prompts]
    check_prompt_tokens(model, tokenizer, encoded)
    for number, ids in enumerate(encoded):
        rows.append(_Row(number, ids, tokenizer, config, room(model, len(ids), config.max_tokens)))
    prepare()
    with uncompiled(), evaluating(model):
        together = batch_rows if len(rows) > 1 and decodes_together(model) else 1
        _run(Decoder(model, config, logprobs), sorted(rows, key=lambda row: -len(row.ids)), together)
    seconds = time.perf_counter() - began
    return [row.completion(seconds, logprobs) for row in rows]


def _run(decoder: Decoder, waiting: list[_Row], batch_rows: int) -> None:
    """Decode all rows. New ones join when half of the places are free, so that prefills stay large."""
    active: list[_Row] = []
    while waiting or active:
        if waiting and len(active) <= batch_rows // 2:
            arriving, waiting = waiting[: batch_rows - len(active)], waiting[batch_rows - len(active) :]
            decoder.admit([r.ids for r in arriving], [r.number for r in arriving], alone=batch_rows == 1)
            active += arriving
        step = decoder.step(last=all(row.reason or row.left <= 1 for row in active))
        for row, token, score in zip(active, step.tokens, step.scores, strict=True):
            if row.reason is None:
                row.add(token, score)
        active = _drop_finished(decoder, active)


def _drop_finished(decoder: Decoder, active: list[_Row]) -> list[_Row]:
    """Take finished rows out of the cache once a quarter of it is dead: each time copies the rest."""
    alive = [i for i, row in enumerate(active) if row.reason is None]
    if len(alive) > 0.75 * len(active):
        return active
    decoder.keep(alive)
    return [active[i] for i in alive]


@dataclass
class _Row:
    """One prompt and what has been written for it. Text is made as it comes when something waits for it."""

    number: int
    ids: list[int]
    tokenizer: Any
    config: SamplingConfig
    left: int
    streams: bool = False
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    reason: FinishReason | None = None
    _pieces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.streams = self.streams or bool(self.config.stop)
        self._stream, self._stop = TextStream(self.tokenizer), StopText(self.config.stop)

    def add(self, token: int, score: float) -> str:
        """Take one token; returns the text that became certain and sets `reason` when it was the last."""
        if math.isnan(score):
            raise ModelError(
                "the model's output is not a number",
                "its weights may be damaged: look at the run's losses, or load an earlier checkpoint",
            )
        self.tokens.append(token)
        self.scores.append(score)
        self.left -= 1
        if token in self.tokenizer.eos_token_ids:
            self.reason = "eos"
        text = self._text(token) if self.streams else ""
        if self.reason is None and self.left <= 0:
            self.reason = "length"
        if self.streams and self.reason in ("eos", "length"):
            text += self._stop.add(self._stream.end()) + self._stop.end()
        self._pieces.append(text)
        return text

    def completion(self, seconds: float, logprobs: bool) -> Completion:
        """The finished row."""
        reason = self.reason or "length"
        kept = self.tokens[:-1] if reason == "eos" else self.tokens
        text = "".join(self._pieces) if self.streams else decode(self.tokenizer, kept)
        scores = tuple(self.scores) if logprobs else None
        return Completion(text, tuple(self.tokens), reason, len(self.ids), seconds, scores)

    def _text(self, token: int) -> str:
        if self.reason == "eos":
            return ""
        text = self._stop.add(self._stream.add(token))
        if self._stop.found:
            self.reason = "stop"
        return text
