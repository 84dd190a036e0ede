"""The orchestrator: carries out what a policy writes, with tools and experts, and says what it was
worth."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from chuk_lib.env.actions import ANSWER, DELEGATE, RESULT, TOOL, Action, parse_actions
from chuk_lib.env.observation import HybridObservation
from chuk_lib.env.place import tool_thread
from chuk_lib.env.reward import Ended, Happened, HybridReward
from chuk_lib.env.task import HybridTask
from chuk_lib.errors import ChukError

ToolFunction = Callable[..., Any]
"""A tool: called with keyword arguments; what it returns becomes text."""
DELEGATE_PREFIX = "delegate_"


@dataclass(frozen=True, kw_only=True)
class OrchestratorConfig:
    """Limits of an episode. `cache_tool_calls` answers a call that was made before in the same
    episode from memory: only for tools that always answer the same."""

    max_steps: int = 50
    max_expert_steps: int = 20
    tool_call_timeout: float = 30.0
    max_result_chars: int = 2_000
    results_shown: int = 5
    cache_tool_calls: bool = False


@dataclass(frozen=True)
class OrchestratorStep:
    """What one text of the policy came to. `terminated`: it answered; `truncated`: it is out of
    steps. `parts` sum to `reward`; `results` are those of the calls in it, in order."""

    observation: HybridObservation
    reward: float
    terminated: bool
    truncated: bool
    parts: Mapping[str, float]
    actions: tuple[Action, ...]
    results: tuple[str, ...]
    info: Mapping[str, Any]


@dataclass
class _Play:
    """The state of an episode."""

    task: HybridTask
    steps: int = 0
    calls: int = 0
    made_up: int = 0
    answer: str | None = None
    used: set[str] = field(default_factory=set)
    happened: list[tuple[str, str]] = field(default_factory=list)
    cache: dict[str, Happened] = field(default_factory=dict)


class Orchestrator:
    """Plays one task after the other. `tools` and `experts` are functions by name; an expert is
    reached as `DELEGATE: name(…)` and as the tool `delegate_name` alike (`expert_tool` makes one).

    A text may hold several actions: they are carried out in order up to the answer. A `Result:`
    that the policy wrote itself is never believed, only counted (`info["made_up"]`)."""

    def __init__(
        self,
        tools: Mapping[str, ToolFunction] | None = None,
        experts: Mapping[str, ToolFunction] | None = None,
        config: OrchestratorConfig | None = None,
        reward: HybridReward | None = None,
    ) -> None:
        self.tools, self.experts = dict(tools or {}), dict(experts or {})
        self.config = config or OrchestratorConfig()
        self.reward = reward or HybridReward()
        self._play: _Play | None = None

    def reset(self, task: HybridTask) -> HybridObservation:
        """Begin a task."""
        self._play = _Play(task)
        return self._observation(self._play)

    def step(self, text: str) -> OrchestratorStep:
        """Carry out the actions of a text. Raises RuntimeError outside an episode."""
        play = self._play
        if play is None:
            raise RuntimeError("there is no episode: call reset first")
        actions = parse_actions(text)
        play.steps += 1
        before = len(play.happened)
        parts = self._carry_all_out(actions, play)
        terminated = play.answer is not None
        truncated = not terminated and play.steps >= self.config.max_steps
        if terminated or truncated:
            parts |= self.reward.of_end(self._ended(play, truncated), play.task.question)
            self._play = None
        info = {"steps": play.steps, "tool_calls": play.calls, "made_up": play.made_up}
        return OrchestratorStep(
            self._observation(play),
            sum(parts.values()),
            terminated,
            truncated,
            parts,
            tuple(actions),
            tuple(result for _, result in play.happened[before:]),
            info | ({"correct": self._closeness(play) == 1.0} if terminated else {}),
        )

    def _carry_all_out(self, actions: Sequence[Action], play: _Play) -> dict[str, float]:
        """Carry actions out up to an answer; the parts of what they are worth together. A text is
        one step, however many actions it holds."""
        parts = self.reward.of_step(Happened("think", ""))
        for action in actions:
            for name, value in self.reward.of_step(self._carry_out(action, play)).items():
                parts[name] = value if name == "step" else parts.get(name, 0.0) + value
            if action.kind == ANSWER:
                break
        return parts

    def _ended(self, play: _Play, truncated: bool) -> Ended:
        return Ended(
            play.answer is not None,
            self._closeness(play),
            truncated,
            play.steps,
            play.calls,
            frozenset(play.used),
        )

    def _closeness(self, play: _Play) -> float | None:
        return None if play.answer is None else play.task.goal.closeness(play.answer)

    def _carry_out(self, action: Action, play: _Play) -> Happened:
        if action.kind == ANSWER:
            play.answer = action.text
            return Happened("answer", "")
        if action.kind == RESULT:
            play.made_up += 1
        if action.kind not in (TOOL, DELEGATE):
            return Happened("think", "")
        happened = self._called(action, play)
        play.happened.append((str(action), happened.result))
        return happened

    def _called(self, action: Action, play: _Play) -> Happened:
        """Run a tool or an expert. Whatever goes wrong is the result's text."""
        play.calls += action.kind == TOOL
        if action.error:
            return Happened("tool", f"Error: {action.error}", "invalid")
        name, kind = action.name, "tool" if action.kind == TOOL else "delegate"
        if action.kind == TOOL and name.startswith(DELEGATE_PREFIX) and name not in self.tools:
            name, kind = name.removeprefix(DELEGATE_PREFIX), "delegate"
        known = self.experts if kind == "delegate" else self.tools
        if name not in known:
            what, there = "expert" if kind == "delegate" else "tool", ", ".join(known) or "none"
            text = f"Error: there is no {what} {name}; there are: {there}"
            return Happened(kind, text, "invalid")
        play.used.add(name)
        key = json.dumps([kind, name, dict(action.arguments)], sort_keys=True, default=str)
        if self.config.cache_tool_calls and key in play.cache:
            return play.cache[key]
        happened = play.cache[key] = self._run(kind, known[name], action.arguments)
        return happened

    def _run(self, kind: str, function: ToolFunction, arguments: Mapping[str, Any]) -> Happened:
        signature, arguments = inspect.signature(function), dict(arguments)
        if kind == "delegate" and "steps" in signature.parameters:
            most, steps = self.config.max_expert_steps, arguments.get("steps")
            arguments["steps"] = min(steps, most) if isinstance(steps, int) else steps or most
        try:
            signature.bind(**arguments)
        except TypeError as error:
            return Happened(kind, f"Error: {error}", "invalid")
        result, failed = run_within(self.config.tool_call_timeout, function, arguments)
        most = self.config.max_result_chars
        text = _as_text(result)
        if len(text) > most:
            text = f"{text[:most]} [… {len(text) - most:,} more characters cut]"
        success = isinstance(result, Mapping) and result.get("success") is True
        return Happened(kind, text, "error" if failed else "", success and kind == "delegate")

    def _observation(self, play: _Play) -> HybridObservation:
        shown = play.happened[-self.config.results_shown :] if self.config.results_shown else []
        return HybridObservation(
            play.task.question,
            [_about(name, function) for name, function in self.tools.items()],
            [_about(name, function) for name, function in self.experts.items()],
            tuple(shown),
            len(play.happened) - len(shown),
            max(0, self.config.max_steps - play.steps),
        )


