"""The hybrid environment for Gymnasium: text in, text out, `chuk/Hybrid-v0`.

Importing this module registers it, where Gymnasium is installed:
`gymnasium.make("chuk_lib.env.hybrid_env:chuk/Hybrid-v0", tasks=…)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chuk_lib.env.orchestrator import Orchestrator, OrchestratorConfig, ToolFunction
from chuk_lib.env.reward import HybridReward
from chuk_lib.env.task import HybridTask
from chuk_lib.env.tasks import calculate, math_tasks, tasks_of
from chuk_lib.errors import ConfigError

ID = "chuk/Hybrid-v0"
MOST = 100_000
"""Characters of the longest text that may be written or seen."""
TaskMaker = Callable[[int], HybridTask]


@cache
def hybrid_env_class() -> type[Any]:
    """The class `HybridEnv`, a `gymnasium.Env`. Raises ConfigError without Gymnasium."""
    if find_spec("gymnasium") is None:
        raise ConfigError("HybridEnv needs Gymnasium", 'pip install "chuk-mlx[experts]"')
    import gymnasium

    class AnyText(gymnasium.spaces.Text):
        """Text of any characters; `sample` draws letters and digits."""

        def contains(self, x: Any) -> bool:
            return isinstance(x, str) and len(x) <= self.max_length

    class HybridEnv(gymnasium.Env):
        """A task an episode. An action is text in the grammar of `chuk_lib.env.actions`; so is an
        observation, with the task, the tools and experts, and what happened. `info` has `parts` of
        the reward and, at the end, `correct`."""

        metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own form)

        def __init__(
            self,
            tasks: Path | str | Sequence[Mapping[str, Any]] | None = None,
            tools: Mapping[str, ToolFunction] | None = None,
            experts: Mapping[str, ToolFunction] | None = None,
            config: OrchestratorConfig | None = None,
            reward: HybridReward | None = None,
        ) -> None:
            super().__init__()
            self._task: TaskMaker = math_tasks if tasks is None else tasks_of(tasks)
            tools = {"math_solve": calculate} if tools is None and tasks is None else tools
            self.orchestrator = Orchestrator(tools, experts, config, reward)
            self.observation_space = AnyText(MOST)
            self.action_space = AnyText(MOST, min_length=0)

        def reset(
            self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
        ) -> tuple[str, dict[str, Any]]:
            """Begin a task: the one that the seed says, or the row `options["task"]`."""
            super().reset(seed=seed)
            row = (options or {}).get("task")
            number = int(self.np_random.integers(2**31))
            task = self._task(number) if row is None else HybridTask.from_row(row)
            return self.orchestrator.reset(task).text()[:MOST], {"type": task.question.kind}

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            """Carry out a text."""
            done = self.orchestrator.step(action)
            info = {**done.info, "parts": dict(done.parts)}
            text = done.observation.text()[:MOST]
            return text, done.reward, done.terminated, done.truncated, info

    return HybridEnv


def make_hybrid_env(**settings: Any) -> Any:
    """A new `HybridEnv`; what `gymnasium.make` calls."""
    return hybrid_env_class()(**settings)


def register_hybrid() -> None:
    """Tell Gymnasium of `chuk/Hybrid-v0`, once."""
    import gymnasium

    if ID not in gymnasium.registry:
        gymnasium.register(ID, entry_point="chuk_lib.env.hybrid_env:make_hybrid_env")


def __getattr__(name: str) -> Any:
    if name == "HybridEnv":
        return hybrid_env_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if find_spec("gymnasium") is not None:
    register_hybrid()
