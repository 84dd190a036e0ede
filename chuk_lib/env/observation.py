"""What a policy sees of the hybrid environment. It is made from the question and from what
happened, never from the goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chuk_lib.env.task import HybridQuestion

HOW = """Write one action a line:
THINK: what you think
TOOL: name(key=value, ...)
DELEGATE: expert(key=value, ...)
ANSWER: the answer"""


@dataclass(frozen=True)
class HybridObservation:
    """A question, tools and experts as they are called and what for, the last actions with their
    results (without the `left_out` ones before), and how many steps are left."""

    question: HybridQuestion
    tools: Sequence[str]
    experts: Sequence[str]
    happened: Sequence[tuple[str, str]]
    left_out: int
    steps_left: int

    def text(self) -> str:
        """The observation as a prompt."""
        parts = [HOW]
        for title, named in (("Tools", self.tools), ("Experts", self.experts)):
            if named:
                parts.append("\n".join([f"{title}:", *(f"- {about}" for about in named)]))
        parts += self._constraints()
        parts.append(f"Task: {self.question.prompt}")
        if self.left_out:
            parts.append(f"({self.left_out} earlier steps are not shown.)")
        parts += [f"{action}\nResult: {result}" for action, result in self.happened]
        parts.append(f"{self.steps_left} steps left.")
        return "\n\n".join(parts)

    def _constraints(self) -> list[str]:
        lines = []
        if self.question.max_tool_calls is not None:
            lines.append(f"At most {self.question.max_tool_calls} tool calls.")
        if self.question.required_tools:
            lines.append(f"Use: {', '.join(self.question.required_tools)}.")
        return ["\n".join(lines)] if lines else []
