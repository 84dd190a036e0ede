"""Text for messages: values cut short, and what an error says on one line."""

from __future__ import annotations

from typing import Any


def shorten(value: Any, most: int = 60, *, keep_end: bool = False) -> str:
    """A value as text of at most `most` characters; what is longer loses its end, or its beginning
    with `keep_end`."""
    text = str(value)
    if len(text) <= most:
        return text
    return "…" + text[1 - most :] if keep_end else text[: most - 1] + "…"


def first_line(error: Exception, most: int = 200) -> str:
    """What an error says, on one line; its kind when it says nothing."""
    lines = str(getattr(error, "message", None) or error).strip().splitlines()
    return shorten(lines[0], most) if lines else type(error).__name__
