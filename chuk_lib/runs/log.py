"""Reading `events.jsonl`, whatever a kill, a full disk or another program did to it.

A line that is no event is counted and skipped. The clock of the machine may jump: `Log.seconds` and
`Log.elapsed` count only the time that passed forwards while a process trained, so they never shrink
and leave out the night between two sessions of a resumed run."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chuk_lib.events import Event, kept, parse

_STEP_LINE = re.compile(r'\{"v": 1, "t": ([0-9.]+), "kind": "step", "step": (\d+), "data": \{')


@dataclass
class Log:
    """The events of a run that count, `elapsed` seconds of training at each, and how many lines
    were damaged.

    Steps that a later resume took again are left out of `events`; the time they cost is in
    `seconds`."""

    events: list[Event] = field(default_factory=list)
    elapsed: list[float] = field(default_factory=list)
    seconds: float = 0.0
    damaged: int = 0

    def of(self, *kinds: str) -> list[Event]:
        """The events of these kinds, in order."""
        return [event for event in self.events if event.kind in kinds]

    def last(self, *kinds: str) -> Event | None:
        """The newest event of these kinds."""
        return next((event for event in reversed(self.events) if event.kind in kinds), None)

    @property
    def session(self) -> list[Event]:
        """What the last process wrote: the events from the last `started` on."""
        starts = [index for index, event in enumerate(self.events) if event.kind == "started"]
        return self.events[starts[-1] :] if starts else self.events


def read_log(path: Path, light: bool = False) -> Log:
    """Read a log; a missing file is an empty one.

    `light` leaves `data` of all step events but the last one empty, which is ten times faster.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            return _fold(lines, light)
    except (FileNotFoundError, NotADirectoryError):
        return Log()


def _fold(lines: Iterable[str], light: bool) -> Log:
    log, clock, unread = Log(), _Clock(), {}
    for line in lines:
        event = _skim(line) if light else None
        if event is not None:
            unread[id(event)] = line
        else:
            event = parse(line)
        if event is None:
            log.damaged += bool(line.strip())
            continue
        log.events.append(event)
        log.elapsed.append(clock.see(event))
    numbers = kept(log.events)
    log.events, log.elapsed = (
        [log.events[at] for at in numbers],
        [log.elapsed[at] for at in numbers],
    )
    log.seconds = clock.seconds
    _fill_in_last(log, unread)
    return log


def _fill_in_last(log: Log, unread: dict[int, str]) -> None:
    """Give the newest skimmed step event that can be read its data."""
    for index in reversed(range(len(log.events))):
        event = log.events[index]
        if event.kind != "step" or id(event) not in unread:
            continue
        if (whole := parse(unread[id(event)])) is not None:
            log.events[index] = whole
            return


def _skim(line: str) -> Event | None:
    match = _STEP_LINE.match(line)
    return (
        Event("step", int(match[2]), {}, float(match[1]))
        if match and match[1].count(".") <= 1
        else None
    )


class _Clock:
    """Seconds of training, from times that may jump back. A session that finished says itself how
    long it took."""

    def __init__(self) -> None:
        self._before, self._session, self._last = 0.0, 0.0, math.inf

    @property
    def seconds(self) -> float:
        return self._before + self._session

    def see(self, event: Event) -> float:
        if event.kind == "started":
            self._before, self._session = self.seconds, 0.0
        else:
            self._session += max(0.0, event.time - self._last)
        self._last = event.time
        told = event.data.get("seconds") if event.kind == "finished" else None
        if isinstance(told, int | float) and math.isfinite(told) and told >= 0:
            self._session = float(told)
        return self.seconds


class Follower:
    """Reads what is appended to a log, also when the file does not exist yet or is replaced by a
    new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset, self._rest = 0, 0, b""

    def __call__(self) -> tuple[list[Event], bool]:
        """The events since the last call, and whether the file is another one than before."""
        try:
            with self._path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                again = bool(self._inode) and (
                    found.st_ino != self._inode or found.st_size < self._offset
                )
                if again:
                    self._offset, self._rest = 0, b""
                self._inode = found.st_ino
                stream.seek(self._offset)
                text = stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return [], False
        self._offset += len(text)
        return list(self._whole_lines(text)), again

    def _whole_lines(self, text: bytes) -> Iterator[Event]:
        *lines, self._rest = (self._rest + text).split(b"\n")
        for line in lines:
            if (event := parse(line.decode("utf-8", "replace"))) is not None:
                yield event
