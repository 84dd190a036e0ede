"""Copies of a Gymnasium environment that are played side by side, and that a resumed run finds as
they were.

Each episode is reset with a seed of its own, from (seed, copy, number of the episode). So a copy
needs no pickle to be kept: seed and actions of the episode that it is in are enough, and `recall`
plays them again. An episode that ends is followed by the next one's first observation at once; the
last observation of the old one is given beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from chuk_lib.errors import ConfigError
from chuk_lib.experts.base import ExpertStep
from chuk_lib.experts.config import GYM
from chuk_lib.training.engine import step_seed

Flatten = Callable[[Any], np.ndarray]
LONGEST = 10_000
"""Steps after which a greedy episode is cut off, in environments that have no limit of their own.
"""


class Spaces(NamedTuple):
    """What goes in and out: how an observation becomes `obs_dim` numbers, and the sizes of an
    expert's head."""

    flatten: Flatten
    obs_dim: int
    head: dict[str, Any]


class Moves(NamedTuple):
    """What a step of all copies (B,) came to. `lasts` holds the last observation of each copy whose
    episode was cut off by a limit of time, `returns` and `lengths` those of episodes that ended."""

    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    lasts: dict[int, np.ndarray]
    returns: list[float]
    lengths: list[int]


class Environments:
    """Copies of one environment. `observations` (B, D) float64 are what comes next to act on."""

    def __init__(self, name: str, observe: Sequence[str] | None, copies: int, seed: int) -> None:
        self._envs = [make(name) for _ in range(copies)]
        self.spaces = spaces_of(self._envs[0], name, observe)
        self._seed = seed
        self._episodes = [-1] * copies
        self._actions: list[list[Any]] = [[] for _ in range(copies)]
        self._returns = [0.0] * copies
        self.observations = np.zeros((copies, self.spaces.obs_dim))
        for copy in range(copies):
            self._begin(copy)

    def step(self, actions: np.ndarray, copies: Sequence[int] | None = None) -> Moves:
        """Act in every copy, or in those given, a row of `actions` for each; where an episode ends
        the next begins."""
        count = len(self._envs)
        moves = Moves(np.zeros(count), np.zeros(count, bool), np.zeros(count, bool), {}, [], [])
        for copy, action in zip(range(count) if copies is None else copies, actions, strict=True):
            observation, reward, ended, cut, _ = self._envs[copy].step(action)
            self._actions[copy].append(action.tolist())
            self._returns[copy] += float(reward)
            moves.rewards[copy], moves.terminated[copy], moves.truncated[copy] = (
                reward,
                ended,
                cut and not ended,
            )
            self.observations[copy] = self.spaces.flatten(observation)
            if ended or cut:
                moves.returns.append(self._returns[copy])
                moves.lengths.append(len(self._actions[copy]))
                if not ended:
                    moves.lasts[copy] = self.observations[copy].copy()
                self._begin(copy)
        return moves

    def so_far(self, copy: int) -> float:
        """What the episode that a copy is in has come to."""
        return self._returns[copy]

    def memory(self) -> dict[str, Any]:
        """Where every copy is, as plain data."""
        return {
            "episodes": list(self._episodes),
            "actions": [list(played) for played in self._actions],
            "observations": self.observations.tolist(),
        }

    def recall(self, memory: dict[str, Any]) -> list[str]:
        """Bring every copy to where it was, by playing its episode again. Returns warnings: about
        an environment that under the same seed and actions does something else."""
        for copy, (episode, actions) in enumerate(
            zip(memory["episodes"], memory["actions"], strict=True)
        ):
            self._episodes[copy] = episode - 1
            self._begin(copy)
            for action in actions:
                observation, reward, *_ = self._envs[copy].step(
                    np.asarray(action, self._action_type())
                )
                self._actions[copy].append(action)
                self._returns[copy] += float(reward)
                self.observations[copy] = self.spaces.flatten(observation)
        if np.array_equal(self.observations, np.array(memory["observations"])):
            return []
        return [
            "the environment does not repeat itself from its seed: the run goes on, not bit for bit"
            " as before"
        ]

    def close(self) -> None:
        """Let go of what the copies hold."""
        for env in self._envs:
            env.close()

    def _begin(self, copy: int) -> None:
        self._episodes[copy] += 1
        self._actions[copy], self._returns[copy] = [], 0.0
        observation, _ = self._envs[copy].reset(
            seed=_seed_of(self._seed, copy, self._episodes[copy])
        )
        self.observations[copy] = self.spaces.flatten(observation)

    def _action_type(self) -> Any:
        return self._envs[0].action_space.dtype


