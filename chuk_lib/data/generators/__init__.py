"""Generators of training data with checkable answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chuk_lib.utils.lazy import exported

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
    return exported(__name__, _HOMES, name)
