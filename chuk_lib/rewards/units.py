"""Units that stand behind numbers: enough of them to tell 500 m from 500 km, and to call 0.5 km the
same as 500 m."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_PREFIXES = {
    "": ("", Fraction(1)),
    "kilo": ("k", Fraction(1000)),
    "centi": ("c", Fraction(1, 100)),
    "milli": ("m", Fraction(1, 1000)),
}
_METRIC = {
    "length": (("meter", "metre"), "m"),
    "mass": (("gram", "gramme"), "g"),
    "volume": (("liter", "litre"), "l"),
}
_OTHERS: dict[str, dict[str, Fraction | int]] = {
    "length": {
        "inch": Fraction(254, 10000),
        "foot": Fraction(3048, 10000),
        "feet": Fraction(3048, 10000),
        "ft": Fraction(3048, 10000),
        "yard": Fraction(9144, 10000),
        "mile": Fraction(1609344, 1000),
    },
    "mass": {"ton": 1_000_000, "tonne": 1_000_000},
    "volume": {"L": 1, "mL": Fraction(1, 1000)},
    "time": {
        "s": 1,
        "sec": 1,
        "second": 1,
        "min": 60,
        "minute": 60,
        "h": 3600,
        "hr": 3600,
        "hour": 3600,
        "day": 86400,
        "week": 604800,
    },
    "angle": {"°": 1, "degree": 1},
    "temperature": {"°C": 1, "celsius": 1},
    "dollars": {"$": 1, "dollar": 1, "USD": 1, "¢": Fraction(1, 100), "cent": Fraction(1, 100)},
    "euros": {"€": 1, "euro": 1, "EUR": 1},
    "pounds": {"£": 1, "GBP": 1},
    "yen": {"¥": 1, "yen": 1, "JPY": 1},
    "rupees": {"₹": 1, "rupee": 1, "INR": 1},
}
CURRENCIES = "$€£¥₹"
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "2": 2, "3": 3, "²": 2, "³": 3}
_SIMPLE = r"(?:(square|sq|cubic)\.?\s+)?(°C|[A-Za-z°¢$€£¥₹]+)(?:\s?\^?\{?([23²³])\}?)?"
_UNIT = re.compile(rf"\s?{_SIMPLE}(?:\s?(?:/|per\b)\s?{_SIMPLE})?")


@dataclass(frozen=True)
class Unit:
    """What is measured, as powers of basic quantities, and how large the unit is in the basic
    ones."""

    dimension: tuple[tuple[str, int], ...]
    size: Fraction


def unit_at(text: str, start: int) -> tuple[Unit | None, int]:
    """The unit that begins at `start` of a text, after one blank at most, and where it ends; None
    and `start` when a word there is no known unit."""
    found = _UNIT.match(text, start)
    if not found:
        return None, start
    first = _simple(*found.group(1, 2, 3))
    if first is None:
        return None, start
    if found[5] is None:
        return first, found.end()
    second = _simple(*found.group(4, 5, 6))
    if second is None:
        return first, found.end(3) if found[3] else found.end(2)
    below = tuple((name, -power) for name, power in second.dimension)
    return Unit(tuple(sorted(first.dimension + below)), first.size / second.size), found.end()


def _simple(before: str | None, word: str, after: str | None) -> Unit | None:
    known = _look_up(word)
    if known is None:
        return None
    power = _POWERS[before or after or ""] if before or after else 1
    return Unit(((known[0], power),), known[1] ** power)


def _look_up(word: str) -> tuple[str, Fraction] | None:
    lower = word.lower()
    candidates = (
        (word, lower, lower.removesuffix("s"), lower.removesuffix("es"))
        if len(word) > 2
        else (word,)
    )
    return next((_TABLE[item] for item in candidates if item in _TABLE), None)


def _table() -> dict[str, tuple[str, Fraction]]:
    table = {}
    for dimension, (names, symbol) in _METRIC.items():
        for prefix, (short, factor) in _PREFIXES.items():
            for word in (short + symbol, *(prefix + name for name in names)):
                table[word] = (dimension, factor)
    for dimension, sizes in _OTHERS.items():
        table |= {word: (dimension, Fraction(size)) for word, size in sizes.items()}
    return table


_TABLE = _table()
