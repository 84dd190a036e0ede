"""A run in one line: what it is, how far it got, how it ended. Reads a hundred logs in a fraction
of a second."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chuk_lib.events import Event, as_number
from chuk_lib.runs.files import is_locked, size_of
from chuk_lib.runs.log import Log, read_log
from chuk_lib.runs.settings import read_settings
from chuk_lib.utils.best import better_eval

RUNNING, DONE, STOPPED, FAILED, KILLED = "running", "done", "stopped", "failed", "killed"
STATUSES = {
    RUNNING: "a process is training",
    DONE: "the plan was finished, or early stopping ended it",
    STOPPED: "stopped on request, state saved",
    FAILED: "an error ended it",
    KILLED: "no process is training and the log has no end",
}


@dataclass(frozen=True)
class Summary:
    """What `chuk runs ls` knows of a run. None is what the run never said.

    `best` is the lowest eval_loss, or the highest eval_reward of a run that has rewards, at
    `best_step`; `seconds` is time spent training, `began` and `updated` are seconds since the
    epoch; `metrics` are the newest ones."""

    name: str
    path: str
    status: str
    algorithm: str | None
    model: str | None
    data: str | None
    step: int
    steps: int | None
    loss: float | None
    eval_loss: float | None
    reward: float | None
    eval_reward: float | None
    best: float | None
    best_step: int | None
    began: float | None
    updated: float | None
    seconds: float
    size: int
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def age(self) -> float | None:
        """Seconds since the run began; 0 when the clock says it has not yet."""
        return None if self.began is None else max(0.0, time.time() - self.began)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without the settings."""
        record = asdict(self) | {"age": self.age}
        del record["settings"]
        return record


def summarize(run: Path, log: Log | None = None) -> Summary:
    """Read a run's summary; `log` spares reading it again."""
    locked = is_locked(run)  # asked first: a run that ends meanwhile has its last event in the log
    log = read_log(run / "events.jsonl", light=True) if log is None else log
    started, settings = log.last("started"), read_settings(run, log.last("started"))
    about = started.data if started else {}
    metrics, best = newest_metrics(log), best_eval(log)
    ended = _ending(log)
    return Summary(
        name=_name(run.resolve()),
        path=str(run),
        status=status_of(log, locked),
        algorithm=_text(about.get("algorithm")),
        model=_text(about.get("model") or settings.get("model")),
        data=_text(about.get("data") or settings.get("data")),
        step=_last_step(log),
        steps=_whole(about.get("steps")),
        loss=metrics.get("loss"),
        eval_loss=metrics.get("eval_loss"),
        reward=metrics.get("reward"),
        eval_reward=metrics.get("eval_reward"),
        best=best[1] if best else None,
        best_step=best[0] if best else None,
        began=log.events[0].time if log.events else None,
        updated=log.events[-1].time if log.events else None,
        seconds=round(log.seconds, 3),
        size=size_of(run),
        error=_text(ended.data.get("error")) if ended else None,
        metrics=metrics,
        settings=settings,
    )


def _name(run: Path) -> str:
    """The folder's name; a stage of a pipeline has that of the pipeline before it."""
    in_pipeline = (run.parent / "pipeline.json").is_file()
    return f"{run.parent.name}/{run.name}" if in_pipeline else run.name


def status_of(log: Log, locked: bool) -> str:
    """One of `STATUSES`."""
    if locked:
        return RUNNING
    ended = _ending(log)
    if ended is None:
        return KILLED
    reason = ended.data.get("reason", DONE)
    return reason if reason in (STOPPED, FAILED) else DONE


def metrics_of(event: Event) -> dict[str, float]:
    """The numbers of a step or eval event by name; those of an evaluation all begin with
    `eval_`."""
    found = {}
    for name, value in event.data.items():
        if (number := as_number(value)) is not None:
            found[name if event.kind != "eval" or name.startswith("eval_") else f"eval_{name}"] = (
                number
            )
    return found


def newest_metrics(log: Log) -> dict[str, float]:
    """The newest value of every metric."""
    found: dict[str, float] = {}
    for event in log.of("step", "eval"):
        found |= metrics_of(event)
    return found


def best_eval(log: Log) -> tuple[int, float] | None:
    """Step and value of the best evaluation."""
    best: tuple[int, float] | None = None
    for event in log.of("eval"):
        value = better_eval(event.data, best[1] if best else None)
        best = best if value is None else (event.step, value)
    return best


def _ending(log: Log) -> Event | None:
    return next((event for event in reversed(log.session) if event.kind == "finished"), None)


def _last_step(log: Log) -> int:
    """How far the run is: a resumed one at least where it went on from."""
    started = log.last("started")
    begun = _whole(started.data.get("start_step")) or started.step if started else 0
    return max([begun, *(event.step for event in log.events)])


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int | float) and str(value) else None


def _whole(value: Any) -> int | None:
    number = as_number(value)
    return int(number) if number is not None and math.isfinite(number) and number >= 1 else None
