"""How many tokens rows have and how many of them are learned, for rows of every format.

A row of preferences counts once for each answer and is as long as the longer one; a prompt without
an answer is measured as the prompt that a model would be given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from chuk_lib.data import conversation
from chuk_lib.data.formats import Chat, PromptCompletion, Text, Tokens
from chuk_lib.data.rendering import Renderer
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.data.types import Example, Record, Source
from chuk_lib.data.workbench.convert import sides
from chuk_lib.data.workbench.shapes import Ask, Labelled, Preference, Shape, Side
from chuk_lib.errors import DataError

_CHUNK = 256


class RowMeasure(NamedTuple):
    """A row with its tokens, or with why it has none. `longest`: tokens of its longest part."""

    record: Record
    longest: int = 0
    tokens: int = 0
    learned: int = 0
    examples: tuple[Example, ...] = ()
    error: DataError | None = None


class Measurer:
    """Renders rows with a tokenizer as training would, `assistant_only` turns or all that training
    learns."""

    def __init__(self, tokenizer: Tokenizer, *, assistant_only: bool = False) -> None:
        self._tokenizer = tokenizer
        self._assistant_only = assistant_only
        self._renderers: dict[tuple[str, bool, bool], Renderer] = {}

    def measure(self, rows: Iterable[tuple[Record, Shape]]) -> Iterator[RowMeasure]:
        """Rows with their tokens, in order; a row that cannot be rendered comes with its error.
        Raises ModelError for what no row can help, such as messages for a tokenizer without a chat
        template."""
        remaining = iter(rows)
        while chunk := list(islice(remaining, _CHUNK)):
            parts = [parts_of(shape, record.source) for record, shape in chunk]
            found = iter(self._examples([part for row in parts for part in row]))
            for (record, shape), row in zip(chunk, parts, strict=True):
                mine = [next(found) for _ in row]
                errors = [
                    item for item in (*mine, _unshown(record, shape)) if isinstance(item, DataError)
                ]
                examples = tuple(item for item in mine if isinstance(item, Example))
                if errors:
                    yield RowMeasure(record, error=errors[0])
                    continue
                longest = max((len(example) for example in examples), default=0)
                tokens = sum(len(example) for example in examples)
                learned = sum(example.trained_tokens for example in examples)
                yield RowMeasure(record, longest, tokens, learned, examples)

    def _examples(self, records: list[Record]) -> list[Example | DataError]:
        if not records:
            return []
        kind = _kind(records[0])
        if all(_kind(record) == kind for record in records):
            try:
                return list(self._renderer(records[0]).render(records))
            except DataError as error:
                if len(records) == 1:
                    return [error]
        return [found for record in records for found in self._examples([record])]

    def _renderer(self, record: Record) -> Renderer:
        """One renderer for each kind of row: a renderer holds to the format of its first record."""
        kind = _kind(record)
        if kind not in self._renderers:
            self._renderers[kind] = Renderer(
                self._tokenizer, assistant_only_loss=self._assistant_only and kind[1]
            )
        return self._renderers[kind]


def _kind(record: Record) -> tuple[str, bool, bool]:
    """First column, whether it is messages, whether there are tools."""
    name, side = next(iter(record.columns.items()))
    return name, name != "input_ids" and isinstance(side, list), bool(record.columns.get("tools"))


def _unshown(record: Record, shape: Shape) -> DataError | None:
    """Why training refuses a row of plain text that has columns for a chat template; None for all
    others."""
    names: tuple[str, ...] = ()
    if isinstance(shape, PromptCompletion):
        names = shape.unshown
    elif isinstance(shape, Ask | Labelled | Preference):
        text = (
            shape.prompt
            if shape.prompt is not None or not isinstance(shape, Preference)
            else shape.chosen
        )
        names = (
            conversation.unshown(record.columns, text, record.source)
            if isinstance(text, str)
            else ()
        )
    try:
        conversation.refuse_unshown(names, record.source)
    except DataError as error:
        return error
    return None


def parts_of(shape: Shape, source: Source) -> list[Record]:
    """A shape as the supervised rows that it is rendered as."""
    if isinstance(shape, Preference):
        prompt, chosen, rejected = sides(shape)
        return [_pair(prompt, answer, shape.tools, source) for answer in (chosen, rejected)]
    if isinstance(shape, Labelled):
        return [_pair(shape.prompt, shape.completion, None, source)]
    if isinstance(shape, Ask):
        alone: dict[str, Any] = (
            {"text": shape.prompt} if isinstance(shape.prompt, str) else {"messages": shape.prompt}
        )
        return [Record(alone, source)]
    if isinstance(shape, Text):
        return [Record({"text": shape.text}, source)]
    if isinstance(shape, PromptCompletion):
        return [Record({"prompt": shape.prompt, "completion": shape.completion}, source)]
    if isinstance(shape, Tokens):
        masks = {"loss_mask": shape.loss_mask, "completion_mask": shape.completion_mask}
        more = {name: mask for name, mask in masks.items() if mask is not None}
        return [Record({"input_ids": list(shape.input_ids), **more}, source)]
    return [_chat(shape, source)]


def _chat(shape: Chat, source: Source) -> Record:
    more: dict[str, Any] = {"tools": shape.tools, "chat_template_kwargs": dict(shape.options)}
    if shape.prompt_count is None:
        return Record({"messages": shape.messages, **more}, source)
    asked, answered = shape.messages[: shape.prompt_count], shape.messages[shape.prompt_count :]
    return Record({"prompt": asked, "completion": answered, **more}, source)


def _pair(prompt: Side, answer: Side, tools: list[Any] | None, source: Source) -> Record:
    if isinstance(prompt, str) != isinstance(answer, str):
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        answer = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    more: dict[str, Any] = {"tools": tools} if tools else {}
    return Record({"prompt": prompt, "completion": answer, **more}, source)
