"""What can be wrong with one row: nothing in it, speakers out of order, damaged characters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from chuk_lib.data.formats import Chat, PromptCompletion, Text, Tokens
from chuk_lib.data.tool_calls import called, tool_names
from chuk_lib.data.workbench.convert import sides
from chuk_lib.data.workbench.shapes import (
    Ask,
    Labelled,
    Messages,
    Preference,
    Shape,
    Side,
    as_turns,
)

_ROLES = ("system", "developer", "user", "assistant", "tool")
_DAMAGED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd\ufeff]")
_TWICE = re.compile("â€[™œ“”¦\x80-\x9f]|Ã[\x80-\xbf©¨¤¶¼Ÿ§ª«±]")


class Fault(NamedTuple):
    """One thing that is wrong: its kind, what it is, and what to do."""

    kind: str
    message: str
    hint: str


def faults_of(shape: Shape, text: str) -> Iterator[Fault]:
    """Everything wrong with a row; `text` is all that it says."""
    yield from _empty(shape)
    yield from _damaged(text)
    if isinstance(shape, Chat):
        yield from _order(shape.messages, answered=True)
        yield from _calls(shape)
    elif isinstance(shape, Preference):
        prompt, chosen, rejected = sides(shape)
        for answer in (chosen, rejected):
            if not isinstance(prompt, str) or not isinstance(answer, str):
                yield from _order(
                    [*as_turns(prompt, "user"), *as_turns(answer, "assistant")], answered=True
                )
        if chosen == rejected:
            yield Fault(
                "preference",
                "`chosen` and `rejected` are equal",
                "there is nothing to prefer: remove the row",
            )
    elif isinstance(shape, Ask | Labelled) and not isinstance(shape.prompt, str):
        yield from _order(shape.prompt, answered=False)


def _empty(shape: Shape) -> Iterator[Fault]:
    hint = "write what is missing, or remove the row"
    if isinstance(shape, Text) and not shape.text.strip():
        yield Fault("empty", "the text is empty", hint)
    elif isinstance(shape, Tokens) and len(shape.input_ids) < 2:
        yield Fault(
            "empty", f"{len(shape.input_ids)} tokens leave nothing to learn", "remove the row"
        )
    elif isinstance(shape, Chat):
        for number, message in enumerate(shape.messages, 1):
            if (
                not message["content"].strip()
                and not message.get("tool_calls")
                and message["role"] != "system"
            ):
                what = (
                    "answer"
                    if message["role"] == "assistant"
                    else f"message of the {message['role']}"
                )
                yield Fault("empty", f"message {number} is an empty {what}", hint)
    else:
        for name, side in _sides(shape):
            if _is_blank(side):
                yield Fault("empty", f"the {name} is empty", hint)


def _sides(shape: Shape) -> list[tuple[str, Side]]:
    if isinstance(shape, PromptCompletion):
        return [("prompt", shape.prompt), ("answer", shape.completion)]
    if isinstance(shape, Labelled):
        return [("prompt", shape.prompt), ("answer", shape.completion)]
    if isinstance(shape, Ask):
        return [("prompt", shape.prompt)]
    if isinstance(shape, Preference):
        answers = [("chosen answer", shape.chosen), ("rejected answer", shape.rejected)]
        return answers if shape.prompt is None else [("prompt", shape.prompt), *answers]
    return []


def _is_blank(side: Side) -> bool:
    if isinstance(side, str):
        return not side.strip()
    return not any(message["content"].strip() or message.get("tool_calls") for message in side)


def _damaged(text: str) -> Iterator[Fault]:
    if text.isascii() and text.isprintable():
        return
    found = _DAMAGED.search(text)
    if found:
        sign = f"U+{ord(found[0]):04X}"
        what = (
            "stands where a character was lost"
            if found[0] == "\ufffd"
            else "is no character of a text"
        )
        yield Fault(
            "encoding",
            f"{sign} {what}: {_around(text, found.start())}",
            "read the source again, as UTF-8",
        )
    twice = _TWICE.search(text)
    if twice:
        hint = "UTF-8 was read as Latin-1 and saved: encode it back, then read it as UTF-8"
        yield Fault(
            "encoding", f"characters were decoded wrongly: {_around(text, twice.start())}", hint
        )


def _around(text: str, at: int) -> str:
    return repr(text[max(0, at - 15) : at + 15])


def _order(messages: Messages, answered: bool) -> Iterator[Fault]:
    """`answered`: the last message should be the assistant's."""
    roles = [str(message["role"]) for message in messages]
    unknown = next((role for role in roles if role not in _ROLES), None)
    hint = "roles: system first, then user and assistant in turn, tool after a call"
    if unknown is not None:
        yield Fault("roles", f"`{unknown[:40]}` is no role", hint)
        return
    for number, (before, role) in enumerate(zip([None, *roles], roles, strict=False), 1):
        wrong = _misplaced(before, role)
        if wrong:
            yield Fault("roles", f"message {number}: {wrong}", hint)
            return
    if answered and roles[-1] != "assistant":
        yield Fault(
            "roles",
            f"the last message is the {roles[-1]}'s",
            "end with an answer, or cut the row there",
        )
    if not answered and roles[-1] == "assistant":
        yield Fault("roles", "the prompt ends with the assistant's words", "end it with a question")


def _misplaced(before: str | None, role: str) -> str:
    if role in ("system", "developer"):
        return "" if before in (None, "system", "developer") else f"{role} after {before}"
    if role == "tool":
        return (
            ""
            if before in ("assistant", "tool")
            else f"a tool's result after {before or 'nothing'}"
        )
    if role == "assistant" and before in (None, "system", "developer"):
        return "the assistant speaks before the user"
    if role == "assistant" and before == "assistant":
        return "the assistant speaks twice in a row"
    return f"user after {before}" if role == "user" and before in ("user", "tool") else ""


def _calls(shape: Chat) -> Iterator[Fault]:
    if not shape.tools:
        return
    known = set(tool_names(shape.tools))
    for number, message in enumerate(shape.messages, 1):
        for name in called(message):
            if name not in known:
                found = f"message {number} calls `{name[:60]}`, which is not among the row's tools"
                yield Fault("roles", found, "add it to `tools`, or remove the row")
