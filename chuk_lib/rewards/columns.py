"""Where a row keeps what the model should have written: the rule by which built-in rewards choose a
column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from chuk_lib.rewards.types import Completions

_Item = TypeVar("_Item")
TO_WRITE = ("completion", "target", "response", "answer")
"""Columns that hold the whole text to write, first one first. `answer` is last: beside a completion
it is often only the last line of it, or the same number in another spelling."""
TO_FIND = ("answer", "solution", "target", "completion", "response")
"""Columns that hold the result to find, first one first."""


def needed(column: str | None, usual: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """What a reward needs of the data: the column that the user named, or one of the usual ones."""
    return ((column,),) if column else (tuple(usual),)


def wanted(batch: Completions, column: str | None, usual: Sequence[str]) -> list[Any]:
    """One value a completion: from the column that the user named, or from the first usual one that
    has a value in its row; None where there is none."""
    names = [name for name in ([column] if column else usual) if name in batch.columns]
    rows = range(len(batch))
    return [
        next((v for name in names if (v := batch.columns[name][row]) is not None), None)
        for row in rows
    ]


def last_of(items: Iterable[_Item]) -> _Item | None:
    """The last of a stream; None when there is none."""
    last = None
    for item in items:
        last = item
    return last
