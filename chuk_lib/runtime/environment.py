"""What a run was made with: platform, device, BLAS and versions. Goes into `environment.json` and
`chuk doctor`."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from chuk_lib.runtime import hardware
from chuk_lib.runtime.device import prepare
from chuk_lib.runtime.macos import watchdog_words
from chuk_lib.runtime.memory_use import device_memory, machine_memory
from chuk_lib.runtime.threads import count_cores

PACKAGES = (
    "chuk-mlx",
    "mlx",
    "mlx-cpu",
    "mlx-metal",
    "mlx-cuda-12",
    "mlx-cuda-13",
    "mlx-lm",
    "transformers",
    "tokenizers",
    "numpy",
    "safetensors",
    "huggingface_hub",
    "scipy-openblas32",
)


def describe() -> dict[str, Any]:
    """All of it as plain data, ready for JSON."""
    status = prepare()
    cores = count_cores()
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "device": {
            "backend": status.backend,
            "name": status.device,
            "info": device_info(),
            **_gpu(),
        },
        "dtype": {"frozen": status.dtype, "trained": "float32", "reason": status.dtype_reason},
        "blas": asdict(status.blas),
        "threads": {
            "blas": status.blas.threads,
            "from": status.threads_from,
            "adaptive": status.adaptive,
            "logical_cores": cores.logical,
            "physical_cores": cores.physical,
            "quota": cores.quota,
        },
        "memory_bytes": machine_memory()[0],
        "versions": versions(),
        "hub_cache": str(hub_cache()),
        "offline": offline(),
    }


def _gpu() -> dict[str, Any]:
    """What a run may take of a GPU, and on Metal what holds of its watchdog and of bfloat16."""
    here, memory = hardware.device(), device_memory()
    if here.backend == "cpu":
        return {}
    sizes = {
        "memory": {"total_bytes": memory.total, "usable_bytes": memory.usable, "rule": memory.rule}
    }
    if here.backend != "metal":
        return sizes
    return sizes | {
        "watchdog": watchdog_words(os.environ),
        "emulates_bfloat16": here.emulates_bfloat16,
    }


def device_info() -> dict[str, str | int]:
    """What MLX knows about the device it computes on."""
    return dict(hardware.device().known)


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result; those that are not installed are
    left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hub_cache() -> Path:
    """Where the Hugging Face hub keeps its downloads, by its own rules (`HF_HUB_CACHE`, `HF_HOME`,
    XDG)."""
    if given := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME") or Path(cache) / "huggingface").expanduser() / "hub"


def offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network."""
    return any(
        os.environ.get(name, "").strip().upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
