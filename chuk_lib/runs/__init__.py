"""Runs on disk: finding, reading, comparing, drawing and removing them. Nothing here trains or loads a model."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Run": "record",
    "read_run": "record",
    "Summary": "summary",
    "summarize": "summary",
    "find_run": "find",
    "list_runs": "find",
    "read_log": "log",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
