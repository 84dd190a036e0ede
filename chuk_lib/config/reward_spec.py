"""How a reward is written on the command line and in settings files.

    NAME[:key=value,key=value][=weight]          numeric    format=0.2    length:max=200=0.5
    FILE.py:function[:key=value,…][=weight]      rewards.py:brevity=0.1

Every argument has one `=`, so the next one begins the weight. A value that holds `,` or `=` stands
in quotes, single or double; a quote within is doubled."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from chuk_lib.errors import ConfigError

SYNTAX = "NAME[:key=value,…][=weight] or file.py:function[=weight]"
_FILE = re.compile(r"(.+?\.py)(?::([^:=]*))?(?=[:=]|$)(.*)", re.DOTALL)
_NAME = re.compile(r"([^:=,\s]+)(.*)", re.DOTALL)
_KEY = re.compile(r"\s*([A-Za-z_]\w*)=")
_VALUE = re.compile(r"'((?:[^']|'')*)'|\"((?:[^\"]|\"\")*)\"|([^,=]*)")


@dataclass(frozen=True)
class RewardSpec:
    """A parsed reward: a built-in's `name`, or a `file` and the function in it called `name`."""

    text: str
    name: str
    file: str | None = None
    arguments: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0


def parse_spec(text: str) -> RewardSpec:
    """Read one reward. Raises ConfigError that shows how it should be written."""
    found = _FILE.fullmatch(text.strip())
    if found:
        file, name, rest = found[1], found[2] or "", found[3]
        if not name:
            raise ConfigError(f"reward `{text}` names no function", f"write `{file}:function`")
        if not name.isidentifier():
            raise ConfigError(
                f"reward `{text}`: `{name}` cannot be a function's name", f"write `{file}:function`"
            )
        return _finish(text, name, file, rest)
    plain = _NAME.fullmatch(text.strip())
    if not plain:
        raise ConfigError(f"`{text}` is not a reward", f"write {SYNTAX}")
    return _finish(text, plain[1], None, plain[2])


def _finish(text: str, name: str, file: str | None, rest: str) -> RewardSpec:
    arguments, rest = _arguments(text, rest)
    return RewardSpec(text, name, file, arguments, _weight(text, rest))


def _arguments(text: str, rest: str) -> tuple[dict[str, str], str]:
    """The arguments after a colon, and what is left: nothing, or `=weight`."""
    found: dict[str, str] = {}
    while rest and (rest[0] == ":" if not found else rest[0] == ","):
        key = _KEY.match(rest, 1)
        if not key:
            raise ConfigError(
                f"reward `{text}`: `{rest[1:]}` is not `key=value`", f"write {SYNTAX}"
            )
        value = _VALUE.match(rest, key.end())
        single, double, bare = value.groups() if value else (None, None, "")
        if key[1] in found:
            raise ConfigError(f"reward `{text}` has `{key[1]}` twice", "give each argument once")
        found[key[1]] = _unquoted(single, "'") or _unquoted(double, '"') or (bare or "").strip()
        rest = rest[value.end() if value else key.end() :]
    return found, rest


def _unquoted(text: str | None, quote: str) -> str:
    return "" if text is None else text.replace(quote * 2, quote)


def _weight(text: str, rest: str) -> float:
    if not rest:
        return 1.0
    try:
        weight = float(rest.removeprefix("=")) if rest.startswith("=") else math.nan
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ConfigError(
            f"reward `{text}`: `{rest.lstrip('=')}` is not a weight",
            f"write {SYNTAX}, and a value with `,` or `=` in quotes",
        )
    return weight
