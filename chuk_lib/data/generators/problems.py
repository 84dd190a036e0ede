"""What a generated problem is: its text, its expression, and an answer that is exact.

Answers are fractions inside and text outside: `12`, `4.5` where decimals are natural and end, `5/6`
elsewhere. Nothing is rounded."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

TOOL_NAME = "math_solve"
TOOL_SCHEMA = {
    "type": "function",
    "function": {
        "name": TOOL_NAME,
        "description": "Evaluate an arithmetic expression exactly.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}


@dataclass(frozen=True)
class MathProblem:
    """One problem. `answer_exact` is the answer; `answer` is its nearest float, for plots and
    sorting only.

    `key` is equal for problems that are the same but for wording, names or the order of summands
    and factors."""

    id: str
    problem_type: str
    problem_text: str
    expression: str
    answer: float
    answer_exact: str
    difficulty: int
    key: tuple[Any, ...]
    unit: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolCallTrace:
    """One step of the solution as a tool call and what the tool answers."""

    tool_name: str
    tool_args: dict[str, str]
    tool_result: str
    thought: str = ""


@dataclass(frozen=True)
class TrainingSample:
    """A problem with its solution: as text, as tool calls, and as plausible wrong texts of the same
    form."""

    problem: MathProblem
    correct_trace: tuple[ToolCallTrace, ...]
    correct_response: str
    incorrect_responses: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """What a problem maker returns. `steps`: expressions with their values, the last one being the
    answer.

    `decimal`: write the answer as a decimal where that is exact.
    """

    text: str
    expression: str
    steps: tuple[tuple[str, Fraction], ...]
    key: tuple[Any, ...]
    unit: str | None = None
    decimal: bool = False

    @property
    def answer(self) -> Fraction:
        """The exact answer."""
        return self.steps[-1][1]


def apply(operator: str, a: Fraction, b: Fraction) -> Fraction:
    """a + b, a - b, a * b or a / b, exactly."""
    if operator == "+":
        return a + b
    if operator == "-":
        return a - b
    return a * b if operator == "*" else a / b


def exact(value: Fraction, decimal: bool = False) -> str:
    """A value as text that loses nothing: `12`, `-5/6`, and with `decimal` `4.5` where the decimals
    end."""
    if value.denominator == 1:
        return str(value.numerator)
    if not decimal:
        return f"{value.numerator}/{value.denominator}"
    twos = fives = 0
    rest = value.denominator
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