def run_within(
    seconds: float, function: ToolFunction, arguments: Mapping[str, Any]
) -> tuple[Any, bool]:
    """What a function returns, and False; or the text of an error, and True, when it raises or
    takes longer. A function that hangs is left behind in its thread."""
    answers: SimpleQueue[tuple[Any, bool]] = SimpleQueue()

    def run() -> None:
        try:
            answers.put((function(**arguments), False))
        except ChukError as error:  # has its own words for whoever called
            answers.put((error.message, True))
        except Exception as error:  # a tool is the user's code: what it raises is its result
            answers.put((f"Error: {type(error).__name__}: {error}", True))

    tool_thread(run, "chuk-tool").start()
    try:
        return answers.get(timeout=seconds)
    except Empty:
        return f"Error: no answer within {seconds:g} s", True


def _as_text(result: Any) -> str:
    return result if isinstance(result, str) else json.dumps(result, default=str)


def _about(name: str, function: ToolFunction) -> str:
    """A function as it is called, with the first line of what it says of itself."""
    given = inspect.signature(function).parameters.values()
    named = [
        one.name if one.default is one.empty else f"{one.name}?"
        for one in given
        if one.kind is not one.VAR_KEYWORD
    ]
    about = (inspect.getdoc(function) or "").partition("\n")[0]
    return f"{name}({', '.join(named)})" + (f": {about}" if about else "")
