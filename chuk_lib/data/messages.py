"""Messages as rows hold them (OpenAI's role/content, ShareGPT's from/value) made into what chat templates read."""

from __future__ import annotations

import json
from typing import Any

from chuk_lib.data.types import Source, kind_of
from chuk_lib.errors import DataError

ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "function": "tool", "observation": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip
"""Speakers of ShareGPT files by the role they have in chat templates."""
_EXAMPLE = '{"role": "user", "content": "…"}'


def parse(value: Any, name: str, source: Source) -> list[dict[str, Any]]:
    """The messages of one column. Raises DataError naming row and message when it is not a list of messages."""
    found = from_json(value, name, source)
    if not isinstance(found, list) or not found:
        kind = "an empty list" if found == [] else kind_of(found)
        raise DataError(f"{source}: `{name}` should be a list of messages, not {kind}", f"a message is {_EXAMPLE}")
    return [_message(item, f"{source}: message {number} of `{name}`") for number, item in enumerate(found, 1)]


def from_json(value: Any, name: str, where: Source | str) -> Any:
    """A column that may hold JSON as a string, as CSV files and TRL's `tools` do."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except ValueError as error:
        raise DataError(f"{where}: `{name}` is text that is not JSON: {error}", "write it as JSON") from None
    except RecursionError:
        raise DataError(f"{where}: `{name}` is JSON that is nested too deeply", "write it flatter") from None


def has_tool_calls_as_text(messages: list[dict[str, Any]]) -> bool:
    """Whether arguments of tool calls are JSON strings, as in OpenAI's API."""
    return any(isinstance(call.get("arguments"), str) for message in messages for call in _functions(message))


def called(message: dict[str, Any]) -> list[str]:
    """The names of the tools that a message calls."""
    return [str(call["name"]) for call in _functions(message) if "name" in call]


def with_parsed_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies whose tool calls have arguments as objects: most templates print them with `tojson`, which would quote
    a string a second time."""
    copies = json.loads(json.dumps(messages))
    for message in copies:
        for call in _functions(message):
            if isinstance(call.get("arguments"), str):
                try:
                    call["arguments"] = json.loads(call["arguments"] or "{}")
                except ValueError:
                    continue  # text that is no JSON is what the model really wrote
    return list(copies)


def _functions(message: dict[str, Any]) -> list[dict[str, Any]]:
    calls = [call for call in message.get("tool_calls") or () if isinstance(call, dict)]
    return [call["function"] if isinstance(call.get("function"), dict) else call for call in calls]


def _message(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise DataError(f"{where} is {kind_of(item)}, not an object", f"a message is {_EXAMPLE}")
    renamed = {"from": "role", "value": "content"}
    message: dict[str, Any] = {
        renamed.get(str(key), str(key)): value for key, value in item.items() if value is not None
    }
    role = message.get("role")
    if not isinstance(role, str):
        raise DataError(f"{where} has no `role`", f"a message is {_EXAMPLE}")
    message["role"] = ROLES.get(role, role)
    if "content" not in message:
        if not message.get("tool_calls"):
            raise DataError(f"{where} has no `content`", f"a message is {_EXAMPLE}")
        message["content"] = ""
    message["content"] = _content(message["content"], where)
    if "tool_calls" in message:
        message["tool_calls"] = from_json(message["tool_calls"], "tool_calls", where)
    return message


def _content(content: Any, where: str) -> str:
    """Text, also from OpenAI's list of parts; chuk trains on text only."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        others = [str(part.get("type")) for part in content if not isinstance(part.get("text"), str)]
        if not others:
            return "".join(part["text"] for part in content)
        raise DataError(f"{where} holds a part of type `{others[0]}`", "only text can be trained on")
    raise DataError(f"{where}: `content` should be text, not {kind_of(content)}", f"a message is {_EXAMPLE}")
