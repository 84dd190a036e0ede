"""The one preparation of a conversation for a chat template, and the account of what the template
leaves out.

Every command prepares rows here, training rows and prompts alike, so that what is true of the first
row is true of all and what preview shows is what training learns. Messages come parsed (`messages`,
`conversation`); here they meet the template of one tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from chuk_lib.data import tool_calls
from chuk_lib.data.formats import Chat
from chuk_lib.data.tokenizers.encoder import Encoder
from chuk_lib.data.tokenizers.training_forms import REASONING
from chuk_lib.data.types import Source
from chuk_lib.errors import ModelError

Message = dict[str, Any]
EARLIER_REASONING = "the reasoning of earlier answers"
"""Thinking models are made to see it only until the next question."""
_ACCOUNTED = frozenset(
    (*REASONING, "role", "content", "tool_calls", "weight", "train", "train_detail")
)
_ESCAPE = re.compile(r"\\[ntr\"\\]")
_SIGNS = re.compile(r"[\W_]+")


class Preparation:
    """Prepares conversations for the chat template of one tokenizer and counts what became of them,
    over all rows."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._rows: Counter[str] = Counter()
        self._counted: dict[str, Source] = {}

    def __call__(self, row: Chat, source: Source) -> Chat:
        """The row as the template takes it. Raises ModelError when there is no template."""
        if not self._encoder.has_template:
            raise no_template(f"{source} holds messages, but the tokenizer has no chat template")
        messages = row.messages
        # `arguments is string`: Qwen3's and chuk's own templates print JSON text as it stands; all
        # others are given objects, for `arguments | tojson` (Qwen2.5, Llama 3.1) and `arguments |
        # items` (Qwen3-Coder).
        takes_text = "arguments is string" in self._encoder.template(row.tools is not None)
        if not takes_text and tool_calls.has_text_arguments(messages):
            messages = tool_calls.with_parsed_arguments(messages)
        # OpenAI's newer name of the system role: gpt-oss prints it, most templates pass over roles
        # they do not know.
        if any(message["role"] == "developer" for message in messages) and not self._encoder.shows(
            "developer"
        ):
            messages = [_as_system(message) for message in messages]
            self.count(
                "the role `developer` is shown as `system`: the chat template does not know it",
                source,
            )
        return row if messages is row.messages else replace(row, messages=messages)

    def account(self, row: Chat, text: str, source: Source) -> None:
        """Note what of a prepared row its rendering does not show."""
        for what in left_out(row, text, self._encoder):
            self.count(f"the chat template leaves out {what}", source)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, with the number of rows that it concerns."""
        notes = [f"in {rows:,} rows {what}" for what, rows in self._rows.items()]
        if self._encoder.unasked:
            notes.append(
                f"the chat template writes {self._encoder.unasked!r} at the end without being"
                " asked; it is left out there"
            )
        return tuple(notes)

    def count(self, what: str, source: Source) -> None:
        """Count a row of which something is true, once: the two conversations of a pair stand in
        one."""
        self._rows[what] += self._counted.get(what) != source
        self._counted[what] = source


class _Rendering:
    """A rendered text that words are looked for in."""

    def __init__(self, text: str) -> None:
        self.text = text

    def shows(self, words: str) -> bool:
        """Whether it holds some words, as they stand or laid out anew: as JSON writes them, say."""
        words = words.strip()
        return words in self.text or _letters(words) in self._letters

    @cached_property
    def _letters(self) -> str:
        return _letters(self.text)


def left_out(row: Chat, text: str, encoder: Encoder) -> Iterator[str]:
    """Names of what a conversation holds and its rendering `text` does not show."""
    rendering = _Rendering(text)
    asked = max(
        (at for at, message in enumerate(row.messages) if message["role"] == "user"), default=-1
    )
    for at, message in enumerate(row.messages):
        yield from _message_left_out(message, rendering, encoder)
        if not all(map(rendering.shows, _thoughts(message))):
            yield "the assistant's reasoning" if at > asked else EARLIER_REASONING
    if not all(name in text for name in tool_calls.tool_names(row.tools)):
        yield "the tools"
    if not encoder.is_code:
        template = encoder.template(row.tools is not None)
        yield from (
            f"`{name}` of `chat_template_kwargs`" for name in row.options if name not in template
        )


def no_template(what: str) -> ModelError:
    """The failure for messages that meet a tokenizer without a chat template."""
    return ModelError(
        what,
        "take an instruct model, put a template in: `chuk tokenizer doctor MODEL --fix OUT"
        " --chat-template chatml`, or give text or prompt/completion rows",
    )


def _message_left_out(message: Message, rendering: _Rendering, encoder: Encoder) -> Iterator[str]:
    role, content = message["role"], message["content"]
    said = content.rpartition("</think>")[2] if role == "assistant" else content
    # A short text ("5") may stand elsewhere by chance: roles are probed too, but for those every
    # template knows and for results of tools, which some templates show after a call only.
    unknown = role not in ("user", "assistant", "tool") and said.strip() and not encoder.shows(role)
    if unknown or not rendering.shows(said):
        yield _words_of(role)
    for call in tool_calls.functions(message):
        if not all(
            map(rendering.shows, (str(call.get("name", "")), *_leaves(call.get("arguments"))))
        ):
            yield "tool calls"
    for name, value in message.items():
        if (
            name not in _ACCOUNTED
            and not _is_id(name)
            and not all(map(rendering.shows, _leaves(value)))
        ):
            yield f"`{name}` of messages"


def _thoughts(message: Message) -> Iterator[str]:
    """What an answer holds of reasoning: under keys of its own, or before `</think>` in its
    text."""
    if message["role"] == "assistant":
        yield message["content"].rpartition("</think>")[0].replace("<think>", "")
    yield from (str(message[name]) for name in REASONING if message.get(name))


def _words_of(role: str) -> str:
    names = {"assistant": "the assistant's text", "tool": "results of tools"}
    return names.get(role, f"messages of the role `{role[:40]}`")


def _is_id(name: str) -> bool:
    """Whether a key holds a number that only its own file knows, such as `tool_call_id`."""
    return name == "id" or name.endswith("_id")


def _leaves(value: Any) -> Iterator[str]:
    """Every text and number inside a value."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _as_system(message: Message) -> Message:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _letters(text: str) -> str:
    """Letters and figures alone, without the escapes of JSON."""
    return _SIGNS.sub("", _ESCAPE.sub("", text))
