"""What a row says, whatever its format: the text that makes two rows the same, and the part of it
that asks.

Two rows with equal `content_of` are duplicates; a test row whose `ask_of` also stands in the
training data is leaked, however it is answered there. Of rows whose columns fit a format the
format's columns count, and all others that hold text but for notes about the row: ids, places,
scores. Of rows that fit no format all columns count."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from chuk_lib.data.formats import formats
from chuk_lib.data.reader import read_records
from chuk_lib.data.workbench.shapes import COLUMNS, Shape, Shaper
from chuk_lib.errors import DataError

TURNS = ("messages", "conversations")
ASKS = ("system", "instruction", "context", "input", "prompt", "question")
ANSWERS = ("completion", "response", "output", "chosen", "rejected", "label", "answer")
_ASKED = ("question_answer", "problem_solution")
_NOTES = re.compile(
    r"(.+_)?(id|ids|uuid|uid|idx|ind|index|url|urls|link|hash|sha|sha256|md5|score|scores|rating|date|time|at|model|count)"
    r"|(num|n)_.+|__.+__|source.*|origin|dataset|split|license|timestamp|created|updated|meta(data)?|author|user"
    r"|duplicate_of|left_out|chunk|key|file|path|row|line",
    re.IGNORECASE,
)
"""Columns about a row: where it came from and what somebody thought of it."""
_ANSWERING = ("assistant", "gpt", "chatgpt", "bot", "model")
Columns = Mapping[str, Any]


def content_of(columns: Columns, by: Sequence[str] = ()) -> str:
    """The text of a row with spaces and line ends evened out. `by` names the columns that count
    instead."""
    return _plain(columns, by or content_columns(columns))


def ask_of(columns: Columns, by: Sequence[str] = ()) -> str:
    """The part of `content_of` that asks: prompt or earlier turns; all of it where nothing is
    asked."""
    if by:
        return content_of(columns, by)
    for name in (*TURNS, "prompt", "chosen"):
        turns = _turns(columns.get(name))
        if turns:
            cut = turns if name == "prompt" else turns[: _last_answer(turns)]
            return _even(" ".join(_strings(cut))) or content_of(columns)
    names, fits = _known(tuple(columns))
    asked = [name for name in names if name in ASKS]
    if not fits:
        asked = [name for name in names if name not in ANSWERS and not _NOTES.fullmatch(name)]
    return _plain(columns, asked) or content_of(columns)


def key_of(text: str) -> int:
    """64 bits of a text's hash, the same on every machine."""
    return int.from_bytes(
        blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def check_columns(columns: Columns, names: Sequence[str], where: object) -> None:
    """Raise DataError when a row lacks a column that was asked for."""
    missing = [name for name in names if name not in columns]
    if missing:
        found = ", ".join(f"`{name}`" for name in columns) or "none"
        raise DataError(f"{where} has no column `{missing[0]}`", f"it has {found}")


def content_columns(columns: Columns) -> list[str]:
    """The columns that make two rows the same."""
    names, fits = _known(tuple(columns))
    if not fits:
        return names
    others = [name for name in columns if name not in names and not _NOTES.fullmatch(name)]
    return names + sorted(
        name for name in others if isinstance(columns[name], str | list | Mapping)
    )


@lru_cache(maxsize=1024)
def _known(names: tuple[str, ...]) -> tuple[list[str], bool]:
    """Of these columns those of what rows say, in an order of their own, and whether they fit a
    format; all where they do not."""
    fits = any(
        not item.missing(dict.fromkeys(names))
        for item in formats("text").values()
        if item.name not in _ASKED  # whose questions often have choices or a passage beside them
    )
    fits = fits or any(all(name in names for name in wanted) for wanted in COLUMNS.values())
    own = [name for name in (*TURNS, *ASKS, *ANSWERS, "text", "input_ids") if name in names]
    return (own, True) if fits and own else (sorted(names), False)


def _plain(columns: Columns, names: Sequence[str]) -> str:
    return _even("\n".join(" ".join(_strings(columns.get(name))) for name in names))


def _even(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())


def _strings(value: Any) -> Iterator[str]:
    """Every text and number inside a value, in an order that does not hang on how it was
    written."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            if value[name] is not None and name not in ("train", "weight", "id"):
                yield from _strings(value[name])
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
    elif value is not None:
        yield str(value)


def _turns(value: Any) -> list[Any]:
    """Messages of a column, also where CSV holds them as JSON; empty for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if not isinstance(value, list):
        return []
    return value if value and all(isinstance(item, Mapping) for item in value) else []


def _last_answer(turns: list[Any]) -> int:
    roles = [turn.get("role", turn.get("from")) for turn in turns]
    return next((at for at in range(len(roles) - 1, -1, -1) if roles[at] in _ANSWERING), len(roles))


def texts_of(source: str | Path, field: str | None = None) -> Iterator[str]:
    """The texts that training on a data file reads: prompts, answers, what messages say and call,
    descriptions of tools; or one column. Raises DataError as `read_records` does, for rows that fit
    no format, and for a row without that column."""
    shaper = Shaper()
    for record in read_records(source):
        if field is None:
            try:
                yield from _texts_of_shape(shaper(record))
            except DataError as error:
                hint = f"{error.hint}; or read one column: --text-field NAME"
                raise DataError(error.message, hint) from None
            continue
        if field not in record.columns:
            raise DataError(
                f"{record.source} has no column `{field}`", f"columns: {', '.join(record.columns)}"
            )
        yield from _texts_in(record.columns[field])


def _texts_of_shape(shape: Shape) -> Iterator[str]:
    """What a row says, whatever its format. Token ids are no text."""
    for value in vars(shape).values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict) and "role" in part:
                yield from _texts_in(
                    {name: inner for name, inner in part.items() if name not in ("role", "id")}
                )
            else:
                yield from _texts_in(part)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts_in(inner)
