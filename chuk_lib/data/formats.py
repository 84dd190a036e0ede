"""Recognising what rows mean: the first row decides the format, every later row must fit it.

A row becomes one of four shapes: `Text`, `PromptCompletion` (both as plain text), `Chat` (messages
for the chat template, maybe with a boundary between prompt and completion) or `Tokens`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chuk_lib.data import conversation
from chuk_lib.data import messages as chat
from chuk_lib.data.alpaca import alpaca_ask, alpaca_wording
from chuk_lib.data.conversation import string
from chuk_lib.data.misfits import misfit_hint, refuse_bad_answer
from chuk_lib.data.types import Record, Source, kind_of
from chuk_lib.errors import ConfigError, DataError


@dataclass(frozen=True)
class Text:
    """Plain text, learned from the first token to the end-of-text token."""

    text: str


@dataclass(frozen=True)
class PromptCompletion:
    """Plain text in two parts, joined as they stand. `unshown` names columns of the row that only a
    chat template would show; rendering refuses such rows."""

    prompt: str
    completion: str
    unshown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chat:
    """Messages; the first `prompt_count` are the prompt (None: no boundary). `options` go to the
    template."""

    messages: list[dict[str, Any]]
    prompt_count: int | None = None
    tools: list[Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tokens:
    """A row that was tokenised elsewhere; a mask that the row does not have is None."""

    input_ids: Sequence[int]
    loss_mask: Sequence[bool] | None = None
    completion_mask: Sequence[bool] | None = None


Row = Text | PromptCompletion | Chat | Tokens


@dataclass(frozen=True)
class Format:
    """A kind of row. `columns`: one of each group must be there; the rest of the row is ignored."""

    name: str
    columns: tuple[tuple[str, ...], ...]
    parse: Callable[[Recogniser, dict[str, Any], Source], Row]
    as_chat: str
    as_text: str

    def missing(self, columns: Mapping[str, Any]) -> list[str]:
        """What a row lacks to be of this format."""
        return [
            " or ".join(group)
            for group in self.columns
            if not any(name in columns for name in group)
        ]


class Recogniser:
    """Turns records into rows of one format. `format=None` takes the first that fits the first
    record.

    `has_template`: string pairs other than prompt/completion become a user and an assistant turn
    when the tokenizer has a chat template, which is what instruct models expect; `how` says what
    was done. Raises DataError, naming the row, for columns that fit no format or not the first
    row's, and for values of the wrong kind."""

    def __init__(
        self, format: str | None = None, text_field: str = "text", has_template: bool = False
    ) -> None:
        self.text_field = text_field
        self.has_template = has_template
        self._formats = formats(text_field)
        self.format = self._named(format) if format else None
        self._is_pinned = self.format is not None
        self.first: Record | None = None
        self.also: tuple[str, ...] = ()
        self.conversational = False

    def __call__(self, record: Record) -> Row:
        if self.format is None:
            self.format, self.also = self._recognise(record)
        missing = self.format.missing(record.columns)
        if missing:
            raise self._misfit(self.format, record, missing)
        if not self._is_pinned:
            refuse_bad_answer(self.format.name, record.columns, record.source)
        row = self.format.parse(self, record.columns, record.source)
        if self.first is None:
            self.first, self.conversational = record, isinstance(row, Chat)
        elif isinstance(row, Chat) != self.conversational:
            first, this = ("messages", "text") if self.conversational else ("text", "messages")
            raise DataError(
                f"{record.source} holds {this}, the first row holds {first}",
                "keep one format per file",
            )
        return row

    @property
    def how(self) -> str:
        """One phrase for the report: what is made of such rows."""
        if self.format is None:
            return "no rows yet"
        return self.format.as_chat if self.conversational else self.format.as_text

    def _named(self, name: str) -> Format:
        key = ALIASES.get(name.lower().replace("-", "_"), name.lower().replace("-", "_"))
        if key not in self._formats:
            raise ConfigError(
                f"`format` should be one of {', '.join(self._formats)}, not `{name}`",
                "or leave it unset",
            )
        return self._formats[key]

    def _recognise(self, record: Record) -> tuple[Format, tuple[str, ...]]:
        fitting = [item for item in self._formats.values() if not item.missing(record.columns)]
        if not fitting:
            raise DataError(
                f"{record.source} has the columns {_names(record.columns)}, which fit no format",
                misfit_hint(record)
                or f"formats by columns: {self._known()}; "
                "plain text under another name: set text_field",
            )
        # Alpaca rows always have the columns of input_output too.
        within = ("input_output",) if fitting[0].name == "alpaca" else ()
        return fitting[0], tuple(item.name for item in fitting[1:] if item.name not in within)

    def _known(self) -> str:
        return "; ".join(
            " + ".join(group[0] for group in item.columns) for item in self._formats.values()
        )

    def _misfit(self, wanted: Format, record: Record, missing: list[str]) -> DataError:
        lacks = " and ".join(f"`{name}`" for name in missing)
        if self.first is None:
            others = [
                item.name for item in self._formats.values() if not item.missing(record.columns)
            ]
            hint = f"the columns {_names(record.columns)} fit: {', '.join(others) or 'no format'}"
            return DataError(
                f"{record.source} has no {lacks}, which format {wanted.name} needs", hint
            )
        return DataError(
            f"{record.source} has no {lacks} (it has {_names(record.columns)}), but the first row"
            f" is {wanted.name}",
            "keep one format per file: mend the row or move it to a file of its own",
        )


