"""Prompts to write on from, with the columns that rewards read. The rules are TRL's.

A text prompt stays text (no chat template). Messages go through the template with the header of the
assistant's turn; a last turn of the assistant is continued. Rows of other kinds are taken too:
`messages` or `conversations` and prompt/completion rows give their prompt, and the answer they end
with becomes the column `answer`, or `completion` beside a column `answer`; `question`, and Alpaca's
`instruction` with its `input`, are a user's turn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from chuk_lib.data import conversation
from chuk_lib.data import messages as chat
from chuk_lib.data.alpaca import alpaca_ask, alpaca_wording
from chuk_lib.data.conversation import string
from chuk_lib.data.formats import Chat, chat_of
from chuk_lib.data.misfits import refuse_bad_reference
from chuk_lib.data.preparation import Preparation
from chuk_lib.data.reader import DataSource, read_records
from chuk_lib.data.rendering import refused
from chuk_lib.data.report import length_bins
from chuk_lib.data.sources import Sources
from chuk_lib.data.tokenizers.encoder import Encoder
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.data.turns import template_errors
from chuk_lib.data.types import Record, Source, kind_of
from chuk_lib.errors import DataError

Prompt = str | list[dict[str, Any]]
_CHATS = ("messages", "conversations")
_TEMPLATE = ("tools", "functions", "chat_template_kwargs")
"""Columns that are for the template alone; rewards do not see them."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt: as the data has it (text or messages), its token ids, all other columns, and where
    it stood."""

    prompt: Prompt
    ids: list[int]
    columns: dict[str, Any]
    source: Source

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def text(self) -> str:
        """The prompt for display: a single message's words, or each turn with its role."""
        if isinstance(self.prompt, str):
            return self.prompt
        if len(self.prompt) == 1:
            return str(self.prompt[0]["content"])
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in self.prompt)


@dataclass(frozen=True)
class PromptReport:
    """What became of a source: rows read and kept, `dropped` for their length, tokens of the
    prompts."""

    source: str
    split: str
    rows: int
    kept: int
    dropped: int
    tokens: int
    longest: int
    max_prompt_length: int | None
    conversational: bool
    columns: tuple[str, ...]
    lengths: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        bins = [{"up_to": bound, "rows": count} for bound, count in self.lengths]
        return vars(self) | {
            "columns": list(self.columns),
            "lengths": bins,
            "notes": list(self.notes),
        }


