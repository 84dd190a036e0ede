"""Calls of tools as rows hold them, in the one form that chat templates read.

    {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}

or the inner object alone.

OpenAI writes the arguments as JSON text and `""` for none; LLaMA-Factory writes the whole call as
the text of a `function_call` turn. Text that is no JSON object is refused with its row: a model
would learn to write it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from chuk_lib.data.types import kind_of
from chuk_lib.errors import DataError

Call = dict[str, Any]
_THOUGHT = re.compile(r"\s*(<think>.*?</think>\s*)?", re.DOTALL)
_HINT = 'a call is {"name": "…", "arguments": {…}}'


def calls_of(value: Any, where: str) -> list[Call]:
    """The calls of a message with arguments that are objects, or JSON text of one as it stood.
    Raises DataError naming what is wrong with one."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
        raise DataError(
            f"{where}: `tool_calls` should be a list of calls, not {kind_of(value)}", _HINT
        )
    return [_call(call, where) for call in value]


def called_in_text(value: Any, where: str) -> tuple[str, list[Call]]:
    """The words before a call that is written as text (a `<think>` block, usually nothing), and the
    calls. Raises DataError for text that is no call."""
    thought, found = "", value
    if isinstance(value, str):
        start = _THOUGHT.match(value)
        thought = start.group() if start is not None else ""
        try:
            found = json.loads(value[len(thought) :])
        except (ValueError, RecursionError):
            raise DataError(
                f"{where} is a call of a tool that is not JSON: {value[:40]!r}", _HINT
            ) from None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(
        isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls
    ):
        raise DataError(f"{where} is a call of a tool without a name", _HINT)
    return thought.lstrip(), [{"type": "function", "function": call} for call in calls]


def functions(message: dict[str, Any]) -> list[Call]:
    """Name and arguments of each call of a message."""
    calls = [call for call in message.get("tool_calls") or () if isinstance(call, dict)]
    return [_inner(call) for call in calls]


def called(message: dict[str, Any]) -> list[str]:
    """The names of the tools that a message calls."""
    return [str(call["name"]) for call in functions(message) if "name" in call]


def tool_names(tools: Iterable[Any] | None) -> list[str]:
    """The names of the tools that a row offers."""
    found = [_inner(tool).get("name") for tool in tools or () if isinstance(tool, dict)]
    return [name for name in found if isinstance(name, str)]


def has_text_arguments(messages: Iterable[dict[str, Any]]) -> bool:
    """Whether arguments of calls are JSON text, as in OpenAI's API."""
    return any(
        isinstance(call.get("arguments"), str)
        for message in messages
        for call in functions(message)
    )


def with_parsed_arguments(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies whose calls have arguments as objects: most templates print them with `tojson`, which
    would quote a text a second time, or go through them with `items`, which takes objects only."""
    return [
        (
            {**message, "tool_calls": [_parsed(call) for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else message
        )
        for message in messages
    ]


def _parsed(call: Call) -> Call:
    inner = _inner(call)
    if not isinstance(inner.get("arguments"), str):
        return call
    made = {**inner, "arguments": json.loads(inner["arguments"])}
    return made if inner is call else {**call, "function": made}


def _inner(call: Call) -> Call:
    function = call.get("function")
    return function if isinstance(function, dict) else call


def _call(call: Call, where: str) -> Call:
    inner = _inner(call)
    if "arguments" not in inner:
        return call
    given = inner["arguments"]
    if given is None or (isinstance(given, str) and not given.strip()):
        given = {}
    _check_arguments(inner, given, where)
    whole = {**inner, "arguments": given}
    return whole if inner is call else {**call, "function": whole}


def _check_arguments(inner: Call, given: Any, where: str) -> None:
    name = str(inner.get("name", "?"))[:60]
    try:
        made = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        raise DataError(
            f"{where} calls `{name}` with arguments that are not JSON: {given[:40]!r}",
            "mend them, or remove the row: a model would learn to write them",
        ) from None
    if not isinstance(made, dict):
        raise DataError(
            f"{where} calls `{name}` with arguments that are {kind_of(made)}, not an object", _HINT
        )
