"""A run as a whole, for showing, comparing and reporting: one object, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from chuk_lib.events import Event
from chuk_lib.runs.files import CheckpointFiles, checkpoints_of
from chuk_lib.runs.log import Log, read_log
from chuk_lib.runs.settings import ChosenSetting, chosen, read_json
from chuk_lib.runs.summary import Summary, metrics_of, summarize


@dataclass(frozen=True)
class Curve:
    """One metric over a run. `values` may hold nan; `seconds` is training time, `tokens` how many
    were seen."""

    name: str
    steps: list[int]
    values: list[float]
    seconds: list[float]
    tokens: list[float | None]

    @property
    def points(self) -> list[tuple[int, float]]:
        """(step, value) pairs."""
        return list(zip(self.steps, self.values, strict=True))


@dataclass(frozen=True)
class RunRecord:
    """Everything that a run directory says. Missing files are empty parts."""

    path: Path
    summary: Summary
    log: Log
    origins: Mapping[str, Any]
    environment: Mapping[str, Any]
    checkpoints: list[CheckpointFiles]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by name."""
        return self.summary.settings

    def chosen(self, defaults: Mapping[str, Any]) -> list[ChosenSetting]:
        """Settings that are not as they come, with where they were given; `defaults`: how they
        come."""
        return chosen(self.settings, self.origins, defaults)

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Every metric by name, in the order in which they first appear."""
        found: dict[str, Curve] = {}
        tokens: float | None = None
        for event, seconds in zip(self.log.events, self.log.elapsed, strict=True):
            if event.kind not in ("step", "eval"):
                continue
            metrics = metrics_of(event)
            tokens = metrics.get("num_tokens", tokens)
            for name, value in metrics.items():
                curve = found.setdefault(name, Curve(name, [], [], [], []))
                curve.steps.append(event.step)
                curve.values.append(value)
                curve.seconds.append(seconds)
                curve.tokens.append(tokens)
        return found

    @property
    def samples(self) -> list[dict[str, Any]]:
        """What the model wrote at evaluations, oldest first: step, prompt, target, completion."""
        return [_sample(event) for event in self.log.of("sample")]

    @property
    def notes(self) -> list[str]:
        """What the user should know about this model and data, each once."""
        return list(
            dict.fromkeys(str(event.data.get("text") or "?") for event in self.log.of("note"))
        )

    @property
    def completions(self) -> list[dict[str, Any]]:
        """The completions that the newest log record shows: prompt, completion, reward, rewards,
        advantage …"""
        event = self.log.last("completions")
        rows = event.data.get("rows") if event else None
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    @property
    def warnings(self) -> list[dict[str, Any]]:
        """Warnings in the log, oldest first: step, text, hint."""
        return [
            {
                "step": event.step,
                "text": str(event.data.get("text") or "?"),
                "hint": str(event.data.get("hint") or ""),
            }
            for event in self.log.of("warning")
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, all of it."""
        return self.summary.as_dict() | {
            "settings": self.settings,
            "origins": dict(self.origins),
            "environment": dict(self.environment),
            "checkpoints": [vars(checkpoint) for checkpoint in self.checkpoints],
            "samples": self.samples,
            "warnings": self.warnings,
            "notes": self.notes,
            "completions": self.completions,
            "damaged_lines": self.log.damaged,
            "curves": {
                name: {"steps": curve.steps, "values": curve.values}
                for name, curve in self.curves.items()
            },
        }


def read_run(path: Path) -> RunRecord:
    """Read a run directory, whatever state it is in."""
    log = read_log(path / "events.jsonl")
    summary, started = summarize(path, log), log.last("started")
    environment = read_json(path / "environment.json")
    if not environment and started and isinstance(started.data.get("environment"), dict):
        environment = started.data["environment"]
    return RunRecord(
        path, summary, log, read_json(path / "origins.json"), environment, checkpoints_of(path)
    )


def _sample(event: Event) -> dict[str, Any]:
    text = {key: str(event.data.get(key) or "") for key in ("prompt", "target", "completion")}
    return {"step": event.step} | text
