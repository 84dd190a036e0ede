"""Calls of tools in what a model wrote, in the form of its chat template.

The forms of most families are mlx-lm's (`mlx_lm.tool_parsers`, chosen by the template). Those that
it does not have stand here: chuk's own templates, Hermes and Qwen 2.5 (`<tool_call>` with JSON in
it), Llama 3 (JSON or Python, bare or behind `<|python_tag|>`) and gpt-oss (harmony)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from chuk_lib.data.tokenizers.protocol import Tokenizer, is_wrapped, unwrap
from chuk_lib.errors import ModelError


class Call(NamedTuple):
    """A tool's name and its arguments. `problem` says why the text of a call makes none."""

    name: str
    arguments: Mapping[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class CallForm:
    """How calls are written: `shown` is an example, `start` what every call begins with (nothing
    where any answer may be one), `pattern` finds them, and `parse` makes an object with `name` and
    `arguments`, or a list of such, of a match and the tools' schemas. `marks` are the texts in a
    call that may be special tokens, which plain decoding leaves out."""

    shown: str
    start: str
    marks: tuple[str, ...]
    pattern: re.Pattern[str]
    parse: Callable[[re.Match[str], list[Any]], Any]

    def stretches(
        self, text: str, tools: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[tuple[str, list[Call]]]:
        """The whole text in stretches of words (no calls) and of calls, in order. `tools` are the
        schemas that the model was shown: some forms need them for the types of arguments."""
        at = 0
        for match in self.pattern.finditer(text):
            yield text[at : match.start()], []
            yield match.group(), self._read(match, tools)
            at = match.end()
        yield text[at:], []

    def calls(self, text: str, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[str, list[Call]]:
        """What was said beside calls, and the calls, in order."""
        found = list(self.stretches(text, tools))
        said = "".join(words for words, calls in found if not calls)
        return said.strip(), [call for _, calls in found for call in calls]

    def _read(self, match: re.Match[str], tools: Sequence[Mapping[str, Any]]) -> list[Call]:
        try:
            made = self.parse(match, list(tools))
        except Exception as error:  # a parser raises whatever a model's text makes it raise
            return [Call("", {}, f"this is no call of a tool: {error}")]
        return [read_call(one) for one in (made if isinstance(made, list) else [made])]


def call_form(tokenizer: Tokenizer) -> CallForm:
    """The form of a tokenizer's chat template. Raises ModelError when nobody knows it."""
    if is_wrapped(tokenizer) and tokenizer.has_tool_calling:
        start, end = tokenizer.tool_call_start, tokenizer.tool_call_end or ""
        return _between(start, end, tokenizer.tool_parser)
    template = unwrap(tokenizer).chat_template
    for sign, form in _FORMS if isinstance(template, str) else ():
        if sign in template:
            return form
    raise ModelError(
        "the chat template of this model has no form for calls of tools",
        "take a model that was made for tools, or give it a template:"
        " `chuk tokenizer train --chat-template chatml`",
    )


def parse_tool_calls(
    text: str, tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[str, list[Call]]:
    """What a model said beside calls of tools, and the calls. Raises ModelError for a chat template
    that has no form for them."""
    return call_form(tokenizer).calls(text, tools)


def _between(start: str, end: str, parse: Callable[[str, Any], Any]) -> CallForm:
    """A form with a text before each call and maybe one behind it; the end of all ends it too."""
    behind = rf"(?:{re.escape(end)}|\Z)" if end else r"\Z"
    pattern = re.compile(rf"{re.escape(start)}(.*?){behind}", re.DOTALL)
    return CallForm(
        f"{start}…{end}",
        start,
        tuple(mark for mark in (start, end) if mark),
        pattern,
        lambda match, tools: parse(match.group(1).strip(), tools),
    )


def _llama(match: re.Match[str], tools: list[Any]) -> Any:
    """One or more JSON objects with `;` or white space between, or a list of Python calls."""
    text = match.group(1).strip()
    if text.startswith("["):
        from mlx_lm.tool_parsers.pythonic import parse_tool_call

        return parse_tool_call(text)
    calls, at, decoder = [], 0, json.JSONDecoder()
    while at < len(text):
        made, at = decoder.raw_decode(text, at)
        calls.append(made)
        at += len(text[at:]) - len(text[at:].lstrip("; \n"))
    return calls


def _harmony(match: re.Match[str], tools: list[Any]) -> Any:
    return {"name": match.group(1), "arguments": json.loads(match.group(2) or "{}")}


_FORMS = (
    ("<tool_call>", _between("<tool_call>", "</tool_call>", lambda text, tools: json.loads(text))),
    (
        "<|channel|>",
        CallForm(
            "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>",
            "",
            ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|call|>"),
            re.compile(
                r"(?:<\|start\|>assistant)?(?:<\|channel\|>\w+)? to=functions\.([\w.-]+)"
                r"(?:<\|channel\|>\w+)?\s*(?:<\|constrain\|>)?(?:json)?<\|message\|>"
                r"(.*?)(?:<\|call\|>|\Z)",
                re.DOTALL,
            ),
            _harmony,
        ),
    ),
    (
        "Environment: ipython",
        CallForm(
            '{"name": …, "parameters": {…}}',
            "",
            ("<|python_tag|>",),
            re.compile(
                r"(?:\A|<\|python_tag\|>)\s*"
                r'(\{\s*"(?:name|type)"\s*:.*|\[\s*[A-Za-z_][\w.]*\(.*\)\s*\])\s*\Z',
                re.DOTALL,
            ),
            _llama,
        ),
    ),
)
"""What stands in a template that has the form, and the form."""


def read_call(made: Any) -> Call:
    """A call of what a parser made of its text, or of JSON."""
    if isinstance(made, Mapping) and isinstance(made.get("function"), Mapping):
        made = made["function"]
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