class PromptDataset:
    """The prompts of one split of a source, in file order.

    Prompts of more than `max_prompt_length` tokens are left out and counted. Raises DataError
    naming the row for rows without a prompt, and when none is left; ModelError when messages meet a
    tokenizer without a chat template."""

    def __init__(
        self,
        source: DataSource,
        tokenizer: Tokenizer,
        *,
        split: str = "train",
        max_prompt_length: int | None = None,
    ) -> None:
        self.source = str(source) if isinstance(source, str | Path | Sources) else "rows"
        reader = _PromptReader(Encoder(tokenizer))
        found = reader.rows(read_records(source, split))
        if self.source == "rows":
            self.source = found[0].source.name
        self.rows = [
            row for row in found if max_prompt_length is None or len(row) <= max_prompt_length
        ]
        if not self.rows:
            shortest = min(len(row) for row in found)
            raise DataError(
                f"`{self.source}`: all {len(found)} prompts have more than max_prompt_length"
                f" ({max_prompt_length}) tokens",
                f"the shortest has {shortest}: raise max_prompt_length",
            )
        self.columns = tuple(columns_of(self.rows))
        self.report = self._report(split, len(found), max_prompt_length, reader.notes)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PromptRow:
        return self.rows[index]

    def __iter__(self) -> Iterator[PromptRow]:
        return iter(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all prompts' ids and all columns: equal when and only when training would see
        the same rows."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(np.array([len(row), *row.ids], dtype="<i4").tobytes())
            digest.update(
                json.dumps(row.columns, sort_keys=True, default=str, ensure_ascii=False).encode()
            )
        return digest.hexdigest()

    def check_context(self, limit: int | None, words: str = "") -> None:
        """Raise DataError for a prompt that leaves no room in a context of `limit` tokens (None:
        unknown), which `words` tell of."""
        for row in self.rows:
            if limit is not None and len(row) >= limit:
                raise DataError(
                    f"{row.source}: the prompt has {len(row):,} tokens, "
                    + (words or f"the model's context holds {limit:,}"),
                    f"shorten it, or leave such prompts out with max_prompt_length={limit - 1} or"
                    " less",
                )

    def _report(
        self, split: str, rows: int, limit: int | None, said: Sequence[str]
    ) -> PromptReport:
        lengths, dropped = [len(row) for row in self.rows], rows - len(self.rows)
        notes = list(said)
        partial = [
            name for name in self.columns if any(name not in row.columns for row in self.rows)
        ]
        if partial:
            names = ", ".join(f"`{name}`" for name in partial)
            notes.append(f"not all rows have the columns {names}: rewards see null there")
        return PromptReport(
            self.source,
            split,
            rows,
            len(self.rows),
            dropped,
            sum(lengths),
            max(lengths),
            limit,
            not isinstance(self.rows[0].prompt, str),
            self.columns,
            length_bins(lengths),
            tuple(notes),
        )


def columns_of(rows: Sequence[PromptRow]) -> dict[str, list[Any]]:
    """All columns of the rows, a value for each row; None where a row lacks one."""
    names = dict.fromkeys(name for row in rows for name in row.columns)
    return {name: [row.columns.get(name) for row in rows] for name in names}


class _PromptReader:
    """Records to prompts with their ids, and what the user should know about them."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._prepare = Preparation(encoder)
        self._bare_answers = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What became of the rows read so far, with counts."""
        bare = (
            f"in {self._bare_answers:,} rows the answer holds calls of tools or reasoning, which"
            " rewards do not see: they read its text"
        )
        return (*self._prepare.notes, *([bare] if self._bare_answers else []))

    def rows(self, records: Iterable[Record]) -> list[PromptRow]:
        """All rows; texts are made one by one, so that errors name their row, and tokenised
        together."""
        parts: list[tuple[Prompt, dict[str, Any], Source]] = []
        texts: list[str] = []
        for record in records:
            prompt, columns = split_prompt(record, self._encoder.has_template)
            if parts and isinstance(prompt, str) != isinstance(parts[0][0], str):
                this, first = (
                    ("text", "messages") if isinstance(prompt, str) else ("messages", "text")
                )
                raise DataError(
                    f"{record.source} holds {this}, the first row holds {first}",
                    "keep one kind of prompt in a file",
                )
            texts.append(prompt if isinstance(prompt, str) else self._rendered(prompt, record))
            self._bare_answers += _is_bare(record)
            parts.append((prompt, columns, record.source))
        plain = bool(parts) and isinstance(parts[0][0], str)
        encodings = self._encoder.encode(texts, special=plain, goes_on=True)
        rows = [
            PromptRow(part[0], list(found.ids), *part[1:])
            for part, found in zip(parts, encodings, strict=True)
        ]
        for row in rows:
            if not row.ids:
                raise DataError(
                    f"{row.source}: the prompt is empty", "give at least one token to continue"
                )
        return rows

    def _rendered(self, turns: list[dict[str, Any]], record: Record) -> str:
        """Messages as text, up to where the assistant writes on."""
        source = record.source
        tools = conversation.tools_of(
            record.columns, source, wrapped="conversations" in record.columns
        )
        row = Chat(turns, None, tools, conversation.options_of(record.columns, source))
        row = self._prepare(row, source)
        goes_on = turns[-1]["role"] == "assistant"
        try:
            text = self._encoder.render(row.messages, row.tools, row.options, prompt=not goes_on)
        except template_errors() as error:
            raise refused(source, error) from None
        self._prepare.account(row, text, source)
        return _up_to_last_words(text, str(turns[-1]["content"]), source) if goes_on else text


def split_prompt(record: Record, has_template: bool = True) -> tuple[Prompt, dict[str, Any]]:
    """The prompt of a record and its other columns, without those that only a template reads. What
    the record ends with becomes `answer`, or `completion` when it has an `answer`. Raises DataError
    when there is no prompt."""
    columns, source = dict(record.columns), record.source
    refuse_bad_reference(columns, source)
    name = next(
        (
            name
            for name in ("prompt", *_CHATS, "question", "problem", "instruction")
            if name in columns
        ),
        None,
    )
    if name is None:
        names = ", ".join(f"`{key}`" for key in columns) or "none"
        raise DataError(
            f"{source} has no `prompt` (it has {names})",
            "give `prompt` (text or messages) or `messages`",
        )
    value = columns.pop(name)
    beside = {key: columns.pop(key) for key in _TEMPLATE if key in columns}
    if name in _CHATS:
        turns, answer = _without_answer(chat.parse(value, name, source))
    elif isinstance(value, list):
        turns, answer = chat.parse(value, name, source), _completion(columns, source)
    else:
        text, answer = string({name: value}, name, source), _completion(columns, source)
        if name == "prompt" or not has_template:
            return _plain(record, name, text, beside), _with_answer(columns, answer)
        ask = alpaca_ask(record.columns, source) if name == "instruction" else text
        earlier = conversation.history(columns, source) if name == "instruction" else []
        turns = [*earlier, {"role": "user", "content": ask}]
    return chat_of(columns, turns, None, source).messages, _with_answer(columns, answer)


def _plain(record: Record, name: str, text: str, beside: Mapping[str, Any]) -> str:
    """A prompt that stays text. Raises DataError when the row has columns that only a template
    shows."""
    if name == "instruction":
        text = alpaca_wording(record.columns, record.source)
    system = {"system": record.columns.get("system")}
    conversation.refuse_unshown(
        conversation.unshown({**beside, **system}, text, record.source), record.source
    )
    return text


def _completion(columns: dict[str, Any], source: Source) -> str | None:
    """The words of a `completion`, taken out of the columns."""
    if "completion" not in columns:
        return None
    value = columns.pop("completion")
    if isinstance(value, list):
        return str(chat.parse(value, "completion", source)[-1]["content"])
    if not isinstance(value, str):
        raise DataError(
            f"{source}: `completion` should be text or messages, not {kind_of(value)}",
            "or leave it out",
        )
    return value


def _is_bare(record: Record) -> bool:
    """Whether the answer that a record ends with says more than its text."""
    name = next((name for name in ("prompt", *_CHATS) if name in record.columns), None)
    value = record.columns.get("completion" if name == "prompt" else name or "")
    turns = chat.parse(value, "messages", record.source) if isinstance(value, list) else []
    if len(turns) < (1 if name == "prompt" else 2) or turns[-1]["role"] != "assistant":
        return False
    return any(turns[-1].get(key) for key in ("tool_calls", *chat.REASONING))


def _without_answer(turns: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """A conversation without the assistant's last turn, and what that turn says."""
    if len(turns) > 1 and turns[-1]["role"] == "assistant":
        return turns[:-1], str(turns[-1]["content"])
    return turns, None


def _with_answer(columns: dict[str, Any], answer: str | None) -> dict[str, Any]:
    return (
        columns
        if answer is None
        else columns | {"completion" if "answer" in columns else "answer": answer}
    )


def _up_to_last_words(text: str, words: str, source: Source) -> str:
    """A rendered conversation without what the template puts after its last words, as transformers'
    `continue_final_message` cuts it."""
    start = text.rfind(words.strip())
    if start < 0:
        raise DataError(
            f"{source}: the chat template does not show the last turn",
            "end the prompt with a user's turn",
        )
    whole = text[start : start + len(words.lstrip())] == words.lstrip()
    return text[: start + len(words.lstrip() if whole else words.strip())]
