"""Experts by name: kinds, sizes for known uses, and a registry of experts that are played one step
at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.experts.base import (
    ABOUT,
    ExpertStep,
    FeedForwardExpert,
    GRUExpert,
    LSTMExpert,
    RNNExpertBase,
)
from chuk_lib.experts.config import ExpertConfig

EXPERTS: dict[str, type[RNNExpertBase]] = {
    "gru": GRUExpert,
    "lstm": LSTMExpert,
    "mlp": FeedForwardExpert,
}

PRESETS: dict[str, tuple[str, ExpertConfig]] = {
    "physics_controller": (
        "gru",
        ExpertConfig(
            name="physics_controller", obs_dim=10, action_dim=2, hidden_dim=64, num_layers=2
        ),
    ),
    "scheduler": (
        "gru",
        ExpertConfig(name="scheduler", obs_dim=35, action_dim=12, hidden_dim=128, num_layers=2),
    ),
    "planner": (
        "lstm",
        ExpertConfig(name="planner", obs_dim=20, action_dim=5, hidden_dim=128, num_layers=3),
    ),
    "arc_solver": (
        "lstm",
        ExpertConfig(
            name="arc_solver",
            obs_dim=1805,
            discrete_actions=True,
            num_actions=20,
            hidden_dim=256,
            num_layers=2,
        ),
    ),
}
"""Ready sizes: kind and config. The scheduler's are for ten tasks (3 numbers a task and 5; an
action a task and 2)."""


def create_expert(kind: str, config: ExpertConfig, seed: int = 0) -> RNNExpertBase:
    """A new expert of a kind. Raises ConfigError for a kind that does not exist."""
    if kind not in EXPERTS:
        raise ConfigError(f"unknown expert `{kind}`", f"one of: {', '.join(EXPERTS)}")
    return EXPERTS[kind](config, seed)


def create_preset(name: str, seed: int = 0, **changes: Any) -> RNNExpertBase:
    """A new expert of a ready size, with changes of it. Raises ConfigError for a name that does not
    exist."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset `{name}`", f"one of: {', '.join(PRESETS)}")
    kind, config = PRESETS[name]
    return create_expert(kind, replace(config, **changes), seed)


def load_expert(path: Path) -> RNNExpertBase:
    """The expert of a folder, a checkpoint, or a run: of its best checkpoint, else of its newest.
    Raises ModelError."""
    folder = _folder(path)
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        kind, config = about.pop("kind"), about.pop("config")
        sizes: Any = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in config.items()
        }
        expert = create_expert(kind, ExpertConfig(**sizes))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"`{path}` holds no expert: `{ABOUT}` is missing or unreadable",
            "name a run of `chuk train ppo --expert`, one of its checkpoints, or a folder of"
            " `expert.save`",
        ) from None
    expert.about = about
    expert.read(folder)
    return expert


def experts_in(folder: Path) -> Iterator[tuple[Path, RNNExpertBase]]:
    """The experts in a folder of runs, by path; what is none, or cannot be read, is passed over."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        with suppress(ModelError):
            yield path, load_expert(path)


def _folder(path: Path) -> Path:
    if (path / ABOUT).is_file():
        return path
    for mark in ("best", "latest"):
        if (path / mark).is_file():
            return path / "checkpoints" / (path / mark).read_text(encoding="utf-8").strip()
    return path


class ExpertRegistry:
    """Experts by name, each with the state of one play: what an orchestrator hands work to."""

    def __init__(self) -> None:
        self._experts: dict[str, RNNExpertBase] = {}
        self._states: dict[str, np.ndarray] = {}

    def register(self, expert: RNNExpertBase, name: str | None = None) -> None:
        """Add an expert under a name, else under that of its config. Raises ConfigError when the
        name is taken."""
        name = name or expert.config.name
        if name in self._experts:
            raise ConfigError(
                f"there is an expert `{name}` already", "register it under another name"
            )
        self._experts[name] = expert
        self.reset(name)

    def create(self, kind: str, config: ExpertConfig, seed: int = 0) -> RNNExpertBase:
        """Make an expert and register it."""
        expert = create_expert(kind, config, seed)
        self.register(expert)
        return expert

    def step(self, name: str, observation: np.ndarray, deterministic: bool = True) -> ExpertStep:
        """Let an expert act on one observation (D,), and remember what it remembers."""
        choice = self[name](observation[None], self._states[name], deterministic)
        self._states[name] = choice.state
        return choice

    def reset(self, name: str | None = None) -> None:
        """Begin a new play of one expert, or of all."""
        for one in [name] if name is not None else self._experts:
            self._states[one] = self[one].initial_state(1)

    def save(self, folder: Path) -> None:
        """Write each expert into a folder of its name."""
        for name, expert in self._experts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            expert.save(folder / name)

    @classmethod
    def load(cls, folder: Path) -> ExpertRegistry:
        """The experts that `save` wrote. Raises ModelError for one that cannot be read."""
        found = cls()
        for path in sorted(entry for entry in folder.iterdir() if (entry / ABOUT).is_file()):
            found.register(load_expert(path), path.name)
        return found

    def __getitem__(self, name: str) -> RNNExpertBase:
        """An expert. Raises ConfigError for a name that is not registered."""
        if name not in self._experts:
            raise ConfigError(
                f"unknown expert `{name}`", f"registered: {', '.join(self._experts) or 'none'}"
            )
        return self._experts[name]

    def __contains__(self, name: object) -> bool:
        """Whether an expert has this name."""
        return name in self._experts

    def __iter__(self) -> Iterator[str]:
        """The names, in the order in which they were registered."""
        return iter(self._experts)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._experts)
