"""Messages from a file, and how they look through a chat template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from chuk_cli.out import Out
from chuk_lib.errors import DataError, ModelError
from chuk_lib.utils.text import first_line

if TYPE_CHECKING:
    from chuk_lib.data.tokenizers.protocol import Tokenizer


def read_chats(source: tuple[str, str] | None, tools: list[Any] | None) -> list[Any]:
    """Records with `messages`, from a text and its name; a sample for None. Raises DataError naming
    the line."""
    from chuk_lib.data.tokenizer_doctor.template_checks import CALL, TALK, TOOL
    from chuk_lib.data.types import Record, Source

    if source is None:
        rows: list[Any] = (
            [{"messages": TALK}] if tools is None else [{"messages": CALL, "tools": [TOOL]}]
        )
        name = "sample"
    else:
        text, name = source
        rows = _rows(text, name)
    found = []
    for number, row in enumerate(rows, 1):
        where = Source(name, number, "row")
        if not isinstance(row, dict):
            raise DataError(
                f"{where} is no object with `messages`", 'a row is {"messages": [{"role": …}]}'
            )
        found.append(Record(row if tools is None else {**row, "tools": tools}, where))
    return found


def _rows(text: str, name: str) -> list[Any]:
    """A list of messages, one row, a list of rows, or one row a line."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return _lines(text, name, error)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(item, dict) and "role" in item for item in value)
    ):
        return [{"messages": value}]
    rows = value if isinstance(value, list) else [value]
    if not rows:
        raise DataError(f"`{name}` holds no messages", 'give [{"role": "user", "content": "…"}]')
    return rows


def _lines(text: str, name: str, whole: ValueError) -> list[Any]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            reason = whole if number == 1 else error
            raise DataError(
                f"`{name}` line {number} is not JSON: {reason}", "messages are JSON or JSONL"
            ) from None
        rows.append({"messages": row} if isinstance(row, list) else row)
    if not rows:
        raise DataError(f"`{name}` holds no messages", 'give [{"role": "user", "content": "…"}]')
    return rows


def show_masks(out: Out, records: list[Any], tokenizer: Tokenizer, assistant_only: bool) -> None:
    """The rows with their learned tokens marked."""
    from dataclasses import asdict

    from chuk_cli.preview import draw_rows
    from chuk_lib.data import preview_rows

    shown = preview_rows(
        records,
        tokenizer,
        rows=len(records),
        max_length=None,
        assistant_only_loss=assistant_only,
        completion_only_loss=None,
    )
    texts = ["".join(part.text for part in row.fragments) for row in shown]
    result = [{**asdict(row), "text": text} for row, text in zip(shown, texts, strict=True)]
    out.result(
        result[0] if len(result) == 1 else result, human=draw_rows(shown).rstrip("\n"), quiet=texts
    )


def show_prompts(out: Out, records: list[Any], tokenizer: Tokenizer) -> None:
    """The prompt that the model would continue: messages up to the last that the assistant did not
    write."""
    from chuk_lib.data import messages as chat
    from chuk_lib.data.tokenizers import templates
    from chuk_lib.data.tokenizers.encoder import Encoder

    encoder = Encoder(tokenizer)
    if not encoder.has_template:
        raise ModelError(
            "the tokenizer has no chat template", "try a ready one: --chat-template chatml"
        )
    texts = []
    for record in records:
        said = chat.parse(record.columns.get("messages"), "messages", record.source)
        while said and said[-1]["role"] == "assistant":
            said.pop()
        try:
            texts.append(encoder.render(said, record.columns.get("tools"), prompt=True))
        except templates.ERRORS as error:
            reason = first_line(error)
            raise DataError(
                f"{record.source}: the chat template refuses this conversation: {reason}"
            ) from None
    ids = [encoder.encode([text], special=False)[0].ids for text in texts]
    result = [
        {"text": text, "ids": row, "tokens": len(row)} for text, row in zip(texts, ids, strict=True)
    ]
    out.result(result[0] if len(result) == 1 else result, human="\n".join(texts), quiet=texts)
