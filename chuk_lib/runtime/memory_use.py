"""Memory that MLX uses, the machine has, and a run may use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


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


def _peak_resident() -> int:
    """Without /proc only the peak can be asked; macOS reports it in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
