"""How large the result of an operation in a chat template will be, before it is made: upper bounds,
in characters of a text or items of a list."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

LONGEST = 16_000_000
"""Characters of one text, items of one list, and characters written in all; more where messages are
longer."""
MADE = 128_000_000
"""Characters and items that one rendering may make on its way, those thrown away included."""
_MANY_DIGITS = re.compile(r"\d{7}")


def size(value: Any) -> int:
    """Characters or items of a value, 0 of a number."""
    return len(value) if isinstance(value, str | list | tuple | dict | bytes) else 0


def count(value: Any) -> int:
    """A number as a count: how often, or how wide."""
    return max(0, value) if isinstance(value, int) else 0


def bits(value: Any) -> int:
    """The length of a whole number."""
    return value.bit_length() if isinstance(value, int) else 0


def _text_size(value: Any) -> int:
    return len(value) if isinstance(value, str) else len(str(value))


def formatted(pattern: Any, values: Any) -> int:
    """An upper bound of what a format pattern makes; a width of seven digits is beyond any
    limit."""
    text = str(pattern)
    if _MANY_DIGITS.search(text):
        return LONGEST + 1
    found = values.values() if isinstance(values, dict) else values
    widths = sum(map(int, re.findall(r"\d+", text)))
    numbers = [count(value) if "*" in text or "{" in text else 0 for value in found]
    longest = max(
        [*map(_text_size, found), *(number if number > 10**6 else 0 for number in numbers)],
        default=0,
    )
    return len(text) + widths + longest * (text.count("%") + text.count("{"))


def _padded(text: Any, given: tuple[Any, ...]) -> int:
    return max([_text_size(text), *map(count, given)])


def _replaced(text: Any, given: tuple[Any, ...]) -> int:
    old, new = (str(part) for part in given[:2]) if len(given) > 1 else ("", "")
    return _text_size(text) + str(text).count(old) * len(new)


def _join_size(items: Any, given: tuple[Any, ...]) -> int:
    """Of the filter (items first) and of the method (separator first)."""
    if isinstance(items, str) and given and not isinstance(given[0], str):
        items, given = given[0], (items,)
    between = _text_size(given[0]) if given else 0
    counted = list(items) if isinstance(items, list | tuple | dict | str) else []
    return sum(map(_text_size, counted)) + between * len(counted)


def _indented(text: Any, given: tuple[Any, ...]) -> int:
    width = max(
        (_text_size(part) if isinstance(part, str) else count(part) for part in given), default=4
    )
    return _text_size(text) + (str(text).count("\n") + 1) * width


def _items(value: Any, given: tuple[Any, ...]) -> int:
    return size(value) + max(map(count, given), default=0)


def _json_size(value: Any, given: tuple[Any, ...]) -> int:
    """Indents only: without one the text is about as long as what the template was given."""
    width = max(map(count, (part for part in given if not isinstance(part, bool))), default=0)
    return 0 if not width else _text_size(value) * (width + 1)


GROWTH: dict[str, Callable[[Any, tuple[Any, ...]], int]] = {
    "batch": _items,
    "center": _padded,
    "expandtabs": lambda text, given: len(text) + text.count("\t") * _padded("", given),
    "format": formatted,
    "format_map": lambda text, given: formatted(text, given[0] if given else {}),
    "indent": _indented,
    "join": _join_size,
    "ljust": _padded,
    "replace": _replaced,
    "rjust": _padded,
    "slice": _items,
    "tojson": _json_size,
    "wordwrap": _indented,
    "zfill": _padded,
}
"""How much the methods and filters make that can make much of little: an upper bound from the value
and arguments."""
