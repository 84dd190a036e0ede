"""What stands in columns beside the messages of a row, made part of its conversation.

`system`: the system message, unless the conversation begins with one. `history`: earlier question
and answer pairs (LLaMA-Factory's Alpaca files). `tools`, or OpenAI's older `functions`: what the
assistant may call. `chat_template_kwargs`: options of the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chuk_lib.data import messages as chat
from chuk_lib.data.types import Source, kind_of
from chuk_lib.errors import DataError

Columns = Mapping[str, Any]
Message = dict[str, Any]
BESIDE = ("system", "history", "tools", "functions", "chat_template_kwargs")
"""The columns that this module reads; they are shown through a chat template."""
_NOTHING: tuple[Any, ...] = (None, "", "[]", [], {})


def with_system(columns: Columns, turns: list[Message], source: Source) -> list[Message]:
    """Messages after the text of the column `system`. Raises DataError when they begin with another
    one."""
    system = text_of(columns, "system", source)
    if not system:
        return turns
    if turns and turns[0]["role"] in ("system", "developer"):
        if turns[0]["content"].strip() == system.strip():
            return turns
        raise DataError(
            f"{source} has a column `system` and begins with another {turns[0]['role']} message",
            "keep one of them: `chuk data convert --drop system` removes the column",
        )
    return [{"role": "system", "content": system}, *turns]


def history(columns: Columns, source: Source) -> list[Message]:
    """Earlier turns of the column `history`: [["question", "answer"], …]. Raises DataError for
    other forms."""
    pairs = chat.from_json(columns.get("history"), "history", source) or []
    turns: list[Message] = []
    if not isinstance(pairs, list):
        raise DataError(
            f"{source}: `history` should be a list, not {kind_of(pairs)}", 'as in [["Hi", "Hello"]]'
        )
    for number, pair in enumerate(pairs, 1):
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(side, str) for side in pair)
        ):
            raise DataError(
                f"{source}: turn {number} of `history` should be a question and an answer",
                'as in [["Hi", "Hello"]]',
            )
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def tools_of(columns: Columns, source: Source, *, wrapped: bool = False) -> list[Any] | None:
    """The tools of a row. `functions`, and with `wrapped` `tools` too (ShareGPT files), may be bare
    descriptions `{"name": …}`, which templates know as `{"type": "function", "function": {"name":
    …}}`. Raises DataError."""
    name = "tools" if columns.get("tools") or not columns.get("functions") else "functions"
    found = chat.from_json(columns.get(name), name, source)
    if found is not None and not (
        isinstance(found, list) and all(isinstance(tool, dict) for tool in found)
    ):
        raise DataError(
            f"{source}: `{name}` should be a list of tool descriptions",
            "or a string that holds one as JSON",
        )
    if found and (wrapped or name == "functions"):
        return [
            tool if "name" not in tool else {"type": "function", "function": tool} for tool in found
        ]
    return found or None


def options_of(columns: Columns, source: Source) -> Mapping[str, Any]:
    """Options that the row gives to the chat template. Raises DataError when they are no object."""
    options = (
        chat.from_json(columns.get("chat_template_kwargs"), "chat_template_kwargs", source) or {}
    )
    if not isinstance(options, Mapping):
        raise DataError(
            f"{source}: `chat_template_kwargs` should be an object",
            'such as {"enable_thinking": false}',
        )
    return options


def unshown(columns: Columns, text: str, source: Source) -> tuple[str, ...]:
    """The columns that speak to a chat template, where a row is plain text, which does not show
    them. A `system` that the text holds already is shown."""
    system = text_of(columns, "system", source)
    names = [
        name for name in ("history", "tools", "functions") if columns.get(name) not in _NOTHING
    ]
    return (*(["system"] if system and system.strip() not in text else []), *names)


def refuse_unshown(names: tuple[str, ...], source: Source) -> None:
    """Raise DataError where a row of plain text has columns, `names`, that only a chat template
    shows."""
    if names:
        raise DataError(
            f"{source}: plain text does not show the column `{names[0]}`",
            "write the row as messages, or leave the column out: `chuk data convert --to same"
            f" --drop {names[0]}`",
        )


def string(columns: Mapping[str, Any], name: str, source: Source) -> str:
    """A column that must be text."""
    value = columns[name]
    if isinstance(value, str):
        return value
    raise DataError(
        f"{source}: `{name}` should be text, not {kind_of(value)}",
        "write it as a string, or remove the row",
    )


def text_of(columns: Columns, name: str, source: Source) -> str:
    """A column that may hold text or nothing. Raises DataError for anything else."""
    value = columns.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    raise DataError(
        f"{source}: `{name}` should be text, not {kind_of(value)}", "or leave the column out"
    )
