"""OpenAI's chat: `/v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chuk_lib.inference.decoder.guides import Constraint
from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.inference.text import StopText
from chuk_lib.serving import answers, prompts, reading, tools
from chuk_lib.serving.answers import Desk, event
from chuk_lib.serving.engine import News
from chuk_lib.serving.errors import Refused
from chuk_lib.serving.models import Served
from chuk_lib.serving.texts import TextSoFar, Told, told_of

_OURS = "this server has one way to answer"
_RESERVED = {
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "tools",
    "return_dict",
    "chat_template",
    "conversation",
    "messages",
}
BOOKS: reading.Table = {
    "user": reading.text,
    "metadata": reading.obj,
    "safety_identifier": reading.text,
    "prompt_cache_key": reading.text,
    "store": reading.only(False, why="nothing is stored here"),
    "service_tier": reading.only("auto", "default", why=_OURS),
}
"""Fields by which a caller is known; they change no answer."""
COMMON: reading.Table = {
    "model": reading.text,
    "max_tokens": reading.whole(1, 1 << 24),
    "stop": answers.stop_texts,
    "stream": reading.flag,
    "stream_options": lambda value, where: reading.read(
        reading.obj(value, where),
        {
            "include_usage": reading.flag,
            "include_obfuscation": reading.only(False, why="nothing is hidden here"),
        },
        f"{where}.",
    ),
    "n": reading.whole(1, answers.MOST_ROWS),
    "logit_bias": answers.logit_bias,
    **answers.SAMPLING,
    **BOOKS,
}
"""What both of OpenAI's protocols read alike."""


def _template_options(value: Any, where: str) -> dict[str, Any]:
    options = reading.obj(value, where)
    wrong = next((name for name in options if name in _RESERVED or not name.isidentifier()), None)
    if wrong is not None:
        raise Refused(f"`{where}.{wrong[:40]}` is not a template's own", where)
    return options


_FIELDS: reading.Table = {
    **COMMON,
    "messages": prompts.messages_of,
    "max_completion_tokens": reading.whole(1, 1 << 24),
    "logprobs": reading.flag,
    "top_logprobs": reading.whole(0, 20),
    "response_format": reading.obj,
    "tools": tools.offered,
    "tool_choice": reading.anything,
    "parallel_tool_calls": reading.flag,
    "chat_template_kwargs": _template_options,
    "modalities": reading.only(["text"], why="only text is written"),
    "reasoning_effort": reading.only("none", why="see `chat_template_kwargs`"),
}
_SCHEMA: reading.Table = {
    "name": reading.text,
    "description": reading.text,
    "schema": reading.anything,
    "strict": reading.flag,
}


def read_chat(desk: Desk, body: Mapping[str, Any]) -> ChatPlan:
    """The plan of a request. Raises Refused for what is wrong with it."""
    fields = reading.read(body, _FIELDS)
    served = desk.named(fields)
    offered = _tools_of(fields)
    messages = reading.need(fields, "messages")
    tools.check_calls(served, offered)
    options = fields.get("chat_template_kwargs")
    ids = prompts.chat_ids(served, messages, offered.shown, options)
    constraint = _constraint(served, offered, fields.get("response_format"))
    answers.check_bias(served, fields.get("logit_bias"))
    stop = fields.get("stop", ())
    config = answers.sampling(
        fields, answers.limit_of(desk, fields, "max_completion_tokens", "max_tokens"), stop
    )
    if "top_logprobs" in fields and not fields.get("logprobs"):
        raise Refused("`top_logprobs` needs `logprobs`: true", "top_logprobs")
    stream = fields.get("stream", False)
    requests = answers.requests_of(
        [ids],
        config,
        fields.get("n", 1),
        stream=stream,
        bias=fields.get("logit_bias"),
        tops=fields.get("top_logprobs", 0),
        constraint=constraint,
    )
    usage = usage_wanted(fields)
    return ChatPlan(served, requests, stream, fields.get("logprobs", False), usage, offered)


def usage_wanted(fields: Mapping[str, Any]) -> bool:
    """Whether a stream ends with its usage. Raises Refused for options of a stream without one."""
    if "stream_options" in fields and not fields.get("stream"):
        raise Refused("`stream_options` needs `stream`: true", "stream_options")
    return bool(fields.get("stream_options", {}).get("include_usage"))


def _tools_of(fields: Mapping[str, Any]) -> tools.Tools:
    given = fields.get("tools", ())
    choice, name = fields.get("tool_choice", "auto"), None
    if isinstance(choice, dict):
        table: reading.Table = {"type": reading.one_of("function"), "function": reading.obj}
        inner = reading.read(choice, table, "tool_choice.").get("function") or {}
        name = reading.need(reading.read(inner, {"name": reading.text}, "tool_choice."), "name")
        choice = "required"
    choice = reading.one_of("none", "auto", "required")(choice, "tool_choice")
    if choice == "auto" and not given and "tool_choice" in fields:
        return tools.Tools()
    single = fields.get("parallel_tool_calls") is False
    return tools.chosen(given, choice, name, single)


def _constraint(served: Served, offered: tools.Tools, form: Any) -> Constraint | None:
    if offered.forced:
        return tools.forced_call(served, offered)
    if form is None:
        return None
    where = "response_format"
    table: reading.Table = {
        "type": reading.one_of("text", "json_object", "json_schema"),
        "json_schema": reading.obj,
    }
    fields = reading.read(form, table, f"{where}.")
    kind = reading.need(fields, "type")
    if ("json_schema" in fields) != (kind == "json_schema"):
        raise Refused(f"`{where}`: `json_schema` goes with the type json_schema", where)
    if kind == "text":
        return None
    if offered.offered:
        raise Refused(f"`{where}` cannot be kept while tools may be called", where)
    if kind == "json_object":
        return tools.held_to(served, {"type": "object"}, where)
    inner = reading.read(fields["json_schema"], _SCHEMA, f"{where}.json_schema.")
    return tools.held_to(served, reading.need(inner, "schema"), f"{where}.json_schema.schema")


