"""OpenAI's older protocol: `/v1/completions`, texts or ids that are continued as they are."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.inference.text import decode
from chuk_lib.serving import answers, prompts, reading
from chuk_lib.serving.answers import Desk, event
from chuk_lib.serving.chat import COMMON, pieces, usage_wanted
from chuk_lib.serving.engine import News
from chuk_lib.serving.errors import Refused
from chuk_lib.serving.models import Served
from chuk_lib.serving.texts import TextSoFar, Told, told_of

_DEFAULT_TOKENS = 16  # OpenAI's
_FIELDS: reading.Table = {
    **COMMON,
    "prompt": lambda value, where: value,
    "logprobs": reading.whole(0, 20),
    "echo": reading.flag,
    "best_of": reading.whole(1, answers.MOST_ROWS),
    "suffix": reading.only("", why="no text is written into the middle of another"),
}


def read_completion(desk: Desk, body: Mapping[str, Any]) -> CompletionPlan:
    """The plan of a request. Raises Refused for what is wrong with it."""
    fields = reading.read(body, _FIELDS)
    served = desk.named(fields)
    found = prompts.prompts_of(served, reading.need(fields, "prompt"), "prompt")
    answers.check_bias(served, fields.get("logit_bias"))
    n, stream = fields.get("n", 1), fields.get("stream", False)
    if fields.get("best_of", n) != n:
        raise Refused("`best_of` must be `n`: all that is written is returned", "best_of")
    if fields.get("echo") and "logprobs" in fields:
        raise Refused("`echo` with `logprobs`: prompts are not scored", "echo")
    config = answers.sampling(
        fields, fields.get("max_tokens", _DEFAULT_TOKENS), fields.get("stop", ())
    )
    requests = answers.requests_of(
        found,
        config,
        n,
        stream=stream,
        bias=fields.get("logit_bias"),
        tops=fields.get("logprobs", 0),
    )
    before = _echoed(served, body["prompt"], n) if fields.get("echo") else []
    return CompletionPlan(
        served,
        requests,
        stream,
        fields.get("logprobs"),
        usage_wanted(fields),
        before or [""] * len(requests),
    )


def _echoed(served: Served, given: Any, n: int) -> list[str]:
    """For each row its prompt as it was given; ids as text."""
    prompts = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    texts = [one if isinstance(one, str) else decode(served.tokenizer, one) for one in prompts]
    return [text for text in texts for _ in range(n)]


@dataclass(frozen=True)
class CompletionPlan:
    """A completion that was read and found good; `before`: what stands before each answer."""

    served: Served
    requests: Sequence[Request]
    stream: bool
    logprobs: int | None
    usage: bool
    before: Sequence[str]

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.served.name,
        }

    def body(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The answer as one object."""
        choices = []
        for at, row in enumerate(rows):
            told = told_of(self.served.tokenizer, row) if self.logprobs is not None else []
            text = self.before[at] + row.text
            choices.append(self._choice(at, text, told, len(self.before[at]), row))
        return {**self._head(), "choices": choices, "usage": answers.usage_of(rows)}

    async def events(self, news: AsyncIterator[list[News]]) -> AsyncIterator[bytes]:
        """The answer piece by piece."""
        head = self._head()
        ended: list[Row] = []
        words = [TextSoFar(self.served.tokenizer, one.config.stop) for one in self.requests]
        places = [len(text) for text in self.before]
        usage: dict[str, Any] = {"usage": None} if self.usage else {}

        def chunk(at: int, text: str, told: list[Told], row: Row | None = None) -> bytes:
            choice = self._choice(at, text, told, places[at], row)
            places[at] += len("".join(one.text for one in told))
            return event({**head, "choices": [choice], **usage})

        for at, text in enumerate(self.before):
            if text:
                yield chunk(at, text, [])

        def add(one: News) -> tuple[str, list[Told]]:
            return words[one.index].add(one.token, one.logp, one.tops)

        async for batch in news:
            for at, text, told, row in pieces(batch, add):
                if row is not None:
                    ended.append(row)
                    rest, more = words[at].end(row)
                    text, told = text + rest, told + more
                if text or row is not None or (told and self.logprobs is not None):
                    yield chunk(at, text, told, row)
        if self.usage:
            yield event({**head, "choices": [], "usage": answers.usage_of(ended)})
        yield event("[DONE]")

    def _choice(
        self, at: int, text: str, told: Sequence[Told], place: int, row: Row | None
    ) -> dict[str, Any]:
        return {
            "index": at,
            "text": text,
            "logprobs": None if self.logprobs is None else _logprobs(told, place),
            "finish_reason": None if row is None else answers.reason_of(row),
        }


def _by_text(one: Told) -> dict[str, float]:
    """The likeliest by their texts, as the protocol wants it, and the token that was drawn. Of
    tokens with the same text (parts of characters) the likeliest has it, the others their id."""
    found: dict[str, float] = {}
    drawn = () if any(top[0] == one.id for top in one.tops) else ((one.id, one.text, one.logprob),)
    for token, text, logp in (*one.tops, *drawn):
        found[f"token_id:{token}" if text in found else text] = logp
    return found


def _logprobs(told: Sequence[Told], place: int) -> dict[str, Any]:
    """The tokens as OpenAI's older protocol writes them; `place`: characters before the first."""
    places = []
    for one in told:
        places.append(place)
        place += len(one.text)
    return {
        "tokens": [one.text for one in told],
        "token_logprobs": [max(one.logprob, -9999.0) for one in told],
        "top_logprobs": [_by_text(one) for one in told],
        "text_offset": places,
        "token_ids": [one.id for one in told],
    }
