"""Numbers as people and models write them, read exactly: 1,234.5 · -3/4 · 1 1/2 · 50 % · $5 · 3 km
· 1.5e-3 · $\\frac{3}{4}$ · \\boxed{2} · 6.02 × 10^{23} · 5 million.

Nothing is evaluated: a text is a number by its form, or it is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from chuk_lib.rewards.units import CURRENCIES, Unit, unit_at

_LONGEST = 400
"""Digits, and size of an exponent, beyond which a text is no number: exact arithmetic would never
end."""
_SEPARATED = r"\d{1,3}(?:(?:,\d{3})+|(?:[\u00a0\u2009\u202f'_]\d{3})+)(?!\d)"
_PLAIN = rf"(?:(?:{_SEPARATED}|\d+)(?:\.\d+)?|\.\d+)"
_POWER = r"(?:[eE][+-]?\d+|\s?[×*]\s?10\s?\^\s?(?:\{\s?[+-]?\d+\s?\}|[+-]?\d+))"
_NUMBER = rf"{_PLAIN}(?:{_POWER})?"
_CORE = (
    rf"(?P<lead>[+-]?[{re.escape(CURRENCIES)}]?[+-]?)"
    rf"(?:(?P<whole>\d+)\s(?P<part>\d+/\d+)|(?P<top>{_NUMBER})(?:\s?/\s?(?P<bottom>[+-]?{_NUMBER}))?)"
)
_IN_TEXT = re.compile(rf"(?<![\w./^\\])(?<!\d:)(?<![_^]\{{){_CORE}(?![\d/:]|\.\d)")
_BARE = re.compile(_CORE)
_ALONE = re.compile(rf"(?:[A-Za-z]\w{{0,2}}\s?=\s?)?[≈~]?\s?{_CORE}")
_AFTER = re.compile(r"(?:\s?[A-Za-z°µ][A-Za-z\s/°µ().'-]*(?:\^?\{?[23²³]\}?)?)?[\s.]*")
_PERCENT = re.compile(r"\s?(?:%|percent\b|per cent\b)")
_LARGE = re.compile(r"\s?(thousand|million|billion|trillion)\b", re.IGNORECASE)
_LARGE_SIZES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SPACED = re.compile(r"(?<![\d.])\d{1,3}(?: \d{3})+(?![\d/]| \d)")
_SIGNS = str.maketrans({"−": "-", "﹣": "-", "－": "-", "⁄": "/", "∕": "/", "％": "%"})
_GLYPHS = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅕": "1/5",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
    "⅞": "7/8",
}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_POWER_OF_TEN = re.compile(r"(?<=10)[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_BLANKS = re.compile(r"[ \t]{2,}")
_LATEX = (
    (re.compile(r"\\(?:left|right|displaystyle|Large|large|bf)(?![A-Za-z])|\\!"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<=\d)\\[,;: ](?=\d{3})"), "\u2009"),
    (re.compile(r"\\[,;: ]|~|\\quad(?![A-Za-z])|\\[()\[\]]"), " "),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "×"),
    (re.compile(r"\^\s?\{?\s?\\circ(?![A-Za-z])\s?\}?|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"\\([%$])"), r"\1"),
    (
        re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s?\{([^{}]*)\}"),
        r" \1",
    ),
    (
        re.compile(
            r"(\d)?\\[dtc]?frac\s?(?:\{\s?([^{}]*?)\s?\}|(\d))\s?(?:\{\s?([^{}]*?)\s?\}|(\d))"
        ),
        None,
    ),
)


@dataclass(frozen=True)
class Quantity:
    """An exact value; `percent` when a percent sign follows (the value is not divided); the unit,
    when it is known."""

    value: Fraction
    percent: bool = False
    unit: Unit | None = None


def read_quantity(text: Any) -> Quantity | None:
    """The quantity that a text (or a number of a data file) is as a whole; None when it is more or
    less than that."""
    if isinstance(text, bool):
        return None
    if isinstance(text, int | float):
        text = repr(text)
    if not isinstance(text, str):
        return None
    plain = _without_dollars(plain_notation(text).strip())
    plain = _SPACED.sub(lambda found: found[0].replace(" ", "\u2009"), plain)
    found = _ALONE.match(plain)
    if not found:
        return None
    made = _quantity(plain, found)
    return made[0] if made and _AFTER.fullmatch(plain, made[1]) else None


def quantities_in(text: str) -> Iterator[Quantity]:
    """The quantities that stand in a text, in order. `x1`, `2x`, `1.2.3`, `3rd` and times are
    none."""
    plain = plain_notation(text)
    for found in _IN_TEXT.finditer(plain):
        made = _quantity(plain, _without_minus(plain, found))
        if made:
            yield made[0]


def same_quantity(got: Quantity, wanted: Quantity, tolerance: float = 1e-6) -> bool:
    """Whether two quantities are equal.

    Whole numbers must be the same; others may differ by `tolerance` times the larger of both, or
    times 1 when that is larger than 1. Known units must measure the same thing and are converted; a
    unit on one side only is ignored, and so is a word that is no known unit. A percent sign on one
    side only means a hundredth or nothing."""
    if got.unit and wanted.unit:
        if got.unit.dimension != wanted.unit.dimension:
            return False
        return _near(got.value * got.unit.size / wanted.unit.size, wanted.value, tolerance)
    if got.percent == wanted.percent:
        return _near(got.value, wanted.value, tolerance)
    if got.unit or wanted.unit:
        return False
    share = Fraction(1, 100)
    scaled = (got.value * share, wanted.value) if got.percent else (got.value, wanted.value * share)
    return _near(got.value, wanted.value, tolerance) or _near(*scaled, tolerance)


def plain_notation(text: str) -> str:
    """A text with LaTeX and special characters of numbers in plain form: `\\frac{1}{2}` becomes
    `1/2`."""
    text = text.translate(_SIGNS)
    if "\\" in text or "{,}" in text or "~" in text:
        for pattern, plain in _LATEX:
            text = pattern.sub(_fraction if plain is None else plain, text)
    for glyph, plain in _GLYPHS.items():
        if glyph in text:
            text = re.sub(rf"(?<=\d)\s?{glyph}", f" {plain}", text).replace(glyph, plain)
    text = _POWER_OF_TEN.sub(lambda found: "^" + found[0].translate(_RAISED), text)
    return _BLANKS.sub(" ", text)


def _without_dollars(text: str) -> str:
    """A text without the pair of signs that makes it LaTeX; a single `$` is money."""
    for mark in ("$$", "$"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            return text[len(mark) : -len(mark)].strip()
    return text


def _fraction(found: re.Match[str]) -> str:
    whole, top, bottom = found[1], found[2] or found[3], found[4] or found[5]
    if not all(re.fullmatch(rf"[+-]?{_NUMBER}", part or "") for part in (top, bottom)):
        return found[0].replace("\\frac", "\\quotient")
    return f"{whole} {top}/{bottom}" if whole else f"{top}/{bottom}"


def _without_minus(text: str, found: re.Match[str]) -> re.Match[str]:
    """The same finding, without its sign where that is a minus between two things: 10-3."""
    start = found.start()
    between = (
        start > 0
        and text[start] in "+-"
        and (text[start - 1].isalnum() or text[start - 1] in ")]}%")
    )
    return _BARE.match(text, start + 1) or found if between else found


def _quantity(text: str, found: re.Match[str]) -> tuple[Quantity, int] | None:
    """The quantity of a finding with what follows it, and where that ends; None when it cannot be a
    number."""
    value = _value(found)
    if value is None or sum(found["lead"].count(sign) for sign in "+-") > 1:
        return None
    end = found.end()
    large = _LARGE.match(text, end)
    if large:
        value, end = value * _LARGE_SIZES[large[1].lower()], large.end()
    percent = _PERCENT.match(text, end)
    if percent:
        return Quantity(value, percent=True), percent.end()
    unit, after = unit_at(text, end)
    currency = next((sign for sign in found["lead"] if sign in CURRENCIES), None)
    if unit is None and currency:
        unit = unit_at(currency, 0)[0]
    if unit is None and re.match(
        r"[A-Za-z](?![A-Za-z])|(?:st|nd|rd|th)\b|\^|\\|\{", text[end : end + 3]
    ):
        return None
    return Quantity(value, unit=unit), after


def _value(found: re.Match[str]) -> Fraction | None:
    sign = -1 if "-" in found["lead"] else 1
    if found["whole"]:
        value = _exact(found["whole"])
        part = _ratio(*found["part"].split("/"))
        return None if value is None or part is None else sign * (value + part)
    value = _exact(found["top"]) if not found["bottom"] else _ratio(found["top"], found["bottom"])
    return None if value is None else sign * value


def _ratio(top: str, bottom: str) -> Fraction | None:
    above, below = _exact(top), _exact(bottom)
    return None if above is None or not below else above / below


def _exact(text: str) -> Fraction | None:
    digits, _, power = re.sub(r"\s?[×*]\s?10\s?\^\s?", "e", text).lower().partition("e")
    digits, power = re.sub(r"[,\u00a0\u2009\u202f'_]", "", digits), power.strip("{} ") or "0"
    if len(digits) > _LONGEST or len(power) > 4 or abs(int(power)) > _LONGEST:
        return None
    return Fraction(digits) * Fraction(10) ** int(power)


def _near(got: Fraction, wanted: Fraction, tolerance: float) -> bool:
    if got.denominator == wanted.denominator == 1:
        return got == wanted
    return abs(got - wanted) <= Fraction(repr(tolerance)) * min(
        Fraction(1), max(abs(got), abs(wanted))
    )
