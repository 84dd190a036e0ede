"""Packages that only some features need."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from chuk_lib.errors import ConfigError


def need(who: str, module: str, package: str, extra: str) -> Any:
    """The imported module. Raises ConfigError that names who needs it, the package, and the extra
    that installs it."""
    if find_spec(module.split(".")[0]) is None:
        raise ConfigError(
            f"{who} needs the package {package}",
            f"install it: pip install 'chuk-mlx[{extra}]'",
        )
    return import_module(module)
