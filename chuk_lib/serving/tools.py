"""Tools: what a request offers, which of them must be called, and the calls in what was written.

A model that may call writes its calls in the form of its own template, and mlx-lm's parser for that
form reads them. A model that must call is held to JSON of a name and that tool's arguments."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chuk_lib.errors import ChukError
from chuk_lib.inference import constraints
from chuk_lib.inference.decoder.guides import Constraint
from chuk_lib.inference.decoder.rows import Row
from chuk_lib.inference.text import decode
from chuk_lib.serving import reading
from chuk_lib.serving.errors import Refused
from chuk_lib.serving.models import Served

_FUNCTION: reading.Table = {
    "name": reading.text,
    "description": reading.text,
    "parameters": reading.obj,
    "strict": reading.flag,
}
_TOOL: reading.Table = {"type": reading.one_of("function"), "function": reading.obj}
_MOST = 128


@dataclass(frozen=True)
class Tools:
    """`offered`: in OpenAI's form, as templates take them; empty when none may be called. `forced`:
    the names of which one must be called. `single`: at most one call."""

    offered: tuple[dict[str, Any], ...] = ()
    forced: tuple[str, ...] = ()
    single: bool = False

    @property
    def shown(self) -> list[dict[str, Any]] | None:
        """What the chat template gets."""
        return list(self.offered) or None


@dataclass(frozen=True)
class Called:
    """One call: its own id, the tool, and the arguments as JSON."""

    id: str
    name: str
    arguments: str


def offered(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """OpenAI's list of tools."""
    found: list[dict[str, Any]] = []
    for at, one in enumerate(reading.items(reading.obj, _MOST)(value, where)):
        here = f"{where}[{at}]"
        tool = reading.read(one, _TOOL, f"{here}.")
        inner = reading.read(tool.get("function") or {}, _FUNCTION, f"{here}.function.")
        if not inner.get("name"):
            raise Refused(f"`{here}.function` has no name", f"{here}.function.name")
        inner.pop("strict", None)
        inner.setdefault("parameters", {"type": "object", "properties": {}})
        found.append({"type": "function", "function": inner})
    names = [tool["function"]["name"] for tool in found]
    if len(set(names)) < len(names):
        raise Refused(f"`{where}` names a tool twice", where)
    return tuple(found)


def chosen(
    tools: Sequence[dict[str, Any]], choice: str, name: str | None = None, single: bool = False
) -> Tools:
    """`choice`: none, auto, or required (of `name` when there is one)."""
    names = tuple(tool["function"]["name"] for tool in tools)
    if name is not None and name not in names:
        raise Refused(f"there is no tool called `{name[:60]}`", "tool_choice")
    if choice == "required" and not tools:
        raise Refused("no tools are given to choose from", "tool_choice")
    if choice == "none" or not tools:
        return Tools()
    forced = () if choice == "auto" else names if name is None else (name,)
    return Tools(tuple(tools), forced, single)


def check_calls(served: Served, tools: Tools) -> None:
    """Refuse tools where the model's template shows none."""
    if tools.offered and not tools.forced and not _readable(served.tokenizer):
        raise Refused(
            "this model's chat template has no form for calls of tools that could be read; a"
            " `tool_choice` that forces a call works with any model",
            "tools",
        )


def _readable(tokenizer: Any) -> bool:
    """Whether calls can be found in what is written: mlx-lm knows their form."""
    if not tokenizer.has_tool_calling:
        return False
    begin: str = tokenizer.tool_call_start
    return (
        begin in marks(tokenizer).values()
        or begin.strip() == decode(tokenizer, tokenizer.tool_call_start_tokens).strip()
    )


def marks(tokenizer: Any) -> dict[int, str]:
    """What begins and ends a call where that is a special token, which texts leave out."""
    both = (
        (tokenizer.tool_call_start, tokenizer.tool_call_start_tokens),
        (tokenizer.tool_call_end, tokenizer.tool_call_end_tokens),
    )
    return {
        ids[0]: text
        for text, ids in both
        if text and ids is not None and len(ids) == 1 and not decode(tokenizer, ids)
    }


def spoken(served: Served, tools: Tools, row: Row) -> str:
    """The text of a row with the marks of its calls."""
    found = marks(served.tokenizer) if tools.offered and not tools.forced else {}
    if not found:
        return row.text
    ids, text, begin = row.ids.tolist(), "", 0
    for at, token in enumerate(ids):
        if token in found:
            text += decode(served.tokenizer, ids[begin:at]) + found[token]
            begin = at + 1
    text += decode(served.tokenizer, ids[begin:])
    stops = row.request.config.stop if row.reason == "stop" else ()
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]


def forced_call(served: Served, tools: Tools) -> Constraint:
    """JSON of a name and that tool's arguments."""
    every = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools.offered}
    kinds = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": every[name]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name in tools.forced
    ]
    return held_to(served, kinds[0] if len(kinds) == 1 else {"anyOf": kinds}, "tools")


def held_to(served: Served, schema: Any, where: str) -> Constraint:
    """A constraint to JSON of a schema. Raises Refused for one that cannot be followed."""
    try:
        return constraints.json_schema(schema, f"`{where}`").bound(served.tokenizer)
    except ChukError as error:
        raise Refused(f"{error.message} ({error.hint})", where) from None


def called_in(served: Served, tools: Tools, row: Row) -> tuple[str, list[Called]]:
    """What is said beside calls, and the calls of what was written. What looks like a call and
    cannot be read stays in the text."""
    text = spoken(served, tools, row)
    if tools.forced:
        call = _call_of(_parsed(text))
        return ("", [call]) if call is not None else (text, [])
    if not tools.offered:
        return text, []
    said, calls = [], []
    begin, end = served.tokenizer.tool_call_start, served.tokenizer.tool_call_end
    while begin in text:
        before, _, rest = text.partition(begin)
        inner, closed, after = rest.partition(end) if end else (rest, "", "")
        found = _read(served, tools, inner)
        said.append(before if found else before + begin + inner + closed)
        calls += found
        text = after
    return "".join([*said, text]), calls[: 1 if tools.single else None]


def begins_call(served: Served, tools: Tools) -> str | None:
    """The text from which on nothing is streamed, since it may be a call."""
    return "" if tools.forced else served.tokenizer.tool_call_start if tools.offered else None


def _read(served: Served, tools: Tools, text: str) -> list[Called]:
    try:
        found = served.tokenizer.tool_parser(text, list(tools.offered))
    except Exception:  # mlx-lm's parsers raise whatever text of a model makes them raise
        return []
    calls = [_call_of(one) for one in (found if isinstance(found, list) else [found])]
    return [call for call in calls if call is not None]


def _call_of(found: Any) -> Called | None:
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", found.get("parameters", {}))
    shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return Called(f"call_{secrets.token_hex(12)}", found["name"], shown)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