@dataclass(frozen=True)
class ChatPlan:
    """A chat that was read and found good."""

    served: Served
    requests: Sequence[Request]
    stream: bool
    logprobs: bool
    usage: bool
    offered: tools.Tools

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.served.name,
        }

    def body(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The answer as one object."""
        return {
            **self._head("chat.completion"),
            "choices": [self._choice(at, row) for at, row in enumerate(rows)],
            "usage": answers.usage_of(rows),
        }

    def _choice(self, at: int, row: Row) -> dict[str, Any]:
        said, calls = tools.called_in(self.served, self.offered, row)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": (said.strip() or None) if calls else said,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = [call_object(call) for call in calls]
        told = told_of(self.served.tokenizer, row) if self.logprobs else []
        return {
            "index": at,
            "message": message,
            "logprobs": logprobs_of(told) if self.logprobs else None,
            "finish_reason": finish(row, calls),
        }

    async def events(self, news: AsyncIterator[list[News]]) -> AsyncIterator[bytes]:
        """The answer piece by piece."""
        head = self._head("chat.completion.chunk")
        ended: list[Row] = []
        voices = [Voice(self.served, one, self.offered) for one in self.requests]
        usage: dict[str, Any] = {"usage": None} if self.usage else {}

        def chunk(at: int, delta: dict[str, Any], told: list[Told], reason: Any = None) -> bytes:
            shown = logprobs_of(told) if self.logprobs and (told or delta.get("content")) else None
            choice = {"index": at, "delta": delta, "logprobs": shown, "finish_reason": reason}
            return event({**head, "choices": [choice], **usage})

        for at in range(len(voices)):
            yield chunk(at, {"role": "assistant", "content": ""}, [])
        async for batch in news:
            for at, text, told, row in pieces(batch, lambda one: voices[one.index].add(one)):
                calls: list[tools.Called] = []
                if row is not None:
                    ended.append(row)
                    rest, more, calls = voices[at].end(row)
                    text, told = text + rest, told + more
                if text or (told and self.logprobs):
                    yield chunk(at, {"content": text}, told)
                if calls:
                    shown = [{"index": n, **call_object(call)} for n, call in enumerate(calls)]
                    yield chunk(at, {"tool_calls": shown}, [])
                if row is not None:
                    yield chunk(at, {}, [], finish(row, calls))
        if self.usage:
            yield event({**head, "choices": [], "usage": answers.usage_of(ended)})
        yield event("[DONE]")


Added = Callable[[News], tuple[str, list[Told]]]


def pieces(batch: Sequence[News], add: Added) -> Iterator[tuple[int, str, list[Told], Row | None]]:
    """For each row that has news its index, what `add` makes of its tokens, and the row when it has
    ended."""
    for at in dict.fromkeys(news.index for news in batch):
        own = [news for news in batch if news.index == at]
        made = [add(news) for news in own if news.row is None]
        told = [one for _, some in made for one in some]
        yield at, "".join(text for text, _ in made), told, own[-1].row


class Voice:
    """What is said of one row while it is written: its text, but nothing that may be a call."""

    def __init__(self, served: Served, request: Request, offered: tools.Tools) -> None:
        self._served, self._offered = served, offered
        self._words = TextSoFar(served.tokenizer, request.config.stop)
        self._begin = tools.begins_call(served, offered)
        self._calls = (
            None if self._begin is None else StopText([self._begin] if self._begin else [])
        )
        plain = self._begin and not offered.forced
        self._marks = served.call_marks if plain else {}
        self._said = ""

    def add(self, news: News) -> tuple[str, list[Told]]:
        """The text that is certain, and the tokens that are."""
        text, told = self._words.add(news.token, news.logp, news.tops)
        if news.token in self._marks:
            self._begin = ""  # a call has begun
        return self._say(text), told

    def end(self, row: Row) -> tuple[str, list[Told], list[tools.Called]]:
        """The rest of the text, of the tokens, and the calls."""
        rest, told = self._words.end(row)
        if self._calls is None:
            return rest, told, []
        said, calls = tools.called_in(self._served, self._offered, row)
        left = said[len(self._said) :]  # what was said before the first call is out
        return left.strip() if calls else left, told, calls

    def _say(self, text: str) -> str:
        if self._calls is None:
            return text
        if not self._begin:
            return ""
        piece = self._calls.add(text)
        self._said += piece
        return piece


def finish(row: Row, calls: Sequence[tools.Called]) -> str:
    """OpenAI's word for why a row ended."""
    return "tool_calls" if calls else answers.reason_of(row)


def call_object(call: tools.Called) -> dict[str, Any]:
    """A call as OpenAI writes it."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def logprobs_of(told: Sequence[Told]) -> dict[str, Any]:
    """The tokens as OpenAI writes them, each with its id."""
    return {"content": [_entry(one) for one in told], "refusal": None}


def _entry(one: Told) -> dict[str, Any]:
    tops = [_token(*top) for top in one.tops]
    return {**_token(one.id, one.text, one.logprob), "top_logprobs": tops}


def _token(token: int, text: str, logprob: float) -> dict[str, Any]:
    raw = list(text.encode("utf-8", "replace"))
    return {"id": token, "token": text, "logprob": max(logprob, -9999.0), "bytes": raw}
