"""The settings of runs on disk: what was chosen and where, and how runs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chuk_lib.events import Event

_UNLIKE = ("output",)  # different in every run, and says nothing


@dataclass(frozen=True)
class ChosenSetting:
    """A setting that is not as it comes: its value, its default and where the value was given."""

    name: str
    value: Any
    default: Any
    origin: str


def read_settings(run: Path, started: Event | None) -> dict[str, Any]:
    """All settings, from the log or else from `config.yaml`; empty when neither can be read."""
    logged = started.data.get("config") if started else None
    if isinstance(logged, dict) and logged:
        return dict(logged)
    import yaml

    try:
        held = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {str(key): value for key, value in held.items()} if isinstance(held, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when it cannot be read."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def chosen(
    settings: Mapping[str, Any], origins: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[ChosenSetting]:
    """The settings that somebody gave, or that chuk worked out from others, in the order of
    `config.yaml`. `defaults`: those of the run's algorithm, by name."""
    found = []
    for name, value in settings.items():
        origin, default = str(origins.get(name, "")), _plain(defaults.get(name))
        differs = name not in defaults or _plain(value) != default
        given = origin not in ("", "default", "given in code")
        if given or differs:
            worked_out = origin in ("", "default")
            found.append(
                ChosenSetting(name, value, default, "worked out" if worked_out else origin)
            )
    return found


def differences(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Each setting that is not the same in all runs, with its value in each; None where a run does
    not have it."""
    names = list(
        dict.fromkeys(name for settings in runs for name in settings if name not in _UNLIKE)
    )
    values = {name: [_plain(settings.get(name)) for settings in runs] for name in names}
    return {
        name: found for name, found in values.items() if any(value != found[0] for value in found)
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
