"""Rows that meet every condition: lengths, patterns in columns, turns, roles, scripts of
letters."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.data.types import Record
from chuk_lib.data.workbench.content import check_columns, content_of
from chuk_lib.data.workbench.convert import conversation
from chuk_lib.data.workbench.measure import Measurer
from chuk_lib.data.workbench.shapes import Shape, Shaper
from chuk_lib.data.workbench.stats import scripts
from chuk_lib.errors import ConfigError, DataError


@dataclass(frozen=True)
class Conditions:
    """What a row must meet; None and empty ask for nothing. Limits are included. `match`, `reject`:
    column -> pattern found anywhere in it. `scripts`: name -> least share of the letters."""

    min_characters: int | None = None
    max_characters: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    min_turns: int | None = None
    max_turns: int | None = None
    roles: tuple[str, ...] = ()
    match: Mapping[str, str] = field(default_factory=dict)
    reject: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, float] = field(default_factory=dict)

    @property
    def counts_tokens(self) -> bool:
        """Whether a tokenizer is needed."""
        return self.min_tokens is not None or self.max_tokens is not None

    @property
    def counts_turns(self) -> bool:
        """Whether rows are read as messages."""
        return bool(self.roles) or self.min_turns is not None or self.max_turns is not None


Check = Callable[[Record], str]
"""Why a row is left out, or ""."""


def filtered(
    records: Iterable[Record],
    conditions: Conditions,
    left_out: Counter[str],
    *,
    tokenizer: Tokenizer | None = None,
    format: str | None = None,
    text_field: str = "text",
    removed: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[Record]:
    """The rows that meet every condition, in order. `left_out` counts the others by the first
    condition that they fail; `removed` gets them with that condition in the column `left_out`."""
    checks = [*_plain(conditions), *_turns(conditions, format, text_field)]
    shaper = Shaper(format, text_field)
    rows: Iterable[tuple[Record, int]] = ((row, 0) for row in records)
    if conditions.counts_tokens:
        if tokenizer is None:
            raise ConfigError(
                "tokens cannot be counted without a tokenizer", "name a model: --model MODEL"
            )
        rows = _with_tokens(records, shaper, tokenizer)
    for record, tokens in rows:
        reason = next(filter(None, (check(record) for check in checks)), "") or _outside(
            tokens, conditions.min_tokens, conditions.max_tokens, "tokens"
        )
        if not reason:
            yield record
            continue
        left_out[reason] += 1
        if removed is not None:
            removed({**record.columns, "left_out": reason})


def _with_tokens(
    records: Iterable[Record], shaper: Shaper, tokenizer: Tokenizer
) -> Iterator[tuple[Record, int]]:
    def shaped() -> Iterator[tuple[Record, Shape]]:
        for record in records:
            yield record, shaper(record)

    for measured in Measurer(tokenizer).measure(shaped()):
        if measured.error is not None:
            raise measured.error
        yield measured.record, measured.longest


def _outside(value: int, least: int | None, most: int | None, what: str) -> str:
    if least is not None and value < least:
        return f"fewer than {least:,} {what}"
    return f"more than {most:,} {what}" if most is not None and value > most else ""


def _plain(conditions: Conditions) -> list[Check]:
    checks: list[Check] = []
    least, most = conditions.min_characters, conditions.max_characters
    if least is not None or most is not None:
        checks.append(
            lambda record: _outside(len(content_of(record.columns)), least, most, "characters")
        )
    for name, pattern in conditions.match.items():
        checks.append(_pattern(name, pattern, True))
    for name, pattern in conditions.reject.items():
        checks.append(_pattern(name, pattern, False))
    for script, share in conditions.scripts.items():
        checks.append(_script(script, share))
    return checks


def _pattern(name: str, pattern: str, wanted: bool) -> Check:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"`{pattern}` is no pattern: {error}", "see Python's `re` for how to write one"
        ) from None
    reason = f"`{name}` {'does not match' if wanted else 'matches'} {pattern}"

    def check(record: Record) -> str:
        check_columns(record.columns, [name], record.source)
        value = record.columns[name]
        text = (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        )
        return "" if (compiled.search(text) is not None) == wanted else reason

    return check


def _script(script: str, share: float) -> Check:
    wanted = script.title()
    reason = f"less than {share:g} of the letters are {wanted}"

    def check(record: Record) -> str:
        return (
            "" if scripts(Counter(content_of(record.columns))).get(wanted, 0.0) >= share else reason
        )

    return check


def _turns(conditions: Conditions, format: str | None, text_field: str) -> list[Check]:
    if not conditions.counts_turns:
        return []
    shaper = Shaper(format, text_field)

    def check(record: Record) -> str:
        messages = conversation(shaper(record), record.source).messages
        roles = {message["role"] for message in messages}
        missing = [role for role in conditions.roles if role not in roles]
        if missing:
            return f"no message of the {missing[0]}"
        turns = sum(message["role"] == "assistant" for message in messages)
        return _outside(turns, conditions.min_turns, conditions.max_turns, "turns of the assistant")

    return [check]


def nothing_left(records: Iterable[Record], left_out: Mapping[str, int]) -> Iterator[Record]:
    """The records, or a DataError when there is none, saying what most were left out for."""
    any_left = False
    for record in records:
        any_left = True
        yield record
    if not any_left:
        rows = sum(left_out.values())
        reason, count = max(left_out.items(), key=lambda item: item[1], default=("", 0))
        raise DataError(
            f"none of the {rows:,} rows is left", f"most ({count:,}) were left out for: {reason}"
        )
