"""Rewards that compare text: exact match, and regular expressions."""

from __future__ import annotations

import re

from chuk_lib.errors import ConfigError
from chuk_lib.rewards.columns import TO_WRITE, last_of, needed, wanted
from chuk_lib.rewards.formats import last_tagged
from chuk_lib.rewards.types import Completions, Context, Logged, Scorer, plain_text


def exact_match(
    context: Context, column: str | None = None, tag: str | None = None, ignore_case: bool = False
) -> Scorer:
    """1.0 when the completion is the wanted text but for blanks around it, else 0.0.

    The wanted text is the row's `completion`, `target`, `response` or `answer`, the first that it
    has, or `column`. With `tag` only what stands in the last `<tag>…</tag>` is compared. None where
    the row has no wanted text."""

    def score(batch: Completions, logged: Logged) -> list[float | None]:
        pairs = zip(batch.plain, wanted(batch, column, TO_WRITE), strict=True)
        return [
            None if gold is None else float(same(text, plain_text(gold))) for text, gold in pairs
        ]

    def same(text: str, gold: str) -> bool:
        found = last_tagged(text, tag) if tag else text
        if found is None:
            return False
        found, gold = found.strip(), gold.strip()
        return found.casefold() == gold.casefold() if ignore_case else found == gold

    return Scorer(score, needed(column, TO_WRITE))


def regex(
    context: Context,
    pattern: str,
    column: str | None = None,
    full: bool = False,
    ignore_case: bool = False,
) -> Scorer:
    """1.0 when `pattern` is found in the completion (`full`: is all of it), else 0.0; `.` takes
    line ends too.

    With `column` the last finding must also say what the column says: its first group, or all of
    it, but for blanks."""
    try:
        compiled = re.compile(pattern, re.DOTALL | (re.IGNORECASE if ignore_case else 0))
    except re.error as error:
        raise ConfigError(
            f"reward `regex`: `{pattern}` is no regular expression: {error}", "mend the pattern"
        ) from None

    def score(batch: Completions, logged: Logged) -> list[float | None]:
        golds = wanted(batch, column, ()) if column else [""] * len(batch)
        pairs = zip(batch.plain, golds, strict=True)
        return [
            None if gold is None else float(fits(text, plain_text(gold))) for text, gold in pairs
        ]

    def fits(text: str, gold: str) -> bool:
        found = compiled.fullmatch(text.strip()) if full else last_found(text)
        if found is None or column is None:
            return found is not None
        said = found[1] if compiled.groups else found[0]
        return said is not None and said.strip() == gold.strip()

    def last_found(text: str) -> re.Match[str] | None:
        return compiled.search(text) if column is None else last_of(compiled.finditer(text))

    return Scorer(score, ((column,),) if column else ())
