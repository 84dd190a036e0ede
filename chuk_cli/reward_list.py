"""The built-in rewards as a table: names, arguments with their defaults, what they pay for."""

from __future__ import annotations

import inspect
from typing import Any

from chuk_cli.out import Out, make_table


def show_rewards() -> None:
    """Write the table to stdout."""
    from chuk_lib.rewards.builtin import BUILT_IN
    from chuk_lib.rewards.spec import SYNTAX

    rows = [[name, entry.help, _arguments(name)] for name, entry in BUILT_IN.items()]
    out = Out()
    out.console.print(make_table("", ["reward", "pays for", "arguments"], rows))
    out.console.print(f"\nWrite {SYNTAX}. A value with , or = stands in quotes: regex:pattern='a,b'=0.5")


def _arguments(name: str) -> str:
    from chuk_lib.rewards.builtin import arguments_of

    return ", ".join(_with_default(key, default) for key, (_, default) in arguments_of(name).items()) or "-"


def _with_default(key: str, default: Any) -> str:
    if default is inspect.Parameter.empty:
        return f"{key} (needed)"
    return key if default is None else f"{key}={str(default).lower() if isinstance(default, bool) else default}"
