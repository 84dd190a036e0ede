"""What a policy writes in plain text, and how it is read: one action a line.

    text   := line*
    line   := "THINK:" words | "ANSWER:" words | "TOOL:" call | "DELEGATE:" call | "Result:" words
    call   := name "(" [key "=" value ("," key "=" value)*] ")"
    value  := "quoted" | 'quoted' | number | true | false | null | [JSON] | {JSON} | bare words

A line without a beginning of its own goes on with the one before; at the start it is a thought. In
quotes a backslash keeps the next character as it is (\\n is a new line), so commas and brackets may
stand there. Bare words end at a comma or the closing bracket."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

THINK, TOOL, DELEGATE, ANSWER, RESULT = "THINK", "TOOL", "DELEGATE", "ANSWER", "Result"
_BEGINS = re.compile(r"[ \t]*(THINK|TOOL|DELEGATE|ANSWER|Result|RESULT):[ \t]*")
_NAME = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_OPENING = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True)
class Action:
    """One action. THINK, ANSWER and Result have `text`; TOOL and DELEGATE have a `name` and
    `arguments`, or an `error` that says why the call cannot be read (then `text` is the call)."""

    kind: str
    text: str = ""
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    def __str__(self) -> str:
        """The action as it is written: what `parse_actions` reads back."""
        if self.kind in (TOOL, DELEGATE) and not self.error:
            given = ", ".join(f"{key}={_written(value)}" for key, value in self.arguments.items())
            return f"{self.kind}: {self.name}({given})"
        return f"{self.kind}: {self.text}"


def parse_actions(text: str) -> list[Action]:
    """Every action of a text, in order. Nothing is dropped: what cannot be read as a call is an
    action with an `error`, what begins like no action is a thought."""
    blocks: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        begins = _BEGINS.match(line)
        if begins:
            kind = RESULT if begins[1] == "RESULT" else begins[1]
            blocks.append((kind, [line[begins.end() :]]))
        elif blocks:
            blocks[-1][1].append(line)
        elif line.strip():
            blocks.append((THINK, [line]))
    return [_action(kind, "\n".join(lines).strip()) for kind, lines in blocks]


def _action(kind: str, body: str) -> Action:
    if kind not in (TOOL, DELEGATE):
        return Action(kind, body)
    try:
        name, arguments = parse_call(body)
    except ValueError as error:
        return Action(kind, body, error=str(error))
    return Action(kind, name=name, arguments=arguments)


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of `name(key=value, …)`. Raises ValueError with what is wrong."""
    found = _NAME.match(text)
    if not found or text[found.end() : found.end() + 1] != "(":
        raise ValueError("a call is written name(key=value, ...)")
    scan = _Scan(text, found.end() + 1)
    arguments: dict[str, Any] = {}
    while not scan.take(")"):
        if arguments and not scan.take(","):
            raise ValueError(f"a comma or ) is missing at `{scan.rest}`")
        key = _NAME.match(text, scan.at)
        if not key or text[key.end() : key.end() + 1] != "=":
            raise ValueError(f"an argument is written key=value, not `{scan.rest}`")
        if key[1] in arguments:
            raise ValueError(f"`{key[1]}` is given twice")
        scan.at = key.end() + 1
        arguments[key[1]] = scan.value()
    if text[scan.at :].strip():
        raise ValueError(f"`{scan.rest}` stands behind the call")
    return found[1], arguments


class _Scan:
    """A place in a text, and what can be read from there."""

    def __init__(self, text: str, at: int) -> None:
        self.text, self.at = text, at

    @property
    def rest(self) -> str:
        return self.text[self.at : self.at + 30].strip()

    def take(self, character: str) -> bool:
        """Step over spaces and over this character, if it is the next one."""
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        if self.text[self.at : self.at + 1] != character:
            return False
        self.at += 1
        return True

    def value(self) -> Any:
        for quote in "\"'":
            if self.take(quote):
                return self._quoted(quote)
        begin = self.at
        self._skip_bare()
        return _bare(self.text[begin : self.at].strip())

    def _quoted(self, quote: str) -> str:
        letters: list[str] = []
        while self.at < len(self.text):
            letter = self.text[self.at]
            self.at += 1
            if letter == quote:
                return "".join(letters)
            if letter == "\\" and self.at < len(self.text):
                letter = _ESCAPES.get(self.text[self.at], self.text[self.at])
                self.at += 1
            letters.append(letter)
        raise ValueError(f"the quote {quote} is not closed")

    def _skip_bare(self) -> None:
        """To the comma or bracket that ends a bare value, past brackets and JSON text in it."""
        waiting: list[str] = []
        while self.at < len(self.text):
            letter = self.text[self.at]
            if not waiting and letter in ",)":
                return
            if letter in _OPENING:
                waiting.append(_OPENING[letter])
            elif waiting and letter == waiting[-1]:
                waiting.pop()
            self.at += 1
            if letter == '"' and waiting:
                self._quoted('"')
        raise ValueError("the closing ) is missing")


def _bare(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _NUMBER.fullmatch(text):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            raise ValueError(f"`{text[:30]}` is no JSON") from None
    if not text:
        raise ValueError("a value is missing behind =")
    return text


def _written(value: Any) -> str:
    if isinstance(value, str):
        kept = value.replace("\\", "\\\\").replace('"', '\\"')
        for letter, control in _ESCAPES.items():
            kept = kept.replace(control, f"\\{letter}")
        return f'"{kept}"'
    return json.dumps(value, ensure_ascii=False)
