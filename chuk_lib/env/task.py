"""A task of the hybrid environment: what a policy is asked, and, apart from it, what is right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from chuk_lib.errors import DataError

_ROW = {"prompt", "goal", "constraints", "type", "answer", "response", "completion", "metadata"}
_GOAL = {"expected_answer", "target", "tolerance"}
_CONSTRAINTS = {"max_tool_calls", "required_tools"}
_ANSWER_LINE = re.compile(r"^\s*ANSWER:\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class HybridQuestion:
    """All of a task that a policy may see."""

    prompt: str
    max_tool_calls: int | None = None
    required_tools: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Goal:
    """What is right. It stays in the environment: nothing that a policy sees is made from it.

    `target` with `tolerance` is a number to come near; `expected_answer` a text or a number."""

    expected_answer: str | None = field(default=None, repr=False)
    target: float | None = field(default=None, repr=False)
    tolerance: float = 1e-6

    def closeness(self, answer: str) -> float | None:
        """1 for the right answer, 0 for a wrong one, between them for a number within twice the
        tolerance of `target`; None when nothing is expected.

        Numbers are the same in any spelling (`1/2`, `0.5`); other texts without regard to case
        and outer spaces. A text that holds the answer among other words is wrong."""
        from chuk_lib.rewards.numbers import read_quantity, same_quantity

        got = read_quantity(answer.strip().rstrip("."))
        if self.target is not None:
            off = abs(float(got.value) - self.target) if got is not None else float("inf")
            return 1.0 if off <= self.tolerance else 0.5 if off <= 2 * self.tolerance else 0.0
        if self.expected_answer is None:
            return None
        wanted = read_quantity(self.expected_answer)
        if wanted is not None:
            return float(got is not None and same_quantity(got, wanted, self.tolerance))
        return float(_plain(answer) == _plain(self.expected_answer))


@dataclass(frozen=True)
class HybridTask:
    """A question and its goal."""

    question: HybridQuestion
    goal: Goal = field(default_factory=Goal)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], where: str = "the task") -> HybridTask:
        """A task from a row: {prompt, goal: {expected_answer | target, tolerance}, constraints:
        {max_tool_calls, required_tools}, type}.

        Rows for training will do as well: the answer is then `answer`, `metadata.answer`, or the
        ANSWER line of `response` or `completion`. Raises DataError for a row without a prompt,
        and for a key that means nothing here."""
        goal, constraints = row.get("goal") or {}, row.get("constraints") or {}
        _refuse_unknown(row, _ROW, where)
        _refuse_unknown(goal, _GOAL, f"{where}, goal")
        _refuse_unknown(constraints, _CONSTRAINTS, f"{where}, constraints")
        if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise DataError(f"{where} has no prompt", "a task is {prompt, goal, …}")
        most, target = constraints.get("max_tool_calls"), goal.get("target")
        expected = goal.get("expected_answer", _answer_of(row))
        question = HybridQuestion(
            row["prompt"],
            None if most is None else int(most),
            tuple(constraints.get("required_tools") or ()),
            str(row.get("type") or ""),
        )
        right = None if expected is None else str(expected)
        near = None if target is None else float(target)
        return cls(question, Goal(right, near, float(goal.get("tolerance", 1e-6))))


def _refuse_unknown(row: Mapping[str, Any], known: Set[str], where: str) -> None:
    for key in row:
        if key not in known:
            raise DataError(f"{where}: unknown key `{key}`", f"known: {sorted(known)}")


def _answer_of(row: Mapping[str, Any]) -> Any:
    """The answer that a row for training holds, or None."""
    given = row.get("answer", (row.get("metadata") or {}).get("answer"))
    if given is not None:
        return given
    lines = _ANSWER_LINE.findall(str(row.get("response") or row.get("completion") or ""))
    return lines[-1] if lines else None


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
