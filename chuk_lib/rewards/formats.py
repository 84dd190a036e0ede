"""Rewards for the form of a completion: reasoning and answer in tags."""

from __future__ import annotations

import re
from collections.abc import Callable

from chuk_lib.errors import ConfigError
from chuk_lib.rewards.types import Completions, Context, Logged, Scorer

_THINK = re.compile(r"^<think>(?!.*<think>)(.*?)</think>.*$", re.DOTALL | re.MULTILINE)
_TAG = re.compile(r"[A-Za-z_][\w.-]*")


def think_format(context: Context) -> Scorer:
    """1.0 when the completion begins with one `<think>` that is closed, else 0.0. TRL's
    `think_format_reward`."""
    return _each(lambda text: float(_THINK.match(text) is not None))


def format(context: Context, tags: str = "think+answer") -> Scorer:
    """1.0 when the completion is exactly its tagged parts, in order, each tag once and none of them
    empty, with nothing but blanks around them: `<think>…</think> <answer>…</answer>`. Else 0.0.
    `tags` are joined by `+`."""
    names = _names("format", tags)
    parts = re.compile(
        r"\s*".join(f"<{name}>(.*?)</{name}>" for name in map(re.escape, names)), re.DOTALL
    )

    def score(text: str) -> float:
        once = all(text.count(tag) == 1 for name in names for tag in (f"<{name}>", f"</{name}>"))
        found = parts.fullmatch(text.strip()) if once else None
        return float(found is not None and all(part.strip() for part in found.groups()))

    return _each(score)


def tags(context: Context, tags: str = "think+answer") -> Scorer:
    """The share of opening and closing tags that stand exactly once; a slope towards `format`."""
    marks = [mark for name in _names("tags", tags) for mark in (f"<{name}>", f"</{name}>")]
    return _each(lambda text: sum(text.count(mark) == 1 for mark in marks) / len(marks))


def last_tagged(text: str, tag: str) -> str | None:
    """What stands in the last `<tag>…</tag>`; None where there is none."""
    end = text.rfind(f"</{tag}>")
    begin = text.rfind(f"<{tag}>", 0, end) if end >= 0 else -1
    return text[begin + len(tag) + 2 : end] if begin >= 0 else None


def _names(reward: str, tags: str) -> list[str]:
    names = tags.split("+")
    wrong = [name for name in names if not _TAG.fullmatch(name)]
    if wrong or len(set(names)) < len(names):
        raise ConfigError(
            f"reward `{reward}`: tags `{tags}` should be different names",
            f"join them by +: {reward}:tags=think+answer",
        )
    return names


def _each(score: Callable[[str], float]) -> Scorer:
    def score_all(batch: Completions, logged: Logged) -> list[float | None]:
        return [score(text) for text in batch.plain]

    return Scorer(score_all)
