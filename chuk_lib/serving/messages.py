"""Anthropic's protocol: `/v1/messages`, and `/v1/messages/count_tokens`."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.inference.text import decode
from chuk_lib.serving import answers, prompts, reading, tools
from chuk_lib.serving.answers import Desk, event
from chuk_lib.serving.chat import Voice, pieces
from chuk_lib.serving.engine import News
from chuk_lib.serving.errors import Refused
from chuk_lib.serving.models import Served

_TEXT: reading.Table = {
    "type": reading.anything,
    "text": reading.text,
    "cache_control": reading.anything,
    "citations": reading.only([], why="they are not shown to the model"),
}
_USE: reading.Table = {
    "type": reading.anything,
    "id": reading.text,
    "name": reading.text,
    "input": reading.obj,
    "cache_control": reading.anything,
}
_RESULT: reading.Table = {
    "type": reading.anything,
    "tool_use_id": reading.text,
    "content": lambda value, where: _plain(value, where),
    "is_error": reading.flag,
    "cache_control": reading.anything,
}
_TOOL: reading.Table = {
    "type": reading.one_of("custom"),
    "name": reading.text,
    "description": reading.text,
    "input_schema": reading.obj,
    "cache_control": reading.anything,
    "strict": reading.flag,
    "eager_input_streaming": reading.flag,
}
_MESSAGE: reading.Table = {"role": reading.one_of("user", "assistant"), "content": reading.anything}
_CHOICE: reading.Table = {
    "type": reading.one_of("auto", "any", "tool", "none"),
    "name": reading.text,
    "disable_parallel_tool_use": reading.flag,
}
_COUNTED: reading.Table = {
    "model": reading.text,
    "messages": lambda value, where: _messages(value, where),
    "system": lambda value, where: _plain(value, where),
    "tools": lambda value, where: _tools(value, where),
    "tool_choice": lambda value, where: reading.read(
        reading.obj(value, where), _CHOICE, f"{where}."
    ),
    "thinking": lambda value, where: reading.read(
        reading.obj(value, where),
        {"type": reading.only("disabled", why="only `disabled` is possible")},
        f"{where}.",
    ),
}
_FIELDS: reading.Table = {
    **_COUNTED,
    **answers.SAMPLING,
    "max_tokens": reading.whole(1, 1 << 24),
    "stop_sequences": answers.stop_texts,
    "stream": reading.flag,
    "metadata": reading.obj,
    "service_tier": reading.only("auto", "standard_only", why="there is one way to answer"),
}


def read_messages(desk: Desk, body: Mapping[str, Any]) -> MessagePlan:
    """The plan of a request. Raises Refused for what is wrong with it."""
    fields = reading.read(body, _FIELDS)
    served, offered, ids = _prompt(desk, fields)
    constraint = tools.forced_call(served, offered) if offered.forced else None
    stop = fields.get("stop_sequences", ())
    config = answers.sampling(fields, reading.need(fields, "max_tokens"), stop)
    stream = fields.get("stream", False)
    requests = answers.requests_of([ids], config, 1, stream=stream, constraint=constraint)
    return MessagePlan(served, requests, stream, offered)


def count_tokens(desk: Desk, body: Mapping[str, Any]) -> dict[str, Any]:
    """How many tokens a request's prompt has."""
    _, _, ids = _prompt(desk, reading.read(body, _COUNTED))
    return {"input_tokens": len(ids)}


def _prompt(desk: Desk, fields: Mapping[str, Any]) -> tuple[Served, tools.Tools, list[int]]:
    served = desk.named(fields)
    choice = fields.get("tool_choice", {"type": "auto"})
    kind = {"any": "required", "tool": "required"}.get(choice.get("type"), choice.get("type"))
    if kind is None or ("name" in choice) != (choice.get("type") == "tool"):
        raise Refused("`tool_choice` needs a type, and a name with the type tool", "tool_choice")
    single = choice.get("disable_parallel_tool_use", False)
    offered = tools.chosen(fields.get("tools", ()), kind, choice.get("name"), single)
    tools.check_calls(served, offered)
    messages = reading.need(fields, "messages")
    if "system" in fields:
        messages = [{"role": "system", "content": fields["system"]}, *messages]
    return served, offered, prompts.chat_ids(served, messages, offered.shown)