def formats(text_field: str = "text") -> dict[str, Format]:
    """All formats by name, in the order in which they are tried."""
    made = (
        Format("tokens", (("input_ids",),), _tokens, "", "token ids as they stand"),
        Format("messages", (("messages",),), _messages, "messages through the chat template", ""),
        Format(
            "sharegpt",
            (("conversations",),),
            _sharegpt,
            "conversations through the chat template",
            "",
        ),
        Format(
            "prompt_completion",
            (("prompt",), ("completion",)),
            _prompt_completion,
            "prompt and completion messages through the chat template",
            "prompt and completion joined as they stand, then the end-of-text token",
        ),
        Format(
            "prompt_response",
            (("prompt",), ("response",)),
            _prompt_response,
            "prompt as a user turn and response as an assistant turn of the chat template (for"
            " plain text rename `response` to `completion`)",
            "prompt and response joined as they stand (no chat template), then the end-of-text"
            " token",
        ),
        Format(
            "alpaca",
            (("instruction",), ("output", "response")),
            _alpaca,
            "instruction and input as a user turn and output as an assistant turn of the chat"
            " template",
            "instruction, input and output in the Alpaca wording (no chat template), then the"
            " end-of-text token",
        ),
        Format(
            "input_output",
            (("input",), ("output",)),
            _input_output,
            "input as a user turn and output as an assistant turn of the chat template (for plain"
            " text name the columns `prompt` and `completion`)",
            "input and output joined as they stand (no chat template), then the end-of-text token",
        ),
        *_asked(),
        Format(
            "text",
            ((text_field,),),
            _text,
            "",
            f"`{text_field}` as it stands, then the end-of-text token",
        ),
    )
    return {item.name: item for item in made}


def _asked() -> tuple[Format, ...]:
    """Questions with answers, and problems with solutions: turns where there is a template."""
    pairs = (
        ("question", "answer", _question_answer),
        ("problem", "solution", _problem_solution),
    )
    return tuple(
        Format(
            f"{ask}_{answer}",
            ((ask,), (answer,)),
            parse,
            f"{ask} as a user turn and {answer} as an assistant turn of the chat template (for"
            " plain text name the columns `prompt` and `completion`)",
            f"{ask} and {answer} joined as they stand (no chat template), then the end-of-text"
            " token",
        )
        for ask, answer, parse in pairs
    )


ALIASES = {
    "chat": "messages",
    "openai": "messages",
    "conversations": "sharegpt",
    "instruction": "alpaca",
    "completion": "prompt_completion",
    "input_ids": "tokens",
    "pretokenized": "tokens",
}


def _names(columns: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in columns) or "none"


def _text(recogniser: Recogniser, columns: dict[str, Any], source: Source) -> Row:
    return Text(string(columns, recogniser.text_field, source))


def _messages(recogniser: Recogniser, columns: dict[str, Any], source: Source) -> Row:
    return chat_of(columns, chat.parse(columns["messages"], "messages", source), None, source)


def _sharegpt(recogniser: Recogniser, columns: dict[str, Any], source: Source) -> Row:
    found = chat.parse(columns["conversations"], "conversations", source)
    return chat_of(columns, found, None, source, wrapped=True)


def _prompt_completion(recogniser: Recogniser, columns: dict[str, Any], source: Source) -> Row:
    if isinstance(columns["prompt"], list) or isinstance(columns["completion"], list):
        return _pair_of_messages(columns, "prompt", "completion", source)
    return _plain_pair(columns, "prompt", "completion", source)


def _prompt_response(recogniser: Recogniser, columns: dict[str, Any], source: Source) -> Row:
    return _turns(recogniser, columns, "prompt", "response", source)


def _input_output(recogniser: Recogniser, columns: dict[str, Any], source: Source) -> Row:
    return _turns(recogniser, columns, "input", "output", source)


def _question_answer(recogniser: Recogniser, columns: dict[str, Any], source: Source) -> Row:
    return _turns(recogniser, columns, "question", "answer", source)


def _problem_solution(recogniser: Recogniser, columns: dict[str, Any], source: Source) -> Row:
    return _turns(recogniser, columns, "problem", "solution", source)


