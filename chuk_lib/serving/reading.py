"""Bodies and their fields. A field is read by the `Reader` that a protocol's table gives it: what
the table does not name is refused, null stands for the default, and nothing is converted: a number
in quotes is no number, `true` is none either."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chuk_lib.serving.errors import Refused

Reader = Callable[[Any, str], Any]
"""A value and what it is called to the value as it is used. Raises Refused."""
Table = Mapping[str, Reader]
_DEEPEST = 64


def parsed(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises Refused for anything else."""
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise Refused(f"the body is not UTF-8 (at byte {error.start})") from None
    except RecursionError:
        raise Refused("the body is nested too deeply") from None
    except ValueError as error:
        raise Refused(f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(body, dict):
        raise Refused(f"the body must be a JSON object, not {kind_of(body)}")
    _check_depth(body)
    return body


def read(body: Mapping[str, Any], table: Table, where: str = "") -> dict[str, Any]:
    """The fields of an object that are not null, each by its reader; `where` is the object's own
    name. Raises Refused for the first that is wrong or unknown."""
    unknown = next((name for name in body if name not in table), None)
    if unknown is not None:
        raise Refused(f"unknown field `{unknown[:60]}`", f"{where}{unknown[:60]}")
    return {
        name: table[name](value, f"{where}{name}")
        for name, value in body.items()
        if value is not None
    }


def need(fields: Mapping[str, Any], name: str) -> Any:
    """A field that must be there."""
    if name not in fields:
        raise Refused(f"`{name}` is missing", name)
    return fields[name]


def text(value: Any, where: str) -> str:
    """Text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise Refused(f"`{where}` must be text, not {kind_of(value)}", where)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused(f"`{where}` holds half a character", where) from None
    return value


def flag(value: Any, where: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise Refused(f"`{where}` must be true or false, not {kind_of(value)}", where)
    return value


def number(low: float, high: float = math.inf) -> Reader:
    """A number from `low` to `high`."""

    def reader(value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused(f"`{where}` must be a number, not {kind_of(value)}", where)
        if not low <= value <= high or abs(value) > 1e30:
            raise Refused(f"`{where}` is {_short(value)}, it must be {_span(low, high)}", where)
        return float(value)

    return reader


def whole(low: int, high: int | None = None) -> Reader:
    """A whole number from `low` to `high`."""

    def reader(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused(f"`{where}` must be a whole number, not {kind_of(value)}", where)
        if value < low or (high is not None and value > high):
            most = math.inf if high is None else high
            raise Refused(f"`{where}` is {_short(value)}, it must be {_span(low, most)}", where)
        return value

    return reader


def one_of(*names: str) -> Reader:
    """One of some words."""

    def reader(value: Any, where: str) -> str:
        if value not in names or not isinstance(value, str):
            raise Refused(f"`{where}` must be one of {', '.join(names)}", where)
        return value

    return reader


def only(*values: Any, why: str) -> Reader:
    """A field that may hold what changes nothing, and nothing else; `why` the rest is refused."""

    def reader(value: Any, where: str) -> Any:
        # 0 is not False here, and 0.0 is 0.
        if not any(
            one == value and isinstance(value, bool) == isinstance(one, bool) for one in values
        ):
            raise Refused(f"`{where}`: {why}", where)
        return value

    return reader


def anything(value: Any, where: str) -> Any:
    """A field that by its meaning changes no answer: it names the caller, or keeps books."""
    return value


def obj(value: Any, where: str) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise Refused(f"`{where}` must be an object, not {kind_of(value)}", where)
    return value


def items(reader: Reader, most: int, least: int = 0) -> Reader:
    """A list of `least` to `most` values."""

    def read_all(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise Refused(f"`{where}` must be a list, not {kind_of(value)}", where)
        if not least <= len(value) <= most:
            raise Refused(f"`{where}` has {len(value)} items, it may have {least} to {most}", where)
        return [reader(one, f"{where}[{at}]") for at, one in enumerate(value)]

    return read_all


def one_or_more(reader: Reader, most: int) -> Reader:
    """A value or a list of them, as a list."""
    several = items(reader, most)
    return lambda value, where: (
        several(value, where) if isinstance(value, list) else [reader(value, where)]
    )


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    names: Sequence[tuple[type, str]] = (
        (bool, "true or false"),
        (int, "a number"),
        (float, "a number"),
        (str, "text"),
        (list, "a list"),
        (dict, "an object"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "null")


def _span(low: float, high: float) -> str:
    return f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:.12g}"


def _short(value: float) -> str:
    shown = str(value) if abs(value) < 1e30 else "too large"
    return shown[:40]


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key `{twice[:60]}` stands twice")
    return found


def _check_depth(body: Any) -> None:
    level: list[Any] = [body]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for one in level:
            below += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        level = below
        if not level:
            return
    raise Refused("the body is nested too deeply")
