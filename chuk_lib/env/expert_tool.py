"""An expert as a tool: `delegate_NAME(steps, seed)` plays it in its own environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chuk_lib.experts.base import RNNExpertBase


def expert_tool(
    expert: RNNExpertBase | Path, name: str, success: float | None = None, env: str | None = None
) -> Callable[..., dict[str, Any]]:
    """A function that lets an expert (or that of a run) play greedily, for an orchestrator or as a
    tool. It is called `delegate_NAME`.

    `env` is a Gymnasium id (`gym:ID`), that which the expert was trained in without one; `success`
    the return from which a play counts as one. Raises ModelError when there is no expert or its
    environment is not known, ConfigError when the two do not fit.
    """
    from chuk_lib.errors import ConfigError, ModelError
    from chuk_lib.experts.environment import Environments
    from chuk_lib.experts.registry import load_expert

    found = load_expert(expert) if isinstance(expert, Path) else expert
    where = env or found.about.get("env")
    if not where:
        raise ModelError(
            f"expert `{name}` does not say which environment it is for", "give `env=gym:ID`"
        )
    spaces = Environments(str(where), found.about.get("observe"), 1, 0)
    fits = spaces.spaces.obs_dim == found.config.obs_dim
    spaces.close()
    if not fits:
        raise ConfigError(f"expert `{name}` does not fit `{where}`: it sees another width")

    def delegate(steps: int = 20, seed: int = 0) -> dict[str, Any]:
        return _played(found, str(where), steps, seed, success)

    delegate.__name__ = f"delegate_{name}"
    delegate.__doc__ = (
        f"Let the expert {name} act in {where}.\n\nArgs:\n    steps: How many steps it may take.\n"
        "    seed: Which beginning it starts from."
    )
    return delegate


def _played(
    expert: RNNExpertBase, env: str, steps: int, seed: int, success: float | None
) -> dict[str, Any]:
    """One greedy play of at most so many steps: its return, its length, whether it ended."""
    from chuk_lib.experts.cells import one_thread
    from chuk_lib.experts.environment import Environments

    if steps < 1:
        raise ValueError("steps must be 1 or more")
    environments = Environments(env, expert.about.get("observe"), 1, seed)
    state, total, taken, ended = expert.initial_state(1), 0.0, 0, False
    try:
        with one_thread():
            while taken < steps and not ended:
                choice = expert(environments.observations, state, deterministic=True)
                state = choice.state
                moves = environments.step(choice.action)
                total += float(moves.rewards[0])
                taken, ended = taken + 1, bool(moves.terminated[0] or moves.truncated[0])
    finally:
        environments.close()
    found: dict[str, Any] = {"return": round(total, 4), "steps": taken, "ended": ended}
    return found if success is None else found | {"success": total >= success}
