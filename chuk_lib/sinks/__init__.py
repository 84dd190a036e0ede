"""Sinks that pass a run on to other tools: TensorBoard, Weights & Biases, Trackio. `report_to`
chooses them."""

from __future__ import annotations

from typing import Any

from chuk_lib.utils.lazy import exported

_EXPORTS = {"make_sinks": "make", "SINKS": "make"}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    return exported(__name__, _EXPORTS, name)
