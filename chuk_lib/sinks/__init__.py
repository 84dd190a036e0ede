"""Sinks that pass a run on to other tools: TensorBoard, Weights & Biases, Trackio. `report_to` chooses them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {"make_sinks": "make", "SINKS": "make"}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
