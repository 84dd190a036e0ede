"""What a request says to the ids that are continued, each refused before it costs anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chuk_lib.errors import ChukError
from chuk_lib.inference.prompts import encode_prompt
from chuk_lib.serving import reading
from chuk_lib.serving.errors import Refused
from chuk_lib.serving.models import Served

Message = dict[str, Any]
_PART = {
    "type": reading.one_of("text", "input_text", "output_text"),
    "text": reading.text,
    "cache_control": reading.anything,
}
_CALL = {
    "id": reading.text,
    "type": reading.one_of("function"),
    "function": reading.obj,
    "index": reading.anything,
}
_MESSAGE: reading.Table = {
    "role": reading.one_of("system", "developer", "user", "assistant", "tool"),
    "content": lambda value, where: content_text(value, where),
    "name": reading.text,
    "tool_calls": lambda value, where: [
        _call(one, f"{where}[{at}]") for at, one in enumerate(_a_list(value, where))
    ],
    "tool_call_id": reading.text,
    "reasoning_content": reading.text,
    "refusal": reading.only("", why="a model of one's own refuses in its text"),
    "annotations": reading.only([], why="they are not shown to the model"),
}


def content_text(value: Any, where: str) -> str:
    """Text, or parts that are text. Raises Refused for pictures and all else: nothing is
    fetched."""
    if not isinstance(value, list):
        return reading.text(value, where)
    found = []
    for at, part in enumerate(value):
        here = f"{where}[{at}]"
        kind = reading.obj(part, here).get("type")
        if kind not in ("text", "input_text", "output_text"):
            shown = kind[:40] if isinstance(kind, str) else reading.kind_of(kind)
            raise Refused(f"`{here}`: only text is read, not `{shown}`", here)
        found.append(reading.need(reading.read(part, _PART, f"{here}."), "text"))
    return "".join(found)


def messages_of(value: Any, where: str) -> list[Message]:
    """OpenAI's messages as chat templates take them."""
    found = []
    for at, one in enumerate(_a_list(value, where)):
        here = f"{where}[{at}]"
        message = reading.read(reading.obj(one, here), _MESSAGE, f"{here}.")
        if "role" not in message:
            raise Refused(f"`{here}` has no role", here)
        if "content" not in message and "tool_calls" not in message:
            raise Refused(f"`{here}` has no content", here)
        message.setdefault("content", "")
        message["role"] = {"developer": "system"}.get(message["role"], message["role"])
        found.append(message)
    return found


def chat_ids(
    served: Served,
    messages: Sequence[Message],
    tools: list[dict[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Messages through the chat template. Raises Refused where there is none, or it refuses."""
    if not served.chats:
        raise Refused(
            "this model takes no messages: it has no chat template, or was not trained with it;"
            " ask /v1/completions",
            "messages",
        )
    size = sum(len(str(one.get("content"))) for one in messages)
    check_size(served, size, "messages")
    try:
        ids = encode_prompt(served.tokenizer, list(messages), tools=tools, options=options)
    except ChukError as error:
        raise Refused(error.message, "messages") from None
    return check_ids(served, ids, "messages")


def text_ids(served: Served, text: str, where: str) -> list[int]:
    """Plain text as ids."""
    check_size(served, len(text), where)
    try:
        ids = encode_prompt(served.tokenizer, text, chat=False)
    except ChukError as error:
        raise Refused(error.message, where) from None
    return check_ids(served, ids, where)


def check_size(served: Served, characters: int, where: str) -> None:
    """Refuse a text that cannot fit, before it is tokenized."""
    if served.context is not None and characters > served.context * served.longest_token:
        raise Refused(
            f"the prompt is too long: {characters:,} characters, and the model's context holds"
            f" {served.context:,} tokens",
            where,
            code="context_length_exceeded",
        )


def check_ids(served: Served, ids: Sequence[int], where: str) -> list[int]:
    """Refuse ids that the embedding has no row for (MLX would read memory beyond it), and prompts
    that fill the context."""
    if not len(ids):
        raise Refused("the prompt is empty", where)
    if max(ids) >= served.vocabulary or min(ids) < 0:
        wrong = next(one for one in ids if not 0 <= one < served.vocabulary)
        raise Refused(
            f"`{where}` has the token id {str(wrong)[:20]}: ids are from 0 to"
            f" {served.vocabulary - 1}",
            where,
        )
    if served.context is not None and len(ids) >= served.context:
        raise Refused(
            f"the prompt has {len(ids):,} tokens, the model's context holds {served.context:,}",
            where,
            code="context_length_exceeded",
        )
    return list(ids)


def prompts_of(served: Served, value: Any, where: str) -> list[list[int]]:
    """A prompt or several: text, or ids."""
    if isinstance(value, str):
        return [text_ids(served, reading.text(value, where), where)]
    if not isinstance(value, list) or not value:
        raise Refused(
            f"`{where}` must be text, a list of texts, token ids or a list of lists of them, not"
            " empty",
            where,
        )
    if _are_ids(value):
        return [check_ids(served, value, where)]
    if len(value) > MOST_PROMPTS:
        raise Refused(f"`{where}` has {len(value)} prompts, it may have {MOST_PROMPTS}", where)
    return [_one(served, one, f"{where}[{at}]") for at, one in enumerate(value)]


MOST_PROMPTS = 128


def _one(served: Served, value: Any, where: str) -> list[int]:
    if isinstance(value, str):
        return text_ids(served, reading.text(value, where), where)
    if isinstance(value, list) and value and _are_ids(value):
        return check_ids(served, value, where)
    raise Refused(f"`{where}` must be text or token ids, not empty", where)


def _are_ids(value: list[Any]) -> bool:
    return {type(one) for one in value} == {int} and max(map(abs, value)) <= np.iinfo(np.int32).max


def _a_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise Refused(f"`{where}` must be a list that is not empty", where)
    return value


def _call(value: Any, where: str) -> dict[str, Any]:
    """A call of a tool with its arguments as an object, which is what templates read."""
    call = reading.read(reading.obj(value, where), _CALL, f"{where}.")
    inner = call.get("function") or {}
    table: reading.Table = {"name": reading.text, "arguments": reading.anything}
    function = reading.read(inner, table, f"{where}.function.")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if "name" not in function or not isinstance(arguments, dict):
        here = f"{where}.function"
        raise Refused(f"`{here}` must have a name and arguments that are a JSON object", here)
    return {
        "type": "function",
        **({"id": call["id"]} if "id" in call else {}),
        "function": {"name": function["name"], "arguments": arguments},
    }
