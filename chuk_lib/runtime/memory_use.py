"""Memory that MLX uses, the machine has, and a run may use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from chuk_lib.runtime import hardware
from chuk_lib.runtime.limits import GPU_SHARE


@dataclass(frozen=True)
class MemoryUse:
    """Bytes. `active`: arrays in use, `peak`: the most there were, `cache`: freed by arrays and
    kept by MLX for reuse, `resident`: what the operating system counts for this process (on a CPU
    this holds everything; without /proc, as on macOS, it is the most there was)."""

    active: int
    peak: int
    cache: int
    resident: int


def memory() -> MemoryUse:
    """Memory in use now."""
    import mlx.core as mx

    return MemoryUse(
        mx.get_active_memory(), mx.get_peak_memory(), mx.get_cache_memory(), resident_bytes()
    )


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of the memory that MLX computes in. `total`: all that one process may use of it.
    `free`: what is left of that now; what MLX keeps for reuse counts as free. `usable`: what a run
    may take, what MLX holds already included; `rule` says how much of what that is."""

    total: int
    free: int
    usable: int = 0
    rule: str = ""


def device_memory() -> DeviceMemory:
    """The memory of the device that MLX computes on, and what a run may take of it.

    A CPU has the machine's memory, or what its control group allows; a run may take four fifths of
    what is free. On Metal it is the working set that macOS recommends, about two thirds to three
    quarters of the machine's memory, and what other processes use of it is not known: a run may
    take nine tenths. On CUDA it is the card's, `free` is what all processes leave, and a run may
    take nine tenths of that. A device that tells neither gets the limit that MLX set itself."""
    import mlx.core as mx

    here, active = hardware.device(), int(mx.get_active_memory())
    if here.backend == "cpu":
        total, free = _main_memory()
        return DeviceMemory(
            total, free, int(_CPU_SHARE * (free + active)), "four fifths of the memory that is free"
        )
    if here.working_set:
        total, free = here.working_set, max(0, here.working_set - active)
        return DeviceMemory(
            total, free, int(GPU_SHARE * total), "nine tenths of what macOS recommends for the GPU"
        )
    cached = int(mx.get_cache_memory())
    total = here.size("total_memory") or _own_limit()
    left = here.size("free_memory") or total - active - cached
    free = min(total, left + cached) if here.size("total_memory") else max(0, total - active)
    usable = int(GPU_SHARE * min(free + active, total))
    return DeviceMemory(total, free, usable, "nine tenths of what the GPU has free")


_CPU_SHARE = 0.8


def _main_memory() -> tuple[int, int]:
    total, available = machine_memory()
    limit, left = container_memory()
    total = min(total, limit) if limit else total
    free = min((size for size in (available, left) if size), default=total // 2)
    return total, min(total, free)


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

    It is a wish, not a wall: above it MLX's evaluator waits for what it has begun before it begins
    more. On a GPU most of a step's peak is such running ahead, so a limit near the need costs a few
    percent of speed at most."""
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
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _available_on_macos()
    values = {
        line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if len(line.split()) > 1
    }
    return values.get("MemTotal", 0), values.get("MemAvailable", 0)


def _available_on_macos() -> int:
    if sys.platform != "darwin":
        return 0
    try:
        return available_in(
            subprocess.run(
                ["vm_stat"], capture_output=True, text=True, timeout=5, check=False
            ).stdout
        )
    except (OSError, subprocess.SubprocessError):
        return 0


def available_in(vm_stat: str) -> int:
    """Bytes that programs can have, by what macOS's `vm_stat` prints: free, speculative and
    inactive pages. 0 when it says something else."""
    page = re.search(r"page size of (\d+) bytes", vm_stat)
    pages = re.findall(r"^Pages (?:free|speculative|inactive):\s+(\d+)\.", vm_stat, re.MULTILINE)
    return int(page[1]) * sum(map(int, pages)) if page else 0


def container_memory() -> tuple[int, int]:
    """Bytes that this process's control group may use, and what is left of them; zeros when it has
    no limit or there is none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (
            (folder / name).read_text().strip() for name in ("memory.max", "memory.current")
        )
    except OSError:
        return 0, 0
    return (
        (int(limit), max(0, int(limit) - int(used)))
        if limit.isdigit() and used.isdigit()
        else (0, 0)
    )


def _peak_resident() -> int:
    """Without /proc only the peak can be asked; macOS reports it in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
