"""Tools: what a request offers, which of them must be called, and the calls in what was written.

A model that may call writes its calls in the form of its own template, and
`data/tokenizers/calls.py` reads them. A model that must call is held to JSON of a name and that
tool's arguments."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chuk_lib.data.tokenizers.calls import Call, read_call
from chuk_lib.errors import ChukError
from chuk_lib.inference import constraints
from chuk_lib.inference.decoder.guides import Constraint
from chuk_lib.inference.decoder.rows import Row
from chuk_lib.inference.text import decode, decode_marked
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
    if tools.offered and not tools.forced and not _readable(served):
        raise Refused(
            "this model's chat template has no form for calls of tools that could be read; a"
            " `tool_choice` that forces a call works with any model",
            "tools",
        )


def _readable(served: Served) -> bool:
    """Whether calls can be found in what is written."""
    form = served.calls
    if form is None:
        return False
    start = served.tokenizer.encode(form.start, add_special_tokens=False)
    return (
        form.start in served.call_marks.values()
        or decode(served.tokenizer, start).strip() == form.start.strip()
    )


def spoken(served: Served, tools: Tools, row: Row) -> str:
    """The text of a row with the marks of its calls."""
    found = served.call_marks if tools.offered and not tools.forced else {}
    if not found:
        return row.text
    text = decode_marked(served.tokenizer, row.ids.tolist(), found)
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
        call = read_call(_parsed(text))
        return (text, []) if call.problem else ("", [_numbered(call)])
    if not tools.offered or served.calls is None:
        return text, []
    said, calls = [], []
    for words, found in served.calls.stretches(text, tools.offered):
        if any(call.problem for call in found) or not found:
            said.append(words)
        else:
            calls += [_numbered(call) for call in found]
    return "".join(said), calls[: 1 if tools.single else None]


def begins_call(served: Served, tools: Tools) -> str | None:
    """The text from which on nothing is streamed, since it may be a call."""
    if tools.forced:
        return ""
    return served.calls.start if tools.offered and served.calls else None


def _numbered(call: Call) -> Called:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return Called(f"call_{secrets.token_hex(12)}", call.name, arguments)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
