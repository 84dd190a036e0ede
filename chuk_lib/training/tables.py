"""Tables of what a setting may name: a row says all that is known of its choice. Imports nothing
heavy.

A name without a row raises: nothing falls through to whatever stands last. Rows that say which
settings they `reads` also say which settings do nothing beside them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from chuk_lib.errors import ConfigError

Row = TypeVar("Row")
IdleRule = tuple[tuple[str, ...], Callable[[Any], bool], str]
"""Names of settings, when they do nothing, and why in words that end the sentence "`name` does
nothing …"."""


class Reads(Protocol):
    """A row that knows its settings."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Settings that this choice reads, of those that not every choice does."""


def pick(table: Mapping[str, Row], name: str, setting: str) -> Row:
    """The row of `name`. Raises ConfigError, naming the setting and its choices, when there is
    none."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"one of: {', '.join(table)}"
    raise ConfigError(f"unknown {setting} `{name}`", hint)


def idle_rules(
    table: Mapping[str, Reads],
    setting: str,
    chosen: Callable[[Any], str] | None = None,
    instead: Mapping[str, str] | None = None,
) -> tuple[IdleRule, ...]:
    """A rule for each setting that only some rows read. `chosen` gives the row's name of a config
    (else `setting` is its field); `instead` says by setting what to do, added to the reason."""
    named = dict.fromkeys(name for row in table.values() for name in row.reads)
    return tuple(
        _rule(table, setting, name, chosen, (instead or {}).get(name, "")) for name in named
    )


def _rule(
    table: Mapping[str, Reads],
    setting: str,
    name: str,
    chosen: Callable[[Any], str] | None,
    instead: str,
) -> IdleRule:
    readers = [key for key, row in table.items() if name in row.reads]
    others = [key for key in table if key not in readers]
    few = len(readers) <= len(others)
    which = (
        f"without {setting}={' or '.join(readers)}"
        if few
        else f"with {setting}={' or '.join(others)}"
    )
    choose = chosen or (lambda config: str(getattr(config, setting)))
    return (
        (name,),
        lambda config: name not in pick(table, choose(config), setting).reads,
        which + instead,
    )
