"""Runs on disk: finding, reading, comparing, drawing and removing them. Nothing here trains or
loads a model."""

from __future__ import annotations

from typing import Any

from chuk_lib.utils.lazy import exported

_EXPORTS = {
    "RunRecord": "record",
    "read_run": "record",
    "Summary": "summary",
    "summarize": "summary",
    "find_run": "find",
    "list_runs": "find",
    "read_log": "log",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    return exported(__name__, _EXPORTS, name)
