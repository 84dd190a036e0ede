"""From a request to rows of the decoder, and what is common to the protocols: names of models,
sampling settings, news of rows until all have ended."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from chuk_lib.errors import ChukError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.guides import Constraint
from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.serving import reading
from chuk_lib.serving.engine import EngineLoop, Errand, News
from chuk_lib.serving.errors import Refused
from chuk_lib.serving.models import Served
from chuk_lib.serving.settings import ServeSettings

MOST_ROWS = 128
"""Answers to one request at most: its prompts times `n`."""
MOST_STOPS = 16
_MOST_TOKENS = 1 << 24
SAMPLING: reading.Table = {
    "temperature": reading.number(0),
    "top_p": reading.number(0, 1),
    "top_k": reading.whole(0, _MOST_TOKENS),
    "min_p": reading.number(0, 1),
    "repetition_penalty": reading.number(0),
    "frequency_penalty": reading.number(-2, 2),
    "presence_penalty": reading.number(-2, 2),
    "seed": reading.whole(0, 2**32 - 1),
}
"""What every protocol reads alike; Anthropic's has no seed, and takes one all the same."""


@dataclass(frozen=True)
class Desk:
    """What answers need: the settings, the engine, and what it serves by name."""

    settings: ServeSettings
    engine: EngineLoop
    served: Mapping[str, Served]

    def named(self, fields: Mapping[str, Any]) -> Served:
        """The model that a request names, the first when it names none."""
        name = fields.get("model")
        if name is None:
            return next(iter(self.served.values()))
        if name not in self.served:
            known = ", ".join(f"`{one}`" for one in self.served)
            raise Refused(
                f"there is no model `{name[:80]}` here, only {known}",
                "model",
                status=404,
                code="model_not_found",
            )
        return self.served[name]


