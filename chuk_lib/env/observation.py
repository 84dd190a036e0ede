"""What a policy sees of the hybrid environment. It is made from the question and from what
happened, never from the goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chuk_lib.env.task import HybridQuestion

HOW = """Write one action a line:
THINK: what you think
TOOL: name(key=value, ...)
DELEGATE: expert(key=value, ...)
ANSWER: the answer"""


@dataclass(frozen=True)
class HybridObservation:
    """A question, the names of tools and experts with what they are for, the last actions with
    their results (`shown` of all that there were), and how many steps are left."""

    question: HybridQuestion
    tools: Mapping[str, str]
    experts: Mapping[str, str]
    happened: Sequence[tuple[str, str]]
    left_out: int
    steps_left: int

    def text(self) -> str:
        """The observation as a prompt."""
        parts = [HOW]
        for title, named in (("Tools", self.tools), ("Experts", self.experts)):
            if named:
                lines = [f"- {name}: {about}" for name, about in named.items()]
                parts.append("\n".join([f"{title}:", *lines]))
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