def make(name: str) -> Any:
    """A new environment of `gym:ID`. Raises ConfigError when there is no Gymnasium, or none of that
    name."""
    try:
        import gymnasium
    except ImportError:
        raise ConfigError(
            "`--env gym:…` needs Gymnasium", 'pip install "chuk-mlx[experts]"'
        ) from None
    try:
        return gymnasium.make(name.removeprefix(GYM), disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        raise ConfigError(
            f"no environment `{name}`: {' '.join(str(error).split())}",
            "gym:ID with an id of Gymnasium, as gym:CartPole-v1; gym:MODULE:ID imports what"
            " registers it",
        ) from None


def spaces_of(env: Any, name: str, observe: Sequence[str] | None) -> Spaces:
    """How to see and act in an environment. Raises ConfigError for spaces that an expert does not
    take."""
    flatten = _flattener(env.observation_space, name, observe)
    return Spaces(flatten, len(flatten(env.reset(seed=0)[0])), _head(env.action_space, name))


def _head(space: Any, name: str) -> dict[str, Any]:
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete) and space.start == 0:
        return {"discrete_actions": True, "num_actions": int(space.n)}
    if (
        isinstance(space, spaces.Box)
        and len(space.shape) == 1
        and np.isfinite([space.low, space.high]).all()
    ):
        low, high = (tuple(map(float, bound)) for bound in (space.low, space.high))
        return {"action_dim": len(low), "action_low": low, "action_high": high}
    raise ConfigError(
        f"`{name}` acts in {space}, which experts do not",
        "they take Discrete(n), and a Box of one row with finite bounds",
    )


def _flattener(space: Any, name: str, observe: Sequence[str] | None) -> Flatten:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return _of_parts(space, name, observe)
    flatten = _plain(space, name)
    if observe is None:
        return flatten
    size = len(flatten(space.sample()))
    if not all(place.isdigit() and int(place) < size for place in observe) or len(
        set(observe)
    ) != len(observe):
        raise ConfigError(
            f"`observe={','.join(observe)}` names no places of an observation of `{name}`",
            f"it has {size} numbers: places 0 to {size - 1}, each once, with commas between",
        )
    places = [int(place) for place in observe]
    return lambda observation: flatten(observation)[places]


def _of_parts(space: Any, name: str, observe: Sequence[str] | None) -> Flatten:
    known = list(space.spaces)
    unknown = [part for part in observe or () if part not in known]
    if unknown:
        raise ConfigError(
            f"`{name}` has no part `{unknown[0]}` to observe", f"its parts: {', '.join(known)}"
        )
    parts = {part: _plain(space[part], f"{name}, part {part}") for part in observe or known}
    return lambda observation: np.concatenate(
        [flatten(observation[part]) for part, flatten in parts.items()]
    )


def _plain(space: Any, name: str) -> Flatten:
    from gymnasium import spaces

    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return lambda observation: np.asarray(observation, np.float64).reshape(-1)
    if isinstance(space, spaces.Discrete):
        size, start = int(space.n), int(space.start)
        return lambda observation: np.eye(size)[int(observation) - start]
    raise ConfigError(
        f"`{name}` observes {type(space).__name__}, which is no numbers to an expert",
        "Box, MultiBinary, Discrete, and parts of a Dict will do: `--observe PART,PART` chooses"
        " some",
    )


def _seed_of(seed: int, copy: int, episode: int) -> int:
    return step_seed(step_seed(seed, copy) % 2**31, episode) % 2**31


def greedy_returns(
    environments: Environments,
    act: Callable[[np.ndarray, np.ndarray], ExpertStep],
    state: np.ndarray,
) -> list[float]:
    """Returns of one episode of each copy under `act(observations, state)`. One that does not end
    within `LONGEST` steps counts with what it came to until then."""
    live = list(range(len(state)))
    returns: list[float] = []
    for _ in range(LONGEST):
        choice = act(environments.observations[live], state[live])
        state[live] = choice.state
        moves = environments.step(choice.action, live)
        returns += moves.returns
        live = [copy for copy in live if not (moves.terminated[copy] or moves.truncated[copy])]
        if not live:
            break
    return returns + [environments.so_far(copy) for copy in live]
