"""What a row says, whatever its format: the text that makes two rows the same, and the part of it that asks.

Ids, scores and other notes about a row are not what it says. Two rows with equal `content_of` are duplicates; a test
row whose `ask_of` also stands in the training data is leaked, however it is answered there.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from chuk_lib.errors import DataError

TURNS = ("messages", "conversations")
ASKS = ("system", "instruction", "context", "input", "prompt", "question")
ANSWERS = ("completion", "response", "output", "chosen", "rejected", "label")
_ANSWERING = ("assistant", "gpt", "chatgpt", "bot", "model")
Columns = Mapping[str, Any]


def content_of(columns: Columns, by: Sequence[str] = ()) -> str:
    """The text of a row with spaces and line ends evened out. `by` names the columns that count instead."""
    return _plain(columns, by or _content_columns(columns))


def ask_of(columns: Columns, by: Sequence[str] = ()) -> str:
    """The part of `content_of` that asks: prompt or earlier turns; all of it where nothing is asked."""
    if by:
        return content_of(columns, by)
    for name in (*TURNS, "prompt", "chosen"):
        turns = _turns(columns.get(name))
        if turns:
            cut = turns if name == "prompt" else turns[: _last_answer(turns)]
            return _even(" ".join(_strings(cut))) or content_of(columns)
    return _plain(columns, [name for name in ASKS if name in columns]) or content_of(columns)


def key_of(text: str) -> int:
    """64 bits of a text's hash, the same on every machine."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def check_columns(columns: Columns, names: Sequence[str], where: object) -> None:
    """Raise DataError when a row lacks a column that was asked for."""
    missing = [name for name in names if name not in columns]
    if missing:
        found = ", ".join(f"`{name}`" for name in columns) or "none"
        raise DataError(f"{where} has no column `{missing[0]}`", f"it has {found}")


def _content_columns(columns: Columns) -> list[str]:
    names = [name for name in (*TURNS, *ASKS, *ANSWERS, "text", "input_ids") if name in columns]
    if not names:
        return sorted(columns)
    says = [name for name in names if name not in ASKS]
    return names if says or "answer" not in columns else [*names, "answer"]


def _plain(columns: Columns, names: Sequence[str]) -> str:
    return _even("\n".join(" ".join(_strings(columns.get(name))) for name in names))


def _even(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())


def _strings(value: Any) -> Iterator[str]:
    """Every text and number inside a value, in an order that does not hang on how it was written."""
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
