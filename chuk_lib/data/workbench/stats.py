"""What a data set holds, in numbers: rows, columns, lengths, roles, scripts of letters, tokens and
how many train."""

from __future__ import annotations

import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from chuk_lib.data.formats import Chat, Text
from chuk_lib.data.report import length_bins
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.data.types import Record
from chuk_lib.data.workbench.measure import Measurer
from chuk_lib.data.workbench.shapes import Ask, Labelled, Preference, Shape, Shaper, Side, as_turns

_MOST_COLUMNS = 1000
_SCRIPTS = {
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "HALFWIDTH": "Katakana",
    "HENTAIGANA": "Hiragana",
    "KATAKANA-HIRAGANA": "",
    "MODIFIER": "",
    "CARON": "",
    "VERTICAL": "",
    "MASU": "",
    "ROMAN": "Latin",
    "TURNED": "Latin",
}
"""Scripts whose name is not the first word of their letters' names; "" for letters of several."""


class Stats:
    """Counts rows as they are read: 12 bytes a row stay in memory. `as_dict` is the result.

    Scripts are those of letters, by their Unicode names; digits, signs and spaces have none.
    `trained_share` and `tokens` need a tokenizer."""

    def __init__(
        self,
        *,
        format: str | None = None,
        text_field: str = "text",
        tokenizer: Tokenizer | None = None,
        assistant_only: bool = False,
    ) -> None:
        self._shaper = Shaper(format, text_field)
        self._measurer = (
            Measurer(tokenizer, assistant_only=assistant_only) if tokenizer is not None else None
        )
        self._columns: Counter[str] = Counter()
        self._roles: Counter[str] = Counter()
        self._turns: Counter[int] = Counter()
        self._letters: Counter[str] = Counter()
        self._characters = array("Q")
        self._tokens = array("L")
        self._all_tokens = self._learned = 0
        self._with_tools = 0

    def read(self, records: Iterable[Record]) -> Stats:
        """Count these rows. Raises DataError at a row that cannot be read or rendered."""
        rows = self._seen(records)
        if self._measurer is None:
            for _ in rows:
                pass
            return self
        for measured in self._measurer.measure(rows):
            if measured.error is not None:
                raise measured.error
            self._tokens.append(measured.longest)
            self._all_tokens += measured.tokens
            self._learned += measured.learned
        return self

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON has them. Lengths are {mean, median, p95, max, bins}."""
        rows = len(self._characters)
        result: dict[str, Any] = {
            "rows": rows,
            "format": self._shaper.format,
            "columns": dict(self._columns.most_common(_MOST_COLUMNS)),
            "characters": sum(self._characters),
            "characters_a_row": _lengths(self._characters),
            "scripts": scripts(self._letters),
        }
        if self._roles:
            result["roles"] = dict(self._roles.most_common())
            result["messages_a_row"] = dict(sorted(self._turns.items()))
            result["rows_with_tools"] = self._with_tools
        if self._measurer is not None:
            share = self._learned / self._all_tokens if self._all_tokens else 0.0
            result |= {
                "tokens": self._all_tokens,
                "tokens_a_row": _lengths(self._tokens),
                "trained_tokens": self._learned,
                "trained_share": round(share, 4),
            }
        return result

    def _seen(self, records: Iterable[Record]) -> Iterator[tuple[Record, Shape]]:
        for record in records:
            self._columns.update(list(record.columns)[:_MOST_COLUMNS])
            shape = self._shaper(record)
            texts = list(_texts(shape, self._roles, self._turns))
            self._with_tools += bool(getattr(shape, "tools", None))
            self._characters.append(sum(map(len, texts)))
            for text in texts:
                self._letters.update(text)
            yield record, shape


def _texts(shape: Shape, roles: Counter[str], turns: Counter[int]) -> Iterator[str]:
    """The texts of a row; counts its roles and messages on the way."""
    if isinstance(shape, Text):
        yield shape.text
        return
    found = list(_messages(shape))
    if found:
        turns[len(found)] += 1
    for message in found:
        roles[str(message["role"])] += 1
        yield message["content"]
    yield from (side for side in _sides(shape) if isinstance(side, str))


def _messages(shape: Shape) -> Iterator[Mapping[str, Any]]:
    if isinstance(shape, Chat):
        yield from shape.messages
    for number, side in enumerate(_sides(shape)):
        if not isinstance(side, str):
            yield from as_turns(side, "user" if number == 0 else "assistant")


def _sides(shape: Shape) -> Sequence[Side]:
    if isinstance(shape, Preference):
        return [side for side in (shape.prompt, shape.chosen, shape.rejected) if side is not None]
    if isinstance(shape, Labelled):
        return [shape.prompt, shape.completion]
    if isinstance(shape, Ask):
        return [shape.prompt]
    pair = (getattr(shape, "prompt", None), getattr(shape, "completion", None))
    return [side for side in pair if isinstance(side, str)]


def scripts(letters: Mapping[str, int]) -> dict[str, float]:
    """Shares of scripts among letters, largest first: {"Latin": 0.98, "Cyrillic": 0.02}."""
    counts: Counter[str] = Counter()
    for letter, number in letters.items():
        script = script_of(letter)
        if script:
            counts[script] += number
    whole = sum(counts.values())
    return {name: round(number / whole, 4) for name, number in counts.most_common()}


@cache
def script_of(letter: str) -> str:
    """`Latin`, `Cyrillic`, `Han` …, and "" for what is no letter, or one of no script: the first
    word of a letter's Unicode name. Signs made of letters (`ª`, `µ`, `ℵ`, bold and fullwidth
    letters) count as those."""
    if not letter.isalpha():
        return ""
    plain = next((part for part in unicodedata.normalize("NFKC", letter) if part.isalpha()), letter)
    first = unicodedata.name(plain, "OTHER").split()[0]
    return _SCRIPTS.get(first, first.title())


def _lengths(values: Sequence[int]) -> dict[str, Any]:
    numbers = np.asarray(values, dtype=np.int64)
    if not len(numbers):
        return {"mean": 0, "median": 0, "p95": 0, "max": 0, "bins": []}
    median, high = np.percentile(numbers, [50, 95])
    bins = [{"up_to": bound, "rows": count} for bound, count in length_bins(numbers)]  # type: ignore[arg-type]
    return {
        "mean": round(float(numbers.mean()), 1),
        "median": round(float(median), 1),
        "p95": round(float(high), 1),
        "max": int(numbers.max()),
        "bins": bins,
    }
