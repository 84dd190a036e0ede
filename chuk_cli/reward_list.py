"""The built-in rewards as a table: names, arguments with their defaults, what they pay for."""

from __future__ import annotations

import inspect
from typing import Any

from chuk_cli.out import Out, make_table


def show_rewards(out: Out) -> None:
    """Write the list to stdout: a table, JSON, or the bare names."""
    from chuk_lib.config.reward_spec import SYNTAX
    from chuk_lib.rewards.builtin import BUILT_IN, arguments_of

    arguments = {
        name: {key: default for key, (_, default) in arguments_of(name).items()}
        for name in BUILT_IN
    }
    found = [
        {"name": name, "help": entry.help, "arguments": _as_json(arguments[name])}
        for name, entry in BUILT_IN.items()
    ]
    rows = [[name, entry.help, _in_words(arguments[name])] for name, entry in BUILT_IN.items()]
    out.result(
        found, human=make_table("", ["reward", "pays for", "arguments"], rows), quiet=list(BUILT_IN)
    )
    if out.human:
        out.console.print(
            f"\nWrite {SYNTAX}. A value with , or = stands in quotes: regex:pattern='a,b'=0.5"
        )


def _as_json(arguments: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each argument with whether it is needed, and its default where it is not."""
    empty = inspect.Parameter.empty
    return {
        key: {"needed": True} if default is empty else {"needed": False, "default": default}
        for key, default in arguments.items()
    }


def _in_words(arguments: dict[str, Any]) -> str:
    return ", ".join(_with_default(key, default) for key, default in arguments.items()) or "-"


def _with_default(key: str, default: Any) -> str:
    if default is inspect.Parameter.empty:
        return f"{key} (needed)"
    return (
        key
        if default is None
        else f"{key}={str(default).lower() if isinstance(default, bool) else default}"
    )
