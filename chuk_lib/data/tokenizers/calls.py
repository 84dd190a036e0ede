"""Calls of tools in what a model wrote, in the form of its chat template.

The forms of the families are mlx-lm's (`mlx_lm.tool_parsers`, chosen by the template); the form of
chuk's own templates, which is also that of Hermes and Qwen, is read where mlx-lm knows none:
`<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from chuk_lib.data.tokenizers.protocol import unwrap
from chuk_lib.errors import ModelError

_OWN = ("<tool_call>", "</tool_call>")


class Call(NamedTuple):
    """A tool's name and its arguments. `problem` says why the text of a call makes none."""

    name: str
    arguments: Mapping[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class CallForm:
    """Between which texts a call stands (`end` may be empty), and what reads what is between."""

    start: str
    end: str
    parse: Callable[[str, Any], Any]

    def calls(self, text: str, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[str, list[Call]]:
        """What was said beside calls, and the calls, in order. `tools` are the schemas that the
        model was shown: some forms need them for the types of arguments."""
        said: list[str] = []
        found: list[Call] = []
        while self.start in text:
            before, _, rest = text.partition(self.start)
            inner, _, text = rest.partition(self.end) if self.end else (rest, "", "")
            said.append(before)
            found += self._read(inner, tools)
        return "".join([*said, text]).strip(), found

    def _read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> list[Call]:
        try:
            made = self.parse(text.strip(), list(tools))
        except Exception as error:  # a parser raises whatever a model's text makes it raise
            return [Call("", {}, f"this is no call of a tool: {error}")]
        return [_call(one) for one in (made if isinstance(made, list) else [made])]


def call_form(tokenizer: Any) -> CallForm:
    """The form of a tokenizer's chat template. Raises ModelError when nobody knows it."""
    if getattr(tokenizer, "has_tool_calling", False):
        start, end = tokenizer.tool_call_start, tokenizer.tool_call_end
        return CallForm(start, end or "", tokenizer.tool_parser)
    template = unwrap(tokenizer).chat_template
    if isinstance(template, str) and _OWN[0] in template:
        return CallForm(*_OWN, lambda text, tools: json.loads(text))
    raise ModelError(
        "the chat template of this model has no form for calls of tools",
        "take a model that was made for tools, or give it a template:"
        " `chuk tokenizer train --chat-template chatml`",
    )


def _call(made: Any) -> Call:
    if not isinstance(made, Mapping) or not isinstance(made.get("name"), str):
        return Call("", {}, "a call is an object with a name and arguments")
    arguments = made.get("arguments", made.get("parameters", {}))
    if isinstance(arguments, str):  # OpenAI's form
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            return Call(made["name"], {}, f"the arguments are no JSON: {error}")
    if not isinstance(arguments, Mapping):
        return Call(made["name"], {}, "arguments are an object of names and values")
    return Call(made["name"], arguments)
