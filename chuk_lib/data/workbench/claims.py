"""Rows that contradict an earlier one: to one question another short answer, of one answer another
label, of one pair the other side preferred.

Long answers to one question differ without contradicting each other, so only those of one or two
words are compared, whatever their case, points and trailing zeros."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from chuk_lib.data.formats import Chat, PromptCompletion
from chuk_lib.data.workbench.content import ask_of, key_of
from chuk_lib.data.workbench.convert import sides
from chuk_lib.data.workbench.index import first_of
from chuk_lib.data.workbench.shapes import Labelled, Preference, Shape

_FEW_WORDS = 2


class Claims:
    """Remembers of each row what it speaks of and what it says of it: 24 bytes a row that says
    something."""

    def __init__(self) -> None:
        self._rows, self._topics, self._claims = array("Q"), array("Q"), array("Q")

    def add(self, row: int, shape: Shape, columns: Mapping[str, Any]) -> None:
        """Take a row by its number."""
        found = _claim(shape, columns)
        if found is not None:
            self._rows.append(row)
            self._topics.append(key_of(found[0]))
            self._claims.append(key_of(found[1]))

    def contradictions(self) -> Iterator[tuple[int, int]]:
        """Rows, each with the first row of the same topic that says something else."""
        first = first_of(self._topics)
        claims = (
            np.frombuffer(self._claims, dtype=np.uint64)
            if len(first)
            else np.zeros(0, dtype=np.uint64)
        )
        for at in np.flatnonzero(claims != claims[first]).tolist():
            yield self._rows[at], self._rows[int(first[at])]


def _claim(shape: Shape, columns: Mapping[str, Any]) -> tuple[str, str] | None:
    if isinstance(shape, Labelled):
        return f"{shape.prompt!r} {shape.completion!r}", str(shape.label)
    if isinstance(shape, Preference):
        prompt, chosen, rejected = sides(shape)
        return f"{prompt!r} {sorted([repr(chosen), repr(rejected)])}", repr(chosen)
    if isinstance(shape, PromptCompletion):
        answer = shape.completion
    elif isinstance(shape, Chat) and shape.messages[-1]["role"] == "assistant":
        answer = str(shape.messages[-1]["content"])
    else:
        return None
    words = answer.casefold().split()
    return (ask_of(columns), _even(" ".join(words))) if 0 < len(words) <= _FEW_WORDS else None


def _even(answer: str) -> str:
    answer = answer.strip(".,;:!?\"'`*$ ")
    try:
        return repr(float(answer.replace(",", "")))
    except ValueError:
        return answer