def _turns(
    recogniser: Recogniser, columns: dict[str, Any], ask: str, answer: str, source: Source
) -> Row:
    if (
        isinstance(columns[ask], list)
        or isinstance(columns[answer], list)
        or recogniser.has_template
    ):
        return _pair_of_messages(columns, ask, answer, source)
    return _plain_pair(columns, ask, answer, source)


def _plain_pair(columns: dict[str, Any], ask: str, answer: str, source: Source) -> PromptCompletion:
    prompt = string(columns, ask, source)
    return PromptCompletion(
        prompt, string(columns, answer, source), conversation.unshown(columns, prompt, source)
    )


def _pair_of_messages(columns: dict[str, Any], ask: str, answer: str, source: Source) -> Row:
    prompt = _as_messages(columns, ask, "user", source)
    answers = _as_messages(columns, answer, "assistant", source)
    prompt = [*conversation.history(columns, source), *prompt]
    return chat_of(columns, prompt + answers, len(prompt), source)


def _as_messages(
    columns: dict[str, Any], name: str, role: str, source: Source
) -> list[dict[str, Any]]:
    if isinstance(columns[name], list):
        return chat.parse(columns[name], name, source)
    return [{"role": role, "content": string(columns, name, source)}]


def _alpaca(recogniser: Recogniser, columns: dict[str, Any], source: Source) -> Row:
    answer = string(columns, "output" if "output" in columns else "response", source)
    asked = [
        *conversation.history(columns, source),
        {"role": "user", "content": alpaca_ask(columns, source)},
    ]
    if recogniser.has_template:
        return chat_of(
            columns, [*asked, {"role": "assistant", "content": answer}], len(asked), source
        )
    prompt = alpaca_wording(columns, source)
    unshown = tuple(
        name for name in conversation.unshown(columns, prompt, source) if name != "history"
    )
    return PromptCompletion(prompt, answer, unshown)


def chat_of(
    columns: Mapping[str, Any],
    turns: list[dict[str, Any]],
    prompt_count: int | None,
    source: Source,
    *,
    wrapped: bool = False,
) -> Chat:
    """Messages with what stands beside them in other columns; see `conversation`. Raises
    DataError."""
    found = conversation.with_system(columns, turns, source)
    count = None if prompt_count is None else prompt_count + len(found) - len(turns)
    tools = conversation.tools_of(columns, source, wrapped=wrapped)
    return Chat(found, count, tools, conversation.options_of(columns, source))


def _tokens(recogniser: Recogniser, columns: dict[str, Any], source: Source) -> Row:
    ids = columns["input_ids"]
    if not isinstance(ids, list) or not all(isinstance(token, int) and token >= 0 for token in ids):
        raise DataError(
            f"{source}: `input_ids` should be a list of token ids",
            "or give text or messages instead",
        )
    loss = _loss_mask(columns, ids, source)
    completion = _aligned(columns, "completion_mask", ids, source)
    start, end = _attended(columns, ids, source)
    done = None if completion is None else [bool(bit) for bit in completion[start:end]]
    return Tokens(ids[start:end], None if loss is None else loss[start:end], done)


def _loss_mask(columns: Mapping[str, Any], ids: list[int], source: Source) -> list[bool] | None:
    """What `labels`, or `assistant_masks` and `loss_mask` together, say of each token; None without
    them."""
    labels = _aligned(columns, "labels", ids, source)
    if labels is not None:
        if any(label not in (-100, token) for label, token in zip(labels, ids, strict=True)):
            raise DataError(
                f"{source}: `labels` should equal `input_ids` or be -100",
                "labels are not shifted here",
            )
        return [label != -100 for label in labels]
    loss: list[bool] | None = None
    for name in ("assistant_masks", "loss_mask"):
        mask = _aligned(columns, name, ids, source)
        if mask is not None:
            loss = [bool(bit) and (loss is None or loss[index]) for index, bit in enumerate(mask)]
    return loss


def _attended(columns: Mapping[str, Any], ids: list[int], source: Source) -> tuple[int, int]:
    """Start and end of the tokens that `attention_mask` shows: padding before and after them is
    left out."""
    mask = _aligned(columns, "attention_mask", ids, source)
    if mask is None or 0 not in mask:
        return 0, len(ids)
    seen = [index for index, bit in enumerate(mask) if bit]
    start, end = (seen[0], seen[-1] + 1) if seen else (0, 0)
    if len(seen) != end - start:
        raise DataError(
            f"{source}: `attention_mask` hides tokens in the middle of the row",
            "only padding at its ends is left out",
        )
    return start, end


def _aligned(
    columns: Mapping[str, Any], name: str, ids: Sequence[int], source: Source
) -> list[Any] | None:
    values = columns.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != len(ids):
        size = len(values) if isinstance(values, list) else kind_of(values)
        raise DataError(
            f"{source}: `{name}` ({size}) should be as long as `input_ids` ({len(ids)})",
            "one per token",
        )
    return values
