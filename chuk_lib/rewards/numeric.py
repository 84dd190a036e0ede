"""The reward for the right number, and the rule by which a completion's answer is found.

A marked answer counts, and only it: the last of `\\boxed{…}`, a line after `####`,
`<answer>…</answer>`, and what follows "answer is", "answer:" or "answer =". Where nothing is marked
the last number of the text counts, so a list of guesses wins nothing."""

from __future__ import annotations

import re
from typing import Any

from chuk_lib.errors import ConfigError
from chuk_lib.rewards.columns import TO_FIND, last_of, needed, wanted
from chuk_lib.rewards.formats import last_tagged
from chuk_lib.rewards.numbers import Quantity, quantities_in, read_quantity, same_quantity
from chuk_lib.rewards.types import Completions, Context, Logged, Scorer, plain_text

_WHERE = ("auto", "marked", "last", "whole")
_BOX = re.compile(r"\\(?:boxed|fbox)\s?")
_SAID = re.compile(r"\banswer\b(?:\s+is\b|\s+to\b[^:=\n]{0,80}?\bis\b|\s*[:=])\s*:?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")


def numeric(
    context: Context, column: str | None = None, where: str = "auto", tolerance: float = 1e-6
) -> Scorer:
    """1.0 when the completion's answer is the wanted number, else 0.0; None where the row's answer
    is no number.

    `where`: auto (a marked answer, else the last number), marked, last, or whole (the completion is
    nothing but the number). Wanted is `answer`, `solution`, `target`, `completion` or `response`,
    the first that the row has, or `column`; its own marks (`#### 72`) count too. See
    `same_quantity` for what is equal."""
    if where not in _WHERE:
        raise ConfigError(
            f"reward `numeric`: where `{where}` is unknown", f"one of: {', '.join(_WHERE)}"
        )
    if not 0 <= tolerance < 1:
        raise ConfigError(
            f"reward `numeric`: tolerance {tolerance:g} is no share", "it is from 0 to below 1"
        )

    def score(batch: Completions, logged: Logged) -> list[float | None]:
        pairs = zip(batch.plain, wanted(batch, column, TO_FIND), strict=True)
        return [judge(text, wanted_quantity(gold)) for text, gold in pairs]

    def judge(text: str, gold: Quantity | None) -> float | None:
        if gold is None:
            return None
        got = find_quantity(text, where)
        return float(got is not None and same_quantity(got, gold, tolerance))

    return Scorer(score, needed(column, TO_FIND))


def wanted_quantity(gold: Any) -> Quantity | None:
    """The number that a row of the data wants: the whole value, else what it marks, else its last
    number."""
    if gold is None or isinstance(gold, bool):
        return None
    return read_quantity(gold) or find_quantity(plain_text(gold), "auto")


def find_quantity(text: str, where: str = "auto") -> Quantity | None:
    """The answer of a completion; None when there is none, or what is marked as the answer is no
    number."""
    if where == "whole":
        return read_quantity(text)
    if where != "last":
        marked = marked_answer(text)
        if marked is not None:
            return _quantity_of(*marked)
        if where == "marked":
            return None
    return last_of(quantities_in(text))


def marked_answer(text: str) -> tuple[str, str] | None:
    """What a text marks as its answer: the kind of mark (box, hashes, tag, said) and the text; None
    without a mark."""
    if _BOX.search(text):
        return "box", last_boxed(text) or ""
    if "####" in text:
        return "hashes", text.rpartition("####")[2].strip().partition("\n")[0]
    tagged = last_tagged(text, "answer")
    if tagged is not None:
        return "tag", tagged
    said = last_of(_SAID.finditer(text))
    return ("said", text[said.end() :]) if said else None


def last_boxed(text: str) -> str | None:
    """The content of the last complete `\\boxed{…}`, braces within matched; also `\\boxed 5`."""
    boxes = {found.end(): found.start() for found in _BOX.finditer(text)}
    ends, opened = {}, []
    for found in re.finditer(r"[{}]", text) if boxes else ():
        if found[0] == "{":
            opened.append(found.start())
        elif opened:
            ends[opened.pop()] = found.start()
    for start in reversed(boxes):
        if start in ends:
            return text[start + 1 : ends[start]]
        bare = re.compile(r"[^\s{]+").match(text, start)
        if bare:
            return bare[0]
    return None


def _quantity_of(kind: str, text: str) -> Quantity | None:
    whole = read_quantity(text)
    if whole is not None or kind == "box":
        return whole
    if kind != "said":
        return last_of(quantities_in(text))
    sentence = _SENTENCE_END.split(text.lstrip(), maxsplit=1)[0]
    boxed = read_quantity(sentence.strip(" *_"))
    return boxed or next(quantities_in(sentence.rpartition("=")[2]), None)