@dataclass(frozen=True)
class MessagePlan:
    """A request that was read and found good."""

    served: Served
    requests: Sequence[Request]
    stream: bool
    offered: tools.Tools

    def body(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The answer as one object."""
        (row,) = rows
        said, calls = tools.called_in(self.served, self.offered, row)
        said = said.strip() if calls else said
        content: list[dict[str, Any]] = [{"type": "text", "text": said}] if said else []
        content += [_use(call, json.loads(call.arguments)) for call in calls]
        return {**self._message(content, len(row.ids)), **self._ended(row, calls)}

    async def events(self, news: AsyncIterator[list[News]]) -> AsyncIterator[bytes]:
        """The answer piece by piece."""
        yield _event("message_start", message=self._message([], 0))
        voice, block = Voice(self.served, self.requests[0], self.offered), -1
        async for batch in news:
            ((_, text, _, row),) = pieces(batch, voice.add)
            calls: list[tools.Called] = []
            if row is not None:
                rest, _, calls = voice.end(row)
                text += rest
            if text and block < 0:
                block = 0
                yield _event("content_block_start", index=0, content_block=_TEXT_BLOCK)
            if text:
                delta = {"type": "text_delta", "text": text}
                yield _event("content_block_delta", index=0, delta=delta)
            if row is None:
                continue
            if block == 0:
                yield _event("content_block_stop", index=0)
            for call in calls:
                block += 1
                for made in _call_events(block, call):
                    yield made
            usage = {"output_tokens": len(row.ids)}
            yield _event("message_delta", delta=self._ended(row, calls), usage=usage)
        yield _event("message_stop")

    def _message(self, content: list[dict[str, Any]], written: int) -> dict[str, Any]:
        return {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": self.served.name,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": len(self.requests[0].ids), "output_tokens": written},
        }

    def _ended(self, row: Row, calls: Sequence[tools.Called]) -> dict[str, Any]:
        stop = self._stop_text(row) if row.reason == "stop" else None
        if calls:
            reason = "tool_use"
        elif row.reason == "length":
            reason = "max_tokens"
        else:
            reason = "end_turn" if stop is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": stop}

    def _stop_text(self, row: Row) -> str | None:
        beyond = decode(self.served.tokenizer, row.ids.tolist())[len(row.text) :]
        return next((one for one in row.request.config.stop if beyond.startswith(one)), None)


_TEXT_BLOCK = {"type": "text", "text": ""}


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


def _call_events(block: int, call: tools.Called) -> list[bytes]:
    delta = {"type": "input_json_delta", "partial_json": call.arguments}
    return [
        _event("content_block_start", index=block, content_block=_use(call, {})),
        _event("content_block_delta", index=block, delta=delta),
        _event("content_block_stop", index=block),
    ]


def _use(call: tools.Called, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _tools(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Anthropic's tools in OpenAI's form."""
    found = []
    for at, one in enumerate(reading.items(reading.obj, 128)(value, where)):
        tool = reading.read(one, _TOOL, f"{where}[{at}].")
        inner: dict[str, Any] = {key: tool[key] for key in ("name", "description") if key in tool}
        if "input_schema" in tool:
            inner["parameters"] = tool["input_schema"]
        found.append({"type": "function", "function": inner})
    return tools.offered(found, where)


def _messages(value: Any, where: str) -> list[prompts.Message]:
    """Anthropic's messages as chat templates take them: results of tools are messages of their
    own there."""
    found: list[prompts.Message] = []
    for at, one in enumerate(reading.items(reading.obj, 100_000, 1)(value, where)):
        here = f"{where}[{at}]"
        message = reading.read(one, _MESSAGE, f"{here}.")
        role = reading.need(message, "role")
        content = reading.need(message, "content")
        if isinstance(content, str):
            found.append({"role": role, "content": reading.text(content, f"{here}.content")})
        else:
            found += _blocks(role, content, f"{here}.content")
    return found


def _blocks(role: str, content: Any, where: str) -> list[prompts.Message]:
    said: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[prompts.Message] = []
    for at, block in enumerate(reading.items(reading.obj, 10_000, 1)(content, where)):
        here = f"{where}[{at}]"
        kind = block.get("type")
        if kind == "text":
            said.append(reading.need(reading.read(block, _TEXT, f"{here}."), "text"))
        elif kind == "tool_use" and role == "assistant":
            use = reading.read(block, _USE, f"{here}.")
            function = {"name": reading.need(use, "name"), "arguments": use.get("input", {})}
            calls.append({"type": "function", "id": use.get("id", ""), "function": function})
        elif kind == "tool_result" and role == "user":
            result = reading.read(block, _RESULT, f"{here}.")
            own = {"role": "tool", "content": result.get("content", "")}
            results.append({**own, "tool_call_id": reading.need(result, "tool_use_id")})
        else:
            shown = kind[:40] if isinstance(kind, str) else reading.kind_of(kind)
            raise Refused(f"`{here}`: a block of type `{shown}` is not read here", here)
    message: prompts.Message = {"role": role, "content": "".join(said)}
    if calls:
        message["tool_calls"] = calls
    return [*results, *([message] if said or calls else [])]


def _plain(value: Any, where: str) -> str:
    """Text, or blocks that are text."""
    if isinstance(value, str):
        return reading.text(value, where)
    found = []
    for at, block in enumerate(reading.items(reading.obj, 10_000)(value, where)):
        here = f"{where}[{at}]"
        if block.get("type") != "text":
            raise Refused(f"`{here}`: only text is read here", here)
        found.append(reading.need(reading.read(block, _TEXT, f"{here}."), "text"))
    return "\n".join(found)
