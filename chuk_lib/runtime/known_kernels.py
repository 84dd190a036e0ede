"""Compile the kernels that a training run will need before it needs them: all cores, while the model is loaded.

Which kernels those are was recorded on a GPU (`benchmarks/kernels.py`), by algorithm and by whether adapters or all
weights are trained, for one version of MLX. Other versions, and models with layers of other kinds, compile what is
not known when they meet it, as MLX does.
"""

from __future__ import annotations

import atexit
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

from chuk_lib.runtime.kernel_cache import KernelCache

_HERE = Path(__file__).resolve().parent
DATA = _HERE / "kernels.json.gz"
_WORKER = _HERE / "kernel_worker.py"
_LOOK_SECONDS = 0.05


@dataclass
class Preparation:
    """Kernels that workers are compiling into the folder of this process."""

    cache: KernelCache
    missing: Sequence[str]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    waited: float = 0.0

    @property
    def left(self) -> int:
        """How many are still to come; 0 when the workers have ended, whatever they could not compile."""
        if all(worker.poll() is not None for worker in self.workers):
            return 0
        return sum(not (self.cache.own / f"{name}.ptx").exists() for name in self.missing)

    def wait(self, seconds: float) -> None:
        """Until none is left, or so many seconds have passed since they were begun."""
        while self.left and time.monotonic() < self.began + seconds:
            time.sleep(_LOOK_SECONDS)
        self.waited = time.monotonic() - self.began

    def __str__(self) -> str:
        left = self.left
        words = f"{len(self.missing) - left} GPU kernels were compiled for this card and this MLX in "
        rest = f"; {left} are to come" if left else ""
        return f"{words}{self.waited:.0f} s{rest}; they are kept in {self.cache.shared}"

    def stop(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.terminate()


@cache
def known() -> dict[str, Any]:
    """What was recorded: `mlx` (its version), `options` and `headers` of the compiler, `modules` and, by `use`, their
    names; empty when there is none."""
    try:
        found: dict[str, Any] = json.loads(gzip.decompress(DATA.read_bytes()))
    except OSError:
        return {}
    return found


def prepare_known(cache: KernelCache, use: str, version: str, architecture: str, cores: int) -> Preparation | None:
    """Start to compile what `use` (`sft/lora`, `grpo/full` …) needs and the cache does not have. None when nothing is
    missing, or nothing is known for this version of MLX."""
    data = known()
    names = data.get("uses", {}).get(use, ()) if data.get("mlx") == version else ()
    missing = [name for name in names if not (cache.own / f"{name}.ptx").exists()]
    library, options = _nvrtc(), _options(data.get("options", ()), architecture)
    if not missing or library is None or options is None:
        return None
    preparation = Preparation(cache, missing)
    for names in _shares(missing, max(1, cores - 1)):
        job = {
            "library": library, "options": options, "data": str(DATA), "modules": names,
            "folders": [str(cache.shared), str(cache.own)],
        }  # fmt: skip
        preparation.workers.append(_start(job))
    atexit.register(preparation.stop)
    return preparation


def _shares(names: Sequence[str], most: int) -> list[list[str]]:
    return [share for share in ([*names[first::most]] for first in range(most)) if share]


def _start(job: dict[str, Any]) -> subprocess.Popen[bytes]:
    worker = subprocess.Popen(
        [sys.executable, "-I", str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stdin: IO[bytes] | None = worker.stdin
    assert stdin is not None
    with stdin:
        stdin.write(json.dumps(job).encode())
    return worker


def _nvrtc() -> str | None:
    """The compiler that MLX has loaded into this process."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = (line.split(maxsplit=5)[-1] for line in lines if "/libnvrtc.so" in line)
    return next(paths, None)


def _options(recorded: Sequence[str], architecture: str) -> list[str] | None:
    """The options with the folders of this machine in their places; None when one is not here."""
    import mlx.core as mx

    folders = {"{mlx}": str(Path(mx.__file__).resolve().parent), "{cuda}": _cuda_include(), "{arch}": architecture}
    options = list(recorded)
    for word, value in folders.items():
        if value is None and any(word in option for option in options):
            return None
        options = [option.replace(word, str(value)) for option in options]
    return options or None


def _cuda_include() -> str | None:
    """Where CUDA's own headers are, looked for as MLX does: the toolkit, or what pip installed."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(home) / "include" for home in homes if home]
    places += [Path(folder) / "nvidia" / "cu13" / "include" for folder in sys.path]
    return next((str(place) for place in places if (place / "cuda_bf16.h").is_file()), None)
