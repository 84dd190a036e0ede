"""What a step and an episode of the hybrid environment are worth, in named parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from chuk_lib.env.task import HybridQuestion


@dataclass(frozen=True, kw_only=True)
class HybridReward:
    """The worth of everything that can happen. The bonuses `fast` and `few_tools` are for right
    answers only: whoever is wrong quickly gets nothing for it."""

    correct: float = 1.0
    partial: float = 0.5
    wrong: float = -0.5
    unjudged: float = 0.1
    no_answer: float = -1.0
    timeout: float = -2.0
    step: float = -0.01
    tool: float = 0.0
    invalid: float = -0.1
    tool_error: float = -0.2
    delegation: float = 0.0
    expert_success: float = 0.2
    violation: float = -0.5
    fast: float = 0.5
    fast_steps: int = 5
    few_tools: float = 0.2
    few_tools_most: int = 3

    def of_step(self, happened: Happened) -> dict[str, float]:
        """The parts of one step, without those that are 0."""
        parts = {
            "step": self.step,
            "tool": self.tool if happened.kind == "tool" and not happened.failed else 0.0,
            "invalid": self.invalid if happened.failed == "invalid" else 0.0,
            "tool_error": self.tool_error if happened.failed == "error" else 0.0,
            "delegation": self.delegation if happened.kind == "delegate" else 0.0,
            "expert_success": self.expert_success if happened.expert_success else 0.0,
        }
        return {name: value for name, value in parts.items() if value}

    def of_end(self, ended: Ended, question: HybridQuestion) -> dict[str, float]:
        """The parts of the end of an episode, counted once, without those that are 0."""
        right = ended.closeness == 1.0
        parts = {
            "answer": self._answer(ended),
            "timeout": self.timeout if ended.out_of_steps else 0.0,
            "fast": self.fast if right and ended.steps < self.fast_steps else 0.0,
            "few_tools": self.few_tools if right and ended.calls <= self.few_tools_most else 0.0,
            "violation": self.violation * _violations(ended, question),
        }
        return {name: value for name, value in parts.items() if value}

    def _answer(self, ended: Ended) -> float:
        if not ended.answered:
            return 0.0 if ended.out_of_steps else self.no_answer
        if ended.closeness is None:
            return self.unjudged
        if ended.closeness == 1.0:
            return self.correct
        return self.partial if ended.closeness > 0 else self.wrong


class Happened(NamedTuple):
    """What an action came to. `failed` is empty, `invalid` (unknown name, unreadable call) or
    `error` (the tool or the expert failed)."""

    kind: str
    result: str
    failed: str = ""
    expert_success: bool = False


class Ended(NamedTuple):
    """How an episode ended. `closeness` is that of the answer, None without one that is judged."""

    answered: bool
    closeness: float | None
    out_of_steps: bool
    steps: int
    calls: int
    used: frozenset[str]


def _violations(ended: Ended, question: HybridQuestion) -> int:
    """How many constraints were broken: too many calls, and each required tool not used."""
    most = question.max_tool_calls
    missing = [name for name in question.required_tools if name not in ended.used]
    return len(missing) + int(most is not None and ended.calls > most)
