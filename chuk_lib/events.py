"""Events: everything that happens in a run, as plain data. Sinks receive them; displays are folds
over them.

The file form is one JSON object a line: `{"v": 1, "t": …, "kind": …, "step": …, "data": {…}}`. A
resumed run appends to the same file, so it can hold steps that were taken twice: `read_events`
drops the abandoned ones."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

KINDS = (
    "started",
    "step",
    "moved",
    "eval",
    "saved",
    "sample",
    "completions",
    "note",
    "warning",
    "finished",
)
PASSING = ("moved",)
"""Kinds for those who look on just now (a step is done, an evaluation begins): no file or stream of
events has them."""


class Clock:
    """Seconds since the epoch that never go back: where the machine's clock is set back, time goes
    on from the last reading, so that no duration is negative."""

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source
        self._latest, self._behind = -math.inf, 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            reading = self._source() + self._behind
            if reading < self._latest:
                self._behind += self._latest - reading
                reading = self._latest
            self._latest = reading
            return reading


now = Clock()


@dataclass(frozen=True)
class Event:
    """One thing that happened. `step` counts finished steps; `time` is in seconds since the epoch,
    by `now`."""

    kind: str
    step: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=now)

    def to_json(self) -> str:
        """One line of `events.jsonl`. A number that JSON cannot hold (nan, inf) becomes a
        string."""
        record = {"v": 1, "t": round(self.time, 3), "kind": self.kind, "step": self.step}
        return json.dumps(record | {"data": _finite(self.data)}, ensure_ascii=False)


Sink = Callable[[Event], None]


def parse(line: str) -> Event | None:
    """What `to_json` wrote as an event, with the types that readers rely on; None for any other
    line."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    kind, step, data, at = (record.get(key) for key in ("kind", "step", "data", "t"))
    if (
        not isinstance(kind, str)
        or not isinstance(data, dict)
        or not isinstance(step, int)
        or isinstance(step, bool)
    ):
        return None
    if step < 0 or isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at):
        return None
    return Event(kind, step, data, float(at))


def kept(events: Sequence[Event]) -> list[int]:
    """Which events count, by number: all but those of steps that a later `started` went back
    before."""
    found, resumed_at = [], math.inf
    for number in reversed(range(len(events))):
        event = events[number]
        if event.kind == "started":
            resumed_at = min(resumed_at, event.step)
        elif event.step > resumed_at:
            continue
        found.append(number)
    return found[::-1]


def as_number(value: Any) -> float | None:
    """A number of an event's data, or None; the text "nan" or "inf" (how the file form holds them)
    counts."""
    if isinstance(value, str) and value.lstrip("+-").lower() in ("nan", "inf", "infinity"):
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


class JsonLines:
    """A sink that writes each event as a line and flushes it, so that another process can
    follow."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @classmethod
    def append_to(cls, path: Path) -> JsonLines:
        """Append to a file; a line that a killed process left half-written is closed first."""
        torn = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        stream = path.open("a", encoding="utf-8")
        if torn:
            stream.write("\n")
        return cls(stream)

    def __call__(self, event: Event) -> None:
        if event.kind in PASSING:
            return
        self._stream.write(event.to_json() + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file beneath. What a full disk did not take before, it need not take now."""
        with suppress(OSError):
            self._stream.close()


def fan_out(sinks: Iterable[Sink]) -> Sink:
    """One sink that passes each event to all. A sink that raises is dropped, once, with a warning
    to the rest."""
    alive = list(sinks)

    def emit(event: Event) -> None:
        for sink in list(alive):
            if sink not in alive:
                continue  # dropped while the failure of one before it was told
            try:
                sink(event)
            except Exception as error:  # a display or log must never stop a training run
                alive.remove(sink)
                name = getattr(sink, "__name__", type(sink).__name__)
                emit(
                    Event(
                        "warning",
                        event.step,
                        {"text": f"log `{name}` failed and was dropped: {error}"},
                    )
                )

    return emit


def read_events(path: Path) -> list[Event]:
    """All events of a run in order, without the steps that a later resume took again and without
    torn lines. `runs.log.read_log` tells more: how long each took, and what was damaged."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        events = [event for event in map(parse, lines) if event is not None]
    return [events[number] for number in kept(events)]
