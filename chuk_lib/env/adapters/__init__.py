"""Environments of other libraries, as classes that are played like a user's own.

`--env KIND:NAME` makes one: its `reset(**row)` returns what is seen first, and it has one tool.
The row's `seed` says which game it is; without one the row itself does, so that all plays of a
prompt are of the same game."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import blake2b
from importlib import import_module
from typing import Any

ADAPTERS: Mapping[str, str] = {
    "textarena": "arena",
    "reasoning-gym": "reasoning",
    "gym": "gymnasium_text",
    "openenv": "openenv_client",
}
"""Each kind's module, which has `environment(name) -> class`."""


def adapted(name: str) -> type | None:
    """The class of `KIND:NAME`; None where no adapter is named. Raises ConfigError for a library
    that is not installed, and what it does not have."""
    kind, colon, rest = name.partition(":")
    if not colon or kind not in ADAPTERS:
        return None
    module = import_module(f"{__name__}.{ADAPTERS[kind]}")
    make: Callable[[str], type] = module.environment
    return make(rest)


def seed_of(row: Mapping[str, Any]) -> int:
    """Which game a row plays."""
    if row.get("seed") is not None:
        return int(row["seed"])
    text = repr(sorted((name, str(value)) for name, value in row.items()))
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "little") // 2


def as_text(value: Any) -> str:
    """An argument that should be text: models write numbers and lists where text looks so."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def behind(row: Mapping[str, Any], text: str) -> str:
    """What is seen first, apart from the prompt that it stands behind."""
    return f"\n\n{text}" if row.get("prompt") else text
