"""What any row means, those of preference and reward training included.

To the shapes of supervised rows (`formats.py`: Text, PromptCompletion, Chat, Tokens) come
`Preference`, `Labelled` and `Ask`. A side of them is text or messages, as it stood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chuk_lib.data import messages as chat
from chuk_lib.data.conversation import string, tools_of, with_system
from chuk_lib.data.formats import Chat, PromptCompletion, Recogniser, Text, Tokens
from chuk_lib.data.formats import formats as supervised_formats
from chuk_lib.data.misfits import misfit_hint
from chuk_lib.data.preference_rows import asked
from chuk_lib.data.types import Record, Source, kind_of
from chuk_lib.errors import ConfigError, DataError

Messages = list[dict[str, Any]]
Side = str | Messages


@dataclass(frozen=True)
class Preference:
    """A prompt (None: both answers hold it) with a better and a worse answer."""

    prompt: Side | None
    chosen: Side
    rejected: Side
    tools: list[Any] | None = None


@dataclass(frozen=True)
class Labelled:
    """A prompt with an answer that is good or not."""

    prompt: Side
    completion: Side
    label: bool


@dataclass(frozen=True)
class Ask:
    """A prompt alone, with whatever a reward needs in other columns."""

    prompt: Side
    tools: list[Any] | None = None


Shape = Text | PromptCompletion | Chat | Tokens | Preference | Labelled | Ask

COLUMNS: dict[str, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "prompt": ("prompt",),
}
"""Formats beyond the supervised ones by the columns that they need. `preference` may also have
`prompt`."""
_TEMPLATE = ("system", "tools", "functions", "chat_template_kwargs")
OWN = {
    "tokens": (
        "input_ids",
        "labels",
        "loss_mask",
        "assistant_masks",
        "completion_mask",
        "attention_mask",
    ),
    "messages": ("messages", *_TEMPLATE),
    "sharegpt": ("conversations", *_TEMPLATE),
    "prompt_completion": ("prompt", "completion", "history", *_TEMPLATE),
    "prompt_response": ("prompt", "response", "history", *_TEMPLATE),
    "alpaca": ("instruction", "input", "context", "output", "response", "history", *_TEMPLATE),
    "input_output": ("input", "output", "history", *_TEMPLATE),
    "question_answer": ("question", "answer", "history", *_TEMPLATE),
    "problem_solution": ("problem", "solution", "history", *_TEMPLATE),
    "preference": ("prompt", "chosen", "rejected", "tools", "functions"),
    "unpaired": ("prompt", "completion", "label"),
    "prompt": ("prompt", "tools", "functions"),
    "text": ("text",),
}
"""The columns that belong to a format; all others are notes that every tool keeps."""


class Shaper:
    """Records to shapes. The first record decides the format unless it is given. Raises DataError
    naming the row."""

    def __init__(self, format: str | None = None, text_field: str = "text") -> None:
        names = [*supervised_formats(text_field), *COLUMNS]
        self._text_field = text_field
        self._recogniser: Recogniser | None = None
        self.format: str | None = None
        if format in COLUMNS:
            self.format = format
        elif format is not None:
            self._recogniser = Recogniser(format, text_field, has_template=True)
            assert self._recogniser.format is not None
            self.format = self._recogniser.format.name
            if self.format not in names:
                raise ConfigError(f"unknown format `{format}`", f"formats: {', '.join(names)}")

    def __call__(self, record: Record) -> Shape:
        try:
            return self._shape(record)
        except RecursionError:
            # JSON inside text: the parsers of files have refused all other depths.
            raise DataError(
                f"{record.source} holds brackets in brackets in brackets", "mend or remove it"
            ) from None

    def _shape(self, record: Record) -> Shape:
        if self.format is None:
            self.format = self._recognise(record)
        if self.format in COLUMNS:
            return self._own(record, self.format)
        if self._recogniser is None:
            self._recogniser = Recogniser(self.format, self._text_field, has_template=True)
        return self._recogniser(record)

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The columns of the format that was recognised."""
        return (self._text_field,) if self.format == "text" else OWN.get(self.format or "", ())

    def _recognise(self, record: Record) -> str:
        present = record.columns
        for name in ("preference", "unpaired"):
            if all(column in present for column in COLUMNS[name]):
                return name
        fitting = [
            item.name
            for item in supervised_formats(self._text_field).values()
            if not item.missing(present)
        ]
        if fitting:
            return fitting[0]
        if "prompt" in present:
            return "prompt"
        found = ", ".join(f"`{name}`" for name in present) or "none"
        raise DataError(
            f"{record.source} has the columns {found[:200]}, which fit no format",
            misfit_hint(record)
            or "rename them: chuk data convert --rename question=prompt --rename answer=completion",
        )

    def _own(self, record: Record, name: str) -> Shape:
        columns, source = record.columns, record.source
        if name != "prompt":
            columns = asked(
                record,
                tuple(column for column in COLUMNS[name] if column not in ("prompt", "label")),
            )
        missing = [column for column in COLUMNS[name] if column not in columns]
        if missing:
            raise DataError(
                f"{source} has no `{missing[0]}`, which format {name} needs",
                "keep one format per file",
            )
        if name == "prompt":
            return Ask(_prompt_of(columns, source), tools_of(columns, source))
        if name == "unpaired":
            label = _label(columns["label"], source)
            return Labelled(
                _prompt_of(columns, source), side_of(columns, "completion", source), label
            )
        prompt = _prompt_of(columns, source) if columns.get("prompt") is not None else None
        chosen, rejected = side_of(columns, "chosen", source), side_of(columns, "rejected", source)
        if isinstance(chosen, str) != isinstance(rejected, str):
            raise DataError(
                f"{source}: one of `chosen` and `rejected` is text, the other messages",
                "write both alike",
            )
        return Preference(prompt, chosen, rejected, tools_of(columns, source))


