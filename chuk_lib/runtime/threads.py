"""How many threads BLAS gets: a fixed function of the machine, or, when asked for, of its load.

OpenBLAS sums in another order with another number of threads, so the last bits of a long product
differ. A run that resumes exactly therefore needs the same number every time: the default looks at
the machine (cores this process may use, the container's quota), never at what else is running.
`adaptive` gives that up for speed on a shared machine."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

MOST_THREADS = 16
"""Products of the sizes that fine-tuning makes on a CPU stop gaining here."""
CALM_LOOKS = 3
"""Looks in a row that must find a free core before the governor takes it."""
MARGIN = 0.25
"""Cores' worth of other work that still counts as none: a shell, a monitor, a browser at rest."""


@dataclass(frozen=True)
class Cores:
    """What this process may use: logical and physical cores, and the container's quota in cores
    (None: no quota)."""

    logical: int
    physical: int
    quota: float | None = None

    @property
    def usable(self) -> int:
        """Physical cores within the quota, at least one."""
        within = self.physical if self.quota is None else min(self.physical, math.floor(self.quota))
        return max(1, within)


def default_threads(cores: Cores) -> int:
    """One thread up to two cores, then half the physical cores, at most `MOST_THREADS`.

    OpenBLAS's threads wait for each other by spinning. When one of them loses its core to another
    process the others burn theirs: two threads on two cores, one core taken, ran at a third to a
    half of the speed of one thread, and at times far below. Half the cores leaves room for MLX's
    own thread, the data and whatever else the machine is for."""
    return min(MOST_THREADS, max(1, cores.usable // 2))


def count_cores() -> Cores:
    """Count by the scheduler's affinity mask, the topology in /sys and the cgroup quota."""
    allowed = (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )
    siblings = {_siblings(cpu) for cpu in allowed}
    return Cores(len(allowed), max(1, len(siblings)), cgroup_quota())


def cgroup_quota(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float | None:
    """The tightest CPU quota of this process's control groups in cores; None without one (cgroup v2
    and v1)."""
    quotas = []
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        top = root / controllers if controllers else root
        folder = Path(path.lstrip("/"))
        for part in (folder, *folder.parents):
            quotas.append(_quota_in(top / part))
    found = [q for q in quotas if q is not None]
    return min(found) if found else None


def _quota_in(folder: Path) -> float | None:
    """`cpu.max` is "QUOTA PERIOD" or "max PERIOD"; v1 has the two in files of their own, quota -1
    for none."""
    words = _text(folder / "cpu.max").split()
    if len(words) != 2:
        words = [
            _text(folder / "cpu.cfs_quota_us").strip(),
            _text(folder / "cpu.cfs_period_us").strip(),
        ]
    quota, period = words
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _siblings(cpu: int) -> str:
    """The list of logical cores that share this one's physical core; the core itself when that is
    not known."""
    return _text(
        Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    ).strip() or str(cpu)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class Pace:
    """The governor's state: threads in use, and looks in a row that would have allowed more."""

    threads: int
    calm: int = 0


def next_pace(pace: Pace, cores: int, others_busy: float) -> Pace:
    """Threads for the coming second, from how many cores other processes kept busy in the last one.

    Down at once, because a thread without a core costs far more than it gives; up by one only after
    `CALM_LOOKS` looks in a row, so that a process that comes and goes does not make the number
    flutter."""
    room = max(1, min(cores, math.floor(cores - others_busy + MARGIN)))
    if room < pace.threads:
        return Pace(room)
    if room == pace.threads:
        return Pace(pace.threads)
    if pace.calm + 1 < CALM_LOOKS:
        return replace(pace, calm=pace.calm + 1)
    return Pace(pace.threads + 1)


@dataclass(frozen=True)
class Look:
    """Seconds of CPU time used so far by all processes and by this one, and when that was read."""

    at: float
    all_busy: float
    own_busy: float


def look(cpus: set[int] | None = None) -> Look | None:
    """Read /proc/stat (the cores this process may use) and this process's times; None where there
    is no /proc."""
    text = _text(Path("/proc/stat"))
    if not text:
        return None
    cpus = os.sched_getaffinity(0) if cpus is None else cpus
    busy = sum(_busy_ticks(line) for line in text.splitlines() if _cpu_number(line) in cpus)
    own = os.times()
    return Look(time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), own.user + own.system)


def others_busy(before: Look, after: Look) -> float:
    """Cores that other processes kept busy between two looks."""
    seconds = max(after.at - before.at, 1e-9)
    return max(
        0.0, (after.all_busy - before.all_busy - (after.own_busy - before.own_busy)) / seconds
    )


def _cpu_number(line: str) -> int:
    word = line.split(maxsplit=1)[0]
    return int(word[3:]) if word.startswith("cpu") and word[3:].isdigit() else -1


def _busy_ticks(line: str) -> int:
    """user + nice + system + irq + softirq + steal; idle and iowait are the 4th and 5th numbers."""
    values = [int(v) for v in line.split()[1:9]]
    return sum(values) - sum(values[3:5])


class Governor:
    """Looks at the machine at most once a second and says how many threads to use."""

    def __init__(self, cores: int, threads: int, seconds: float = 1.0) -> None:
        self._cores, self._seconds = cores, seconds
        self._pace = Pace(threads)
        self._last = look()

    def threads(self) -> int:
        """The number of threads for now; cheap to call between steps."""
        if self._last is None or time.monotonic() - self._last.at < self._seconds:
            return self._pace.threads
        now = look()
        if now is not None:
            self._pace = next_pace(self._pace, self._cores, others_busy(self._last, now))
            self._last = now
        return self._pace.threads
