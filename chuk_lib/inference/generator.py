"""Write on from a prompt: as a stream, as one completion, or for many prompts at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import mlx.nn as nn

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.guides import Constraint
from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.inference.decoder.sampling import global_seed
from chuk_lib.inference.prompt_cache import PromptCache
from chuk_lib.inference.prompts import Prompt, encode_prompt, expects_chat
from chuk_lib.inference.text import StopText, TextStream

FinishReason = Literal["eos", "stop", "length"]
"""The model ended, a stop text came, or there was no room for more."""
BATCH_ROWS = 256


@dataclass(frozen=True)
class Chunk:
    """One token of a stream. `text` is what became certain with it and may be empty; `logprob` is
    that of softmax(logits / temperature), before filters (temperature 1 when sampling is greedy).
    The last chunk has the `finish_reason`, and the `problem` of a text that is not what its
    constraint wants."""

    text: str
    token: int
    logprob: float
    finish_reason: FinishReason | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Completion:
    """What a model wrote. `tokens` holds all that was generated, a final end token included; `text`
    ends before it, and before a stop text. `seconds` is the whole call, shared by rows that ran
    together. `logprobs`, when asked for: one a token, as of a `Chunk`. `problem`: why the text is
    not what a constraint wants."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    seconds: float
    logprobs: tuple[float, ...] | None = None
    problem: str | None = None

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
    tokenizer: LoadedTokenizer,
    prompt: Prompt,
    config: SamplingConfig | None = None,
    *,
    chat: bool | None = None,
    system: str | None = None,
    constraint: Constraint | None = None,
    speculate: bool = True,
    cache: PromptCache | None = None,
    kv_bits: int | None = None,
    draft: nn.Module | None = None,
) -> Iterator[Chunk]:
    """Yield a Chunk a token. For `prompt`, `chat` and `system` see `encode_prompt`, for
    `constraint` `constraints`. `speculate`: run tokens that are likely to come together, where that
    is faster (see `decoder/lookahead.py`); the text is the same. `cache` goes on from what a file
    remembers of the prompt, or remembers it there. `kv_bits` (8, 6 or 4) quantizes what is
    remembered. `draft`: a smaller model of the same vocabulary, whose guesses are run together
    where that is faster; the text is the same.

    Raises ModelError when the prompt does not fit the context or the model's output is not a
    number."""
    config = _with_seed(config or SamplingConfig())
    chat = expects_chat(model) if chat is None and system is None else chat
    ids = encode_prompt(tokenizer, prompt, chat=chat, system=system)
    if cache is not None and kv_bits is not None:
        raise ConfigError("a quantized cache is not kept in a file", "leave one of them out")
    if draft is not None and (constraint or config.counts or config.repetition_penalty != 1):
        raise ConfigError(
            "a draft model cannot follow a rule or a penalty", "leave one of them out"
        )
    with Decoder(
        model, tokenizer, most_rows=1, kv_bits=kv_bits, ahead=speculate, draft=draft
    ) as decoder:
        held = None if cache is None else cache.begun(ids)
        keeps = cache is not None and not cache.tokens
        (row,) = decoder.submit(
            [Request(ids, config, eager=True, constraint=constraint, hold=keeps, held=held)]
        )
        try:
            yield from chunks_of(decoder, row, tokenizer)
        finally:
            decoder.cancel(row)
            if cache is not None and keeps and row.held is not None and len(ids) > 1:
                known = decoder.shortened(row.held, len(ids) - 1)
                if known is not None:
                    cache.keep(ids[:-1], decoder.plain(known))


def chunks_of(decoder: Decoder, row: Row, tokenizer: LoadedTokenizer) -> Iterator[Chunk]:
    """Yield a Chunk a token of the only row of a decoder, an `eager` one, until it ends."""
    text = _Text(tokenizer, row.request.config.stop)
    while row.reason is None:
        step = decoder.step()
        row.raise_failed()
        token, logprob = int(step.tokens[0]), float(step.logps[0])
        reason: Any = row.reason
        piece = text.add(token) if reason is None else text.rest(row.text)
        yield Chunk(piece, token, logprob, reason, row.problem)


def generate(
    model: nn.Module,
    tokenizer: LoadedTokenizer,
    prompt: Prompt,
    config: SamplingConfig | None = None,
    *,
    chat: bool | None = None,
    system: str | None = None,
    logprobs: bool = False,
    constraint: Constraint | None = None,
) -> Completion:
    """The completion of one prompt; see `stream`."""
    return generate_many(
        model,
        tokenizer,
        [prompt],
        config,
        chat=chat,
        system=system,
        logprobs=logprobs,
        constraint=constraint,
    )[0]


def generate_many(
    model: nn.Module,
    tokenizer: LoadedTokenizer,
    prompts: Sequence[Prompt],
    config: SamplingConfig | None = None,
    *,
    chat: bool | None = None,
    system: str | None = None,
    logprobs: bool = False,
    batch_rows: int = BATCH_ROWS,
    constraint: Constraint | None = None,
) -> list[Completion]:
    """Completions of many prompts in their order, decoded together, at most `batch_rows` at once.

    Rows that end make room for rows that wait. What a row gets depends on its prompt, its place in
    `prompts` and the seed, not on the rows beside it, but for ties in the last bits: the first row
    is what `generate` and `stream` give, and each what `rollouts` gives for that prompt."""
    config = _with_seed(config or SamplingConfig())
    began = time.perf_counter()
    chat = expects_chat(model) if chat is None and system is None else chat
    encoded = [encode_prompt(tokenizer, prompt, chat=chat, system=system) for prompt in prompts]
    if not encoded:
        return []
    with Decoder(model, tokenizer, most_rows=1 if len(encoded) == 1 else batch_rows) as decoder:
        rows = decoder.submit(
            [
                Request(ids, config, number, constraint=constraint)
                for number, ids in enumerate(encoded)
            ]
        )
        decoder.run(Row.raise_failed)
    seconds = time.perf_counter() - began
    return [_completion(row, seconds, logprobs) for row in rows]


def _with_seed(config: SamplingConfig) -> SamplingConfig:
    return replace(config, seed=global_seed()) if config.seed is None else config


def _completion(row: Row, seconds: float, logprobs: bool) -> Completion:
    reason: Any = row.reason
    scores = tuple(row.logps.tolist()) if logprobs else None
    return Completion(
        row.text,
        tuple(row.ids.tolist()),
        reason,
        len(row.request.ids),
        seconds,
        scores,
        row.problem,
    )


class _Text:
    """The text of a stream: what is certain as tokens come, and what is left at the end."""

    def __init__(self, tokenizer: LoadedTokenizer, stops: Sequence[str]) -> None:
        self._stream, self._stop = TextStream(tokenizer), StopText(stops)
        self._given = ""

    def add(self, token: int) -> str:
        """The text that became certain with a token; may be empty."""
        piece = self._stop.add(self._stream.add(token))
        self._given += piece
        return piece

    def rest(self, whole: str) -> str:
        """What was not given yet of the whole text."""
        return whole[len(self._given) :]