def _prompt_of(columns: Mapping[str, Any], source: Source) -> Side:
    """The prompt, after the text of the column `system` where it is messages."""
    prompt = side_of(columns, "prompt", source)
    return prompt if isinstance(prompt, str) else with_system(columns, prompt, source)


def side_of(columns: Mapping[str, Any], name: str, source: Source) -> Side:
    """A column that is text or messages. Raises DataError for anything else."""
    if isinstance(columns[name], list):
        return chat.parse(columns[name], name, source)
    return string(columns, name, source)


def _label(value: Any, source: Source) -> bool:
    """True or false, also as CSV and Parquet files write it."""
    known = {"true": True, "false": False, "1": True, "0": False}
    text = str(value).lower()
    if isinstance(value, bool | str | int) and text in known:
        return known[text]
    raise DataError(
        f"{source}: `label` should be true or false, not {kind_of(value)}",
        "write true for good answers",
    )


def as_turns(side: Side, role: str) -> Messages:
    """A side as messages."""
    return [{"role": role, "content": side}] if isinstance(side, str) else side


def as_text(side: Side, source: Source) -> str:
    """A side as text. Raises DataError for more than one message or for calls of tools, which text
    does not show."""
    if isinstance(side, str):
        return side
    if len(side) == 1 and not side[0].get("tool_calls"):
        return str(side[0]["content"])
    what = "calls of tools" if len(side) == 1 else f"{len(side)} messages"
    raise DataError(
        f"{source} holds {what}, which plain text does not show", "convert to messages instead"
    )


def split_shared(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """The prompt that two conversations share, and what is left of each, which is at least its last
    message."""
    shared = 0
    limit = min(len(chosen), len(rejected)) - 1
    while shared < limit and chosen[shared] == rejected[shared]:
        shared += 1
    return chosen[:shared], chosen[shared:], rejected[shared:]
