"""Rows of one format as rows of another. Columns that belong to no format go along.

What the new format cannot say is refused with the row's place, never dropped in silence: messages
in more turns than it has, calls of tools in plain text, an order of roles that it does not know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from chuk_lib.data.formats import Chat, PromptCompletion, Text, Tokens
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.data.types import Record, Source
from chuk_lib.data.workbench.shapes import (
    Ask,
    Labelled,
    Messages,
    Preference,
    Shape,
    Shaper,
    Side,
    as_text,
    as_turns,
    split_shared,
)
from chuk_lib.errors import ConfigError, DataError
from chuk_lib.utils.text import first_line

Columns = dict[str, Any]
Render = Callable[[Messages, list[Any] | None, Mapping[str, Any]], str]
"""Messages, tools and options of the chat template to text."""
_SPEAKERS = {"user": "human", "assistant": "gpt"}


def converted(
    records: Iterable[Record],
    to: str,
    *,
    format: str | None = None,
    text_field: str = "text",
    render: Render | None = None,
    rename: Mapping[str, str] | None = None,
    drop: Iterable[str] = (),
    left_out: Counter[str] | None = None,
) -> Iterator[Record]:
    """Rows in the format `to` (`same` keeps it: only columns are renamed and dropped). `render` is
    what makes text of messages. One row of preferences makes two of `unpaired`. `left_out` counts,
    by what it is, what the new format has no place for. Raises DataError naming the row that does
    not fit, such as an answer that is labelled bad."""
    target = ALIASES.get(to, to)
    if target != "same" and target not in WRITERS:
        raise ConfigError(f"unknown format `{to}`", f"formats: {', '.join([*WRITERS, 'same'])}")
    shaper, dropped, names = Shaper(format, text_field), frozenset(drop), dict(rename or {})
    for record in records:
        columns = _renamed(record, names, dropped)
        if target == "same":
            yield Record(columns, record.source)
            continue
        shape = shaper(Record(columns, record.source))
        notes = {name: value for name, value in columns.items() if name not in shaper.own_columns}
        if isinstance(shape, Labelled) and target != "unpaired":
            notes["label"] = _good(shape, record.source, target)
        if (
            isinstance(shape, Preference)
            and target not in ("preference", "unpaired")
            and left_out is not None
        ):
            left_out["rejected answers"] += 1
        for row in WRITERS[target](shape, notes, record.source, render):
            kept = {name: value for name, value in notes.items() if name not in row}
            yield Record({**row, **kept}, record.source)


def _good(shape: Labelled, source: Source, target: str) -> bool:
    if not shape.label:
        raise DataError(
            f"{source}: `label` says that the answer is bad, which `{target}` rows do not say",
            "keep the good ones first: chuk data filter --match 'label=(?i)^(true|1)$'; or leave"
            " the column out on purpose: --drop label",
        )
    return True


def _renamed(record: Record, names: Mapping[str, str], dropped: frozenset[str]) -> Columns:
    missing = [old for old in names if old not in record.columns]
    if missing:
        found = ", ".join(f"`{name}`" for name in record.columns)
        raise DataError(
            f"{record.source} has no column `{missing[0]}` to rename", f"it has {found[:200]}"
        )
    columns: Columns = {}
    for old, value in record.columns.items():
        new = names.get(old, old)
        if old in dropped:
            continue
        if new in columns or (
            new != old and new in record.columns and new not in names and new not in dropped
        ):
            raise DataError(
                f"{record.source} would have the column `{new}` twice", f"drop one: --drop {new}"
            )
        columns[new] = value
    return columns


def conversation(shape: Shape, source: Source) -> Chat:
    """A row as messages. Raises DataError for plain text and tokens, which have no roles."""
    if isinstance(shape, Chat):
        return shape
    if isinstance(shape, PromptCompletion):
        turns = [
            {"role": "user", "content": shape.prompt},
            {"role": "assistant", "content": shape.completion},
        ]
        return Chat(turns, 1)
    if isinstance(shape, Preference):
        prompt, chosen, _ = sides(shape)
        asked = as_turns(prompt, "user")
        return Chat([*asked, *as_turns(chosen, "assistant")], len(asked), shape.tools)
    if isinstance(shape, Labelled):
        asked = as_turns(shape.prompt, "user")
        return Chat([*asked, *as_turns(shape.completion, "assistant")], len(asked))
    if isinstance(shape, Ask):
        asked = as_turns(shape.prompt, "user")
        return Chat(asked, len(asked), shape.tools)
    what = "plain text" if isinstance(shape, Text) else "token ids"
    raise DataError(
        f"{source} holds {what}, which has no roles", "messages need a prompt and an answer"
    )


def sides(shape: Preference) -> tuple[Side, Side, Side]:
    """Prompt, chosen and rejected, the prompt taken out of the answers where it stands in them
    only."""
    if shape.prompt is not None:
        return shape.prompt, shape.chosen, shape.rejected
    if isinstance(shape.chosen, str) or isinstance(shape.rejected, str):
        return "", shape.chosen, shape.rejected
    return split_shared(shape.chosen, shape.rejected)


def _parts(shape: Shape, source: Source) -> tuple[Side, Side, list[Any] | None]:
    """Prompt, answer and tools."""
    if isinstance(shape, PromptCompletion):
        return shape.prompt, shape.completion, None
    if isinstance(shape, Labelled):
        return shape.prompt, shape.completion, None
    if isinstance(shape, Preference):
        return *sides(shape)[:2], shape.tools
    chat = conversation(shape, source)
    count = chat.prompt_count
    if count is None:
        count = len(chat.messages) - 1
        if chat.messages[-1]["role"] != "assistant" or not count:
            raise DataError(
                f"{source} does not end with an answer of the assistant",
                "mend the row, or filter it out",
            )
    if count >= len(chat.messages):
        raise DataError(
            f"{source} holds no answer", "only `prompt` rows can be made of it: --to prompt"
        )
    return chat.messages[:count], chat.messages[count:], chat.tools


def _with_tools(
    row: Columns, tools: list[Any] | None, options: Mapping[str, Any] | None = None
) -> Columns:
    more: Columns = {"tools": tools} if tools else {}
    return {**row, **more, **({"chat_template_kwargs": dict(options)} if options else {})}


def _to_messages(
    shape: Shape, notes: Columns, source: Source, render: Render | None
) -> Iterator[Columns]:
    chat = conversation(shape, source)
    yield _with_tools({"messages": chat.messages}, chat.tools, chat.options)


def _to_sharegpt(
    shape: Shape, notes: Columns, source: Source, render: Render | None
) -> Iterator[Columns]:
    chat = conversation(shape, source)
    turns = []
    for message in chat.messages:
        rest = {name: value for name, value in message.items() if name not in ("role", "content")}
        speaker = _SPEAKERS.get(message["role"], message["role"])
        turns.append({"from": speaker, "value": message["content"], **rest})
    yield _with_tools({"conversations": turns}, chat.tools, chat.options)


def _to_pair(
    shape: Shape, notes: Columns, source: Source, render: Render | None
) -> Iterator[Columns]:
    prompt, completion, tools = _parts(shape, source)
    options = shape.options if isinstance(shape, Chat) else None
    yield _with_tools({"prompt": prompt, "completion": completion}, tools, options)


def _named_pair(ask: str, answer: str) -> Callable[..., Iterator[Columns]]:
    def write(
        shape: Shape, notes: Columns, source: Source, render: Render | None
    ) -> Iterator[Columns]:
        prompt, completion, tools = _parts(shape, source)
        if tools:
            raise DataError(
                f"{source} has tools, which `{ask}` and `{answer}` do not show",
                "convert to messages",
            )
        yield {ask: as_text(prompt, source), answer: as_text(completion, source)}

    return write


def _to_alpaca(
    shape: Shape, notes: Columns, source: Source, render: Render | None
) -> Iterator[Columns]:
    for row in _named_pair("instruction", "output")(shape, notes, source, render):
        yield {"instruction": row["instruction"], "input": "", "output": row["output"]}


def _to_text(
    shape: Shape, notes: Columns, source: Source, render: Render | None
) -> Iterator[Columns]:
    if isinstance(shape, Text):
        yield {"text": shape.text}
    elif isinstance(shape, PromptCompletion):
        yield {"text": shape.prompt + shape.completion}
    else:
        chat = conversation(shape, source)
        if render is None:
            raise DataError(
                f"{source} holds messages, which need a chat template",
                "name a model: --model MODEL",
            )
        try:
            yield {"text": render(chat.messages, chat.tools, chat.options)}
        except DataError as error:
            raise DataError(f"{source}: {error.message}", error.hint) from None


def _to_preference(
    shape: Shape, notes: Columns, source: Source, render: Render | None
) -> Iterator[Columns]:
    if not isinstance(shape, Preference):
        raise DataError(
            f"{source} has no worse answer to prefer another to",
            "make pairs with `chuk data sample`",
        )
    prompt, chosen, rejected = sides(shape)
    yield _with_tools({"prompt": prompt, "chosen": chosen, "rejected": rejected}, shape.tools)


def _to_unpaired(
    shape: Shape, notes: Columns, source: Source, render: Render | None
) -> Iterator[Columns]:
    if isinstance(shape, Labelled):
        yield {"prompt": shape.prompt, "completion": shape.completion, "label": shape.label}
        return
    if not isinstance(shape, Preference):
        raise DataError(
            f"{source} does not say whether its answer is good", "convert preference pairs instead"
        )
    prompt, chosen, rejected = sides(shape)
    yield {"prompt": prompt, "completion": chosen, "label": True}
    yield {"prompt": prompt, "completion": rejected, "label": False}


def _to_prompt(
    shape: Shape, notes: Columns, source: Source, render: Render | None
) -> Iterator[Columns]:
    """The answer, where it is text and no column of that name is there, becomes the column
    `answer`."""
    if isinstance(shape, Ask):
        yield _with_tools({"prompt": shape.prompt}, shape.tools)
        return
    prompt, completion, tools = _parts(shape, source)
    row = _with_tools({"prompt": prompt}, tools)
    plain = isinstance(completion, str) or (
        len(completion) == 1 and not completion[0].get("tool_calls")
    )
    yield row if "answer" in notes or not plain else {**row, "answer": as_text(completion, source)}


def _to_tokens(
    shape: Shape, notes: Columns, source: Source, render: Render | None
) -> Iterator[Columns]:
    if not isinstance(shape, Tokens):
        raise DataError(f"{source} holds no token ids", "`chuk batch build` makes tokens of rows")
    masks = {"loss_mask": shape.loss_mask, "completion_mask": shape.completion_mask}
    yield {
        "input_ids": list(shape.input_ids),
        **{name: [int(bit) for bit in mask] for name, mask in masks.items() if mask is not None},
    }


WRITERS: dict[str, Callable[..., Iterator[Columns]]] = {
    "messages": _to_messages,
    "sharegpt": _to_sharegpt,
    "prompt_completion": _to_pair,
    "prompt_response": _named_pair("prompt", "response"),
    "input_output": _named_pair("input", "output"),
    "question_answer": _named_pair("question", "answer"),
    "problem_solution": _named_pair("problem", "solution"),
    "alpaca": _to_alpaca,
    "text": _to_text,
    "preference": _to_preference,
    "unpaired": _to_unpaired,
    "prompt": _to_prompt,
    "tokens": _to_tokens,
}
ALIASES = {
    "chat": "messages",
    "openai": "messages",
    "completion": "prompt_completion",
    "dpo": "preference",
    "kto": "unpaired",
    "grpo": "prompt",
    "prompts": "prompt",
}


def template_of(tokenizer: Tokenizer) -> Render:
    """What makes text of messages: the chat template of a tokenizer. Refuses what the template does
    not show."""
    from chuk_lib.data.preparation import EARLIER_REASONING, Preparation, left_out
    from chuk_lib.data.tokenizers.encoder import Encoder
    from chuk_lib.data.turns import template_errors

    encoder = Encoder(tokenizer)
    if not encoder.has_template:
        raise DataError(
            "this model has no chat template", "take an instruct model, or convert to messages"
        )

    def render(messages: Messages, tools: list[Any] | None, options: Mapping[str, Any]) -> str:
        row = Preparation(encoder)(Chat(messages, None, tools, options), Source("row", 1))
        try:
            text = encoder.render(row.messages, row.tools, row.options)
        except template_errors() as error:
            raise DataError(
                f"the chat template refuses a conversation: {first_line(error)}", "mend the row"
            ) from None
        lost = next(
            (what for what in left_out(row, text, encoder) if what != EARLIER_REASONING), None
        )
        if lost is not None:
            raise DataError(
                f"the chat template leaves out {lost}",
                "convert to messages, or take another template",
            )
        return text

    return render
