"""Generators of training data with checkable answers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chuk_lib.data.generators.math_generator import MathProblemGenerator as MathProblemGenerator
    from chuk_lib.data.generators.problems import MathProblem as MathProblem
    from chuk_lib.data.generators.problems import ToolCallTrace as ToolCallTrace
    from chuk_lib.data.generators.problems import TrainingSample as TrainingSample

_HOMES = {
    "MathProblemGenerator": "math_generator",
    "MathProblem": "problems",
    "ToolCallTrace": "problems",
    "TrainingSample": "problems",
}
__all__ = ["MathProblem", "MathProblemGenerator", "ToolCallTrace", "TrainingSample"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
