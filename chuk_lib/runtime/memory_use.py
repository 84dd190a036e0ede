"""Memory that MLX uses, the machine has, and a run may use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class MemoryUse:
    """Bytes. `active`: arrays in use, `peak`: the most there were, `cache`: freed by arrays and kept by MLX
    for reuse, `resident`: what the operating system counts for this process (on a CPU this holds everything).
    """

    active: int
    peak: int
    cache: int
    resident: int


def memory() -> MemoryUse:
    """Memory in use now."""
    import mlx.core as mx

    return MemoryUse(mx.get_active_memory(), mx.get_peak_memory(), mx.get_cache_memory(), resident_bytes())


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of the memory that MLX computes in. `total`: all that one process may use of it. `free`: what is left of
    that now; what MLX keeps for reuse counts as free."""

    total: int
    free: int


def device_memory() -> DeviceMemory:
    """The memory of the device that MLX computes on.

    A CPU has the machine's memory, or what its control group allows. On Metal it is the working set that macOS
    recommends, about two thirds to three quarters of the machine's memory, and what other processes use of it is not
    known. On CUDA it is the card's, and `free` is what all processes leave. A device that tells neither gets the limit
    that MLX set itself.
    """
    import mlx.core as mx

    if mx.default_device() == mx.cpu:
        return _main_memory()
    known = mx.device_info(mx.default_device())
    active = int(mx.get_active_memory())
    if total := _bytes(known, "total_memory"):
        free = _bytes(known, "free_memory") or total - active - int(mx.get_cache_memory())
        return DeviceMemory(total, min(total, free + int(mx.get_cache_memory())))
    sizes = [_bytes(known, name) for name in ("max_recommended_working_set_size", "memory_size")]
    total = min((size for size in sizes if size), default=0) or _own_limit()
    return DeviceMemory(total, max(0, total - active))


def _bytes(known: Mapping[str, Any], name: str) -> int:
    """A size that the device tells, 0 when it does not."""
    value = known.get(name)
    return value if isinstance(value, int) else 0


def _main_memory() -> DeviceMemory:
    total, available = machine_memory()
    limit, left = container_memory()
    total = min(total, limit) if limit else total
    free = min((size for size in (available, left) if size), default=total // 2)
    return DeviceMemory(total, min(total, free))


def _own_limit() -> int:
    """The limit that MLX set for itself, which is near the size of the memory."""
    limit = set_memory_limit(1 << 40)
    set_memory_limit(limit)
    return limit


def reset_peak() -> None:
    """Start to count the peak anew."""
    import mlx.core as mx

    mx.reset_peak_memory()


def set_memory_limit(limit_bytes: int) -> int:
    """Ask MLX to stay below `limit_bytes`; returns the limit before.

    It is a wish, not a wall: above it MLX's evaluator waits for what it has begun before it begins more. On a
    GPU most of a step's peak is such running ahead, so a limit near the need costs a few percent of speed at
    most.
    """
    import mlx.core as mx

    return int(mx.set_memory_limit(limit_bytes))


def resident_bytes() -> int:
    """Resident set size of this process; 0 where it is not known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak_resident()


def machine_memory() -> tuple[int, int]:
    """(total, available) bytes of main memory; available is 0 where it is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), 0
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if len(line.split()) > 1}
    return values.get("MemTotal", 0), values.get("MemAvailable", 0)


def container_memory() -> tuple[int, int]:
    """Bytes that this process's control group may use, and what is left of them; zeros when it has no limit or there
    is none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return 0, 0
    return (int(limit), max(0, int(limit) - int(used))) if limit.isdigit() and used.isdigit() else (0, 0)


def _peak_resident() -> int:
    """Without /proc only the peak can be asked; macOS reports it in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
