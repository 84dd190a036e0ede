"""The numbers of an event under the names that Hugging Face's trainers use: `train/loss`,
`eval/loss`."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from chuk_lib.events import Event


def scalars(event: Event) -> dict[str, float]:
    """The numbers of a step or eval event; empty for other events."""
    if event.kind not in ("step", "eval"):
        return {}
    family = "eval" if event.kind == "eval" else "train"
    return {
        f"{family}/{name.removeprefix('eval_')}": float(value)
        for name, value in event.data.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def setting_of(started: Event, name: str) -> Any:
    """A setting of the run that begins; None when it has none of the name."""
    return (started.data.get("config") or {}).get(name)


def run_name(started: Event) -> str:
    """What a run is called in other tools: as its settings say, else the name of its folder."""
    asked = setting_of(started, "run_name")
    return str(asked) if asked else PurePath(str(started.data.get("run_dir") or "run")).name
