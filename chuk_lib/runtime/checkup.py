"""Look the machine over: what is here, how fast it is, and what stands in the way. `chuk doctor`
shows it."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chuk_lib.runtime.environment import describe, hub_cache, offline, versions
from chuk_lib.runtime.macos import is_too_old_for_its_wheel
from chuk_lib.runtime.memory_use import machine_memory

NEEDED = ("mlx-lm", "transformers", "tokenizers", "numpy", "safetensors", "huggingface_hub")
TESTED_MLX = "0.32."
LITTLE_BYTES = 1 << 30
SLOW_GFLOPS = 10.0
"""Below this a CPU with a fast BLAS is not doing what it can."""


@dataclass(frozen=True)
class Problem:
    """What is wrong and the command or step that mends it. `fatal`: nothing works until then."""

    message: str
    fix: str
    fatal: bool = False


@dataclass(frozen=True)
class Checkup:
    """Facts as plain data, and problems, the fatal ones first."""

    facts: dict[str, Any]
    problems: list[Problem]


def check_up(folder: Path) -> Checkup:
    """Gather and measure, in two seconds or so. `folder`: where runs would be written, for the free
    disk space."""
    broken = _mlx_problem()
    facts: dict[str, Any] = (
        {"versions": versions()} if broken else describe() | {"speed": _measure()}
    )
    total, available = machine_memory()
    facts["macos"] = platform.mac_ver()[0]
    facts["memory"] = {"total_bytes": total, "available_bytes": available}
    facts["disk"] = {"folder": str(folder), "free_bytes": shutil.disk_usage(folder).free}
    cache = hub_cache()
    facts["hub"] = {"cache": str(cache), "size_bytes": folder_size(cache), "offline": offline()}
    problems = [*([broken] if broken else []), *_problems(facts)]
    return Checkup(facts, sorted(problems, key=lambda problem: not problem.fatal))


def folder_size(folder: Path) -> int:
    """Bytes of the files below a folder, links not counted; 0 when it is not there."""
    total, waiting = 0, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:  # gone, or not ours to read: what is left is still worth knowing
            continue
    return total


def _measure() -> dict[str, float | None]:
    from chuk_lib.runtime import measure
    from chuk_lib.runtime.device import prepare

    swapped = prepare().blas.swapped
    return {
        "matmul_gflops": round(measure.matmul_gflops(), 1),
        "wheel_matmul_gflops": round(measure.wheel_matmul_gflops(), 1) if swapped else None,
        "exp_gigavalues": round(measure.exp_gigavalues(), 3),
    }


def _mlx_problem() -> Problem | None:
    """A fatal problem when MLX cannot be imported."""
    try:
        import mlx.core  # noqa: F401 - the import is the test
    except ImportError as error:
        return Problem(
            f"MLX cannot be imported: {error}",
            'pip install --force-reinstall "mlx[cpu]" (on macOS: mlx)',
            fatal=True,
        )
    return None


def _problems(facts: dict[str, Any]) -> list[Problem]:
    found = package_problems(facts["versions"])
    if "blas" in facts:
        found += _blas_problems(facts)
    if is_too_old_for_its_wheel(facts.get("macos", "")):
        found.append(
            Problem(
                f"MLX's wheel is built for macOS 26.2, this is {facts['macos']}",
                "update macOS to 26.2",
            )
        )
    if 0 < facts["memory"]["available_bytes"] < LITTLE_BYTES:
        found.append(
            Problem(
                "less than 1 GiB of memory is free", "close other programs, or use a smaller model"
            )
        )
    if facts["disk"]["free_bytes"] < LITTLE_BYTES:
        where = facts["disk"]["folder"]
        found.append(
            Problem(
                f"less than 1 GiB is free on the disk of `{where}`",
                "free some: checkpoints need it",
            )
        )
    cache = Path(facts["hub"]["cache"])
    if cache.exists() and not os.access(cache, os.W_OK):
        found.append(
            Problem(
                f"the hub cache `{cache}` cannot be written", "set HF_HOME to a folder of yours"
            )
        )
    return found


def package_problems(found: dict[str, str]) -> list[Problem]:
    """What is missing, doubled or untested among installed packages (name -> version)."""
    problems = [
        Problem(f"{name} is not installed", f"pip install {name}", fatal=True)
        for name in NEEDED
        if name not in found
    ]
    builds = [name for name in found if name == "mlx-cpu" or name.startswith("mlx-cuda")]
    if len(builds) > 1:
        names = " ".join(builds)
        problems.append(
            Problem(
                f"{' and '.join(builds)} are installed over each other: they write the same files",
                f"pip uninstall -y mlx {names}, then install one: pip install mlx[cpu], mlx[cuda12]"
                " or mlx[cuda13]",
            )
        )
    if not found.get("mlx", TESTED_MLX).startswith(TESTED_MLX):
        problems.append(
            Problem(
                f"chuk is not tested with mlx {found['mlx']}", f'pip install "mlx=={TESTED_MLX}*"'
            )
        )
    return problems


def _blas_problems(facts: dict[str, Any]) -> list[Problem]:
    blas, speed = facts["blas"], facts["speed"]["matmul_gflops"]
    if not blas["fast"]:
        off = "CHUK_BLAS" in blas["reason"]
        fix = "unset CHUK_BLAS" if off else "pip install --force-reinstall scipy-openblas32"
        return [
            Problem(
                f"MLX uses a slow BLAS ({speed} GFLOP/s): {blas['reason'] or blas['name']}", fix
            )
        ]
    if facts["device"]["backend"] == "cpu" and speed < SLOW_GFLOPS:
        return [
            Problem(
                f"products run at {speed} GFLOP/s only, though {blas['name']} is in use",
                "look for a process that keeps the processor busy, or try another"
                " CHUK_BLAS_THREADS",
            )
        ]
    return []
