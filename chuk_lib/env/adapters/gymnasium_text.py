"""Gymnasium environments that are read as text: `--env gym:ID`."""

from __future__ import annotations

from typing import Any

from chuk_lib.env.adapters import as_text, behind, seed_of
from chuk_lib.errors import ConfigError
from chuk_lib.experts.environment import make


def environment(name: str) -> type:
    """The class of an id: observations are text, an action is text or a number. Raises ConfigError
    for an id that there is not, and for other spaces."""
    first = make(name)
    from gymnasium import spaces

    seen, acted = first.observation_space, first.action_space
    numbers = isinstance(acted, spaces.Discrete)
    if not isinstance(seen, spaces.Text) or not (numbers or isinstance(acted, spaces.Text)):
        raise ConfigError(
            f"`gym:{name}` is not of text: it shows {type(seen).__name__} and takes"
            f" {type(acted).__name__}",
            "observations must be Text, actions Text or Discrete; `--expert` takes numbers",
        )

    class GymnasiumText:
        def reset(self, **row: Any) -> str:
            self._env = getattr(self, "_env", None) or make(name)
            self._over, self._reward = False, 0.0
            return behind(row, self._env.reset(seed=seed_of(row))[0])

        def get_reward(self) -> float:
            return self._reward

        def _act(self, action: Any) -> str:
            if self._over:
                return "The episode is over."
            action = action if numbers else as_text(action)
            if action not in acted:
                raise ValueError(f"{action!r} is not in {acted}")
            text, reward, ended, cut, _ = self._env.step(action)
            self._reward += float(reward)
            self._over = ended or cut
            return f"{text}\nThe episode is over." if self._over else str(text)

    def act(self: Any, action: Any) -> str:
        """Act in the environment.

        Args:
            action: What to do.
        """
        return str(self._act(action))

    kind: type = int if numbers else str
    act.__annotations__ = {"action": kind, "return": str}
    if numbers:
        words = f"to do: {acted.start} to {acted.start + acted.n - 1}."
        act.__doc__ = (act.__doc__ or "").replace("to do.", words)
    return type("GymnasiumText", (GymnasiumText,), {"act": act})
