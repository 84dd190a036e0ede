"""Names that a package offers and loads from its modules when they are first used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def exported(package: str, homes: Mapping[str, str], name: str) -> Any:
    """For a package's `__getattr__`: `name` from the module of the package where `homes` says it
    is. Raises AttributeError for a name that is not in it."""
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(f"{package}.{homes[name]}"), name)
