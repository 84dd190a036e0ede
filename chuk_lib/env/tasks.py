"""Where tasks of the hybrid environment come from, and the calculator that goes with the built-in
ones."""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from chuk_lib.env.task import Goal, HybridQuestion, HybridTask
from chuk_lib.errors import DataError

_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_CALLS: dict[str, Callable[..., Fraction]] = {"max": max, "min": min, "abs": abs}


def math_tasks(number: int) -> HybridTask:
    """An arithmetic task; the same number gives the same task."""
    from chuk_lib.data.generators.math_generator import MathProblemGenerator

    (sample,) = MathProblemGenerator(number).generate_batch(1)
    problem = sample.problem
    question = HybridQuestion(problem.problem_text, kind=problem.problem_type)
    return HybridTask(question, Goal(expected_answer=problem.answer_exact))


def tasks_of(
    source: Path | str | Sequence[Mapping[str, Any]],
) -> Callable[[int], HybridTask]:
    """Tasks by number from rows, or from a JSONL file of them; the number is taken modulo their
    count. Raises DataError with the line that is wrong, and for a source without rows."""
    if isinstance(source, Path | str):
        path = Path(source)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"`{path}`: {(error.strerror or str(error)).lower()}") from None
        tasks = [
            HybridTask.from_row(_row(line, f"`{path}`, line {at}"), f"`{path}`, line {at}")
            for at, line in enumerate(lines, 1)
            if line.strip()
        ]
    else:
        tasks = [HybridTask.from_row(row, f"task {at}") for at, row in enumerate(source, 1)]
    if not tasks:
        raise DataError("there are no tasks", "a task is a row {prompt, goal, …}")
    return lambda number: tasks[number % len(tasks)]


def _row(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is no object", "a task is {prompt, goal, …}")
    return row


def calculate(expression: str) -> str:
    """Work out an expression of + - * / ( ) max min abs, exactly.

    Args:
        expression: What to work out, for example (2 + 3) * 4.

    Returns:
        The value; a fraction where it is no whole number.
    """
    if len(expression) > 500:
        raise ValueError("an expression has at most 500 characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError):
        raise ValueError(f"`{expression[:60]}` is no expression") from None
    return str(_value(tree.body))


def _value(node: ast.expr) -> Fraction:
    """An expression's exact value. Raises ValueError for all that is no arithmetic."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _CALLS.get(node.func.id)
        if function is not None and node.args:
            return function(*(_value(argument) for argument in node.args))
    raise ValueError("only + - * / ( ) max min abs and numbers are known")