class Plan(Protocol):
    """A request that was read whole and found good: its rows, and how they become an answer."""

    @property
    def served(self) -> Served:
        """The model that answers."""

    @property
    def requests(self) -> Sequence[Request]:
        """Its rows."""

    @property
    def stream(self) -> bool:
        """Whether the answer comes piece by piece."""

    def body(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The answer once all rows have ended."""

    def events(self, news: AsyncIterator[list[News]]) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""


def sampling(
    fields: Mapping[str, Any], max_tokens: int, stop: Sequence[str] = ()
) -> SamplingConfig:
    """Settings of a request; what it leaves open is OpenAI's default, and the seed is drawn."""
    own = {name: fields[name] for name in SAMPLING if name in fields}
    given = {"temperature": 1.0, "seed": secrets.randbits(32), **own}
    try:
        return SamplingConfig(max_tokens=max_tokens, stop=tuple(stop), **given)
    except ChukError as error:
        raise Refused(error.message, error.message.split()[0]) from None


def limit_of(desk: Desk, fields: Mapping[str, Any], *names: str) -> int:
    """How many tokens may be written, by the first of these fields that is there."""
    given = [fields[name] for name in names if name in fields]
    if len(set(given)) > 1:
        raise Refused(f"`{names[0]}` and `{names[1]}` differ: give one of them", names[0])
    return int(given[0]) if given else desk.settings.max_tokens


def requests_of(
    prompts: Sequence[list[int]],
    config: SamplingConfig,
    n: int,
    *,
    stream: bool,
    bias: Mapping[int, float] | None = None,
    tops: int = 0,
    constraint: Constraint | None = None,
) -> list[Request]:
    """`n` rows for each prompt; the first of each is what `chuk infer` writes with that seed."""
    if len(prompts) * n > MOST_ROWS:
        raise Refused(f"{len(prompts) * n} answers to one request, {MOST_ROWS} at most", "n")
    first = Request([], config, eager=stream, bias=bias, tops=tops, constraint=constraint)
    return [replace(first, ids=ids, member=member) for ids in prompts for member in range(n)]


def stop_texts(value: Any, where: str) -> list[str]:
    """One text or several, none of them empty."""
    found = reading.one_or_more(reading.text, MOST_STOPS)(value, where)
    if "" in found:
        raise Refused(f"`{where}` holds an empty text", where)
    return list(found)


def logit_bias(value: Any, where: str) -> dict[int, float]:
    """Token ids, as JSON's keys, to what is added to their logits."""
    found = {}
    for key, given in reading.obj(value, where).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise Refused(f"`{where}` has the key `{key[:40]}`, which is no token id", where)
        found[int(key)] = reading.number(-100, 100)(given, f"{where}.{key}")
    return found


def check_bias(served: Served, bias: Mapping[int, float] | None) -> None:
    """Refuse ids beyond the vocabulary: MLX does not look."""
    wrong = next((one for one in bias or () if one >= served.vocabulary), None)
    if wrong is not None:
        raise Refused(
            f"`logit_bias` has the token id {wrong}: ids are from 0 to {served.vocabulary - 1}",
            "logit_bias",
        )


def reason_of(row: Row) -> str:
    """OpenAI's word for why a row ended."""
    return "length" if row.reason == "length" else "stop"


def usage_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Tokens of prompts, each counted once, with those that were remembered, and of answers."""
    lengths = {id(row.request.ids): len(row.request.ids) for row in rows}
    # Rows of one prompt may have begun at different times, and the later ones ask nobody.
    cached = dict.fromkeys(lengths, 0)
    for row in rows:
        cached[id(row.request.ids)] = max(cached[id(row.request.ids)], row.cached)
    prompts, tokens = sum(lengths.values()), sum(len(row.ids) for row in rows)
    return {
        "prompt_tokens": prompts,
        "completion_tokens": tokens,
        "total_tokens": prompts + tokens,
        "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
    }


def event(data: Mapping[str, Any] | str, name: str | None = None) -> bytes:
    """A server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


async def news_of(desk: Desk, plan: Plan) -> AsyncGenerator[list[News], None]:
    """News of all rows until the last has ended, as many at once as have come: whoever is slower
    than the engine sends larger pieces. Raises Refused when there are too many rows, when one
    fails, or when the time is over. Rows leave when the caller does."""
    engine, count = desk.engine, len(plan.requests)
    if engine.waiting + count > max(desk.settings.max_waiting, count):
        raise Refused("too many requests wait; try again in a moment", status=429)
    errand = Errand(plan.served.name, plan.requests, plan.stream)
    loop = asyncio.get_running_loop()
    until, left = loop.time() + desk.settings.timeout, count
    engine.submit(errand)
    try:
        while left:
            batch = await _next(errand, until - loop.time(), desk)
            for news in batch:
                if news.error is not None:
                    raise news.error
                left -= news.row is not None
                _check_form(news.row)
            yield batch
    finally:
        if left:
            engine.cancel(errand)
        engine.closed(errand)


def _check_form(row: Row | None) -> None:
    """Refuse to give what ended by itself and is not what it was held to: what llguidance lets
    pass, the finished text was checked for."""
    if row is not None and row.problem and row.reason == "eos":
        raise Refused(f"the answer is not what was asked for: {row.problem}", status=500)


async def rows_of(desk: Desk, plan: Plan) -> list[Row]:
    """All rows, in the order of the requests, once they have ended. Raises as `news_of`."""
    rows: dict[int, Row] = {}
    async for batch in news_of(desk, plan):
        rows |= {news.index: news.row for news in batch if news.row is not None}
    return [rows[at] for at in range(len(plan.requests))]


async def _next(errand: Errand, seconds: float, desk: Desk) -> list[News]:
    """All news that are there; where there are none, the next."""
    found: list[News] = []
    with suppress(asyncio.QueueEmpty):
        while True:
            found.append(errand.news.get_nowait())
    if found:
        return found
    try:
        return [await asyncio.wait_for(errand.news.get(), max(0.0, seconds))]
    except TimeoutError:
        limit = desk.settings.timeout
        raise Refused(f"it took more than {limit:g} seconds", status=504) from None
