"""Messages as rows hold them (OpenAI's role/content, ShareGPT's from/value) made into what chat
templates read.

What a message may hold beside role and content: `tool_calls` (see `tool_calls`), OpenAI's older
`function_call`, the `reasoning_content` or `thinking` of the assistant, and `weight` (OpenAI,
Mistral) or `train` (axolotl), which say whether it is learned."""

from __future__ import annotations

import json
from typing import Any

from chuk_lib.data.tokenizers.training_forms import REASONING as REASONING
from chuk_lib.data.tool_calls import called_in_text, calls_of
from chuk_lib.data.types import Source, kind_of
from chuk_lib.errors import DataError

Message = dict[str, Any]

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
"""Speakers of ShareGPT files by the role they have in chat templates."""
_CALLERS = ("function_call", "tool_call")
"""Speakers whose text is a call of a tool as JSON (LLaMA-Factory, ms-swift)."""
_EXAMPLE = '{"role": "user", "content": "…"}'


def parse(value: Any, name: str, source: Source) -> list[Message]:
    """The messages of one column. Raises DataError naming row and message when it is not a list of
    messages."""
    found = from_json(value, name, source)
    if not isinstance(found, list) or not found:
        kind = "an empty list" if found == [] else kind_of(found)
        raise DataError(
            f"{source}: `{name}` should be a list of messages, not {kind}",
            f"a message is {_EXAMPLE}",
        )
    return [
        _message(item, f"{source}: message {number} of `{name}`")
        for number, item in enumerate(found, 1)
    ]


def from_json(value: Any, name: str, where: Source | str) -> Any:
    """A column that may hold JSON as a string, as CSV files and TRL's `tools` do."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except ValueError as error:
        raise DataError(
            f"{where}: `{name}` is text that is not JSON: {error}", "write it as JSON"
        ) from None
    except RecursionError:
        raise DataError(
            f"{where}: `{name}` is JSON that is nested too deeply", "write it flatter"
        ) from None


def is_learned(message: Message) -> bool:
    """Whether a message may be learned: `weight: 0` and `train: false` say that it may not."""
    return bool(message.get("weight", 1)) and bool(message.get("train", True))


def refuse_unlearned(messages: list[Message], name: str, source: Source) -> None:
    """Raise DataError where a message of a completion is not to be learned: preferences weigh whole
    completions."""
    for number, message in enumerate(messages, 1):
        if not is_learned(message):
            key = "weight" if not message.get("weight", 1) else "train"
            raise DataError(
                f"{source}: message {number} of `{name}` has `{key}: {message[key]}`, but"
                " preferences learn whole completions",
                "put what is not learned into `prompt`, or remove the key",
            )


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise DataError(f"{where} is {kind_of(item)}, not an object", f"a message is {_EXAMPLE}")
    renamed = {"from": "role", "value": "content"}
    message: Message = {
        renamed.get(str(key), str(key)): value for key, value in item.items() if value is not None
    }
    speaker = message.get("role")
    if not isinstance(speaker, str):
        raise DataError(f"{where} has no `role`", f"a message is {_EXAMPLE}")
    message["role"] = ROLES.get(speaker, speaker)
    if speaker in _CALLERS and not message.get("tool_calls"):
        message["content"], message["tool_calls"] = called_in_text(message.get("content"), where)
    _read_calls(message, where)
    if "content" not in message:
        if not message.get("tool_calls"):
            raise DataError(f"{where} has no `content`", f"a message is {_EXAMPLE}")
        message["content"] = ""
    message["content"] = _content(message["content"], where)
    _check_weight(message, where)
    return message


def _read_calls(message: Message, where: str) -> None:
    """Calls of tools in the one form that templates know, OpenAI's older `function_call`
    included."""
    if "tool_calls" in message:
        message["tool_calls"] = calls_of(
            from_json(message["tool_calls"], "tool_calls", where), where
        )
    if "function_call" in message:
        older = from_json(message.pop("function_call"), "function_call", where)
        made = calls_of([{"type": "function", "function": older}], where)
        message["tool_calls"] = [*message.get("tool_calls", ()), *made]


def _check_weight(message: Message, where: str) -> None:
    weight, train = message.get("weight", 1), message.get("train", True)
    if weight not in (0, 1):
        shown = json.dumps(weight, ensure_ascii=False)[:40]
        raise DataError(f"{where} has `weight: {shown}`", "a message is learned (1) or not (0)")
    if not isinstance(train, bool):
        raise DataError(
            f"{where}: `train` should be true or false, not {kind_of(train)}", "or leave it out"
        )
    if message.get("train_detail"):
        raise DataError(
            f"{where} has `train_detail`",
            "a message is learned as a whole or not: use `train: false`",
        )


def _content(content: Any, where: str) -> str:
    """Text, also from OpenAI's list of parts; chuk trains on text only."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        others = [
            str(part.get("type")) for part in content if not isinstance(part.get("text"), str)
        ]
        if not others:
            return "".join(part["text"] for part in content)
        raise DataError(
            f"{where} holds a part of type `{others[0]}`", "only text can be trained on"
        )
    raise DataError(
        f"{where}: `content` should be text, not {kind_of(content)}", f"a message is {_EXAMPLE}"
    )
