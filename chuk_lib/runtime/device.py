"""Make the machine ready for MLX, once, and say what was done and why.

`prepare()` is called by `load_model` before anything is computed; calling it again costs nothing.
All `CHUK_*` variables that concern the machine are read here and nowhere else:

    CHUK_BLAS          auto (default), off, or the path of a BLAS library
    CHUK_BLAS_THREADS  a number, or `adaptive`; without it OPENBLAS_NUM_THREADS counts, then the
                       machine decides
    CHUK_CACHE         the folder for compiled GPU kernels (`kernel_cache`); default: chuk in the
                       user's cache folder

What device there is says `hardware`, which reads CHUK_DEVICE; what a run may take of its memory
`memory_use` and `limits`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chuk_lib.errors import ConfigError
from chuk_lib.runtime import blas, hardware, process, threads
from chuk_lib.runtime.kernel_cache import KernelCache, open_cache
from chuk_lib.runtime.limits import set_metal_limits

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True)
class RuntimeStatus:
    """What `prepare` found and did. `backend`: cpu, metal or cuda. `threads_from`: who chose the
    number of threads."""

    backend: str
    device: str
    dtype: str
    dtype_reason: str
    blas: blas.BlasStatus
    threads_from: str
    adaptive: bool = False


@dataclass(frozen=True)
class ThreadChoice:
    """Number of BLAS threads to start with and where it comes from."""

    threads: int
    origin: str
    adaptive: bool = False


@dataclass
class _Process:
    """What this process has prepared so far."""

    status: RuntimeStatus | None = None
    governor: threads.Governor | None = None
    threads: int = 0
    kernels: KernelCache | None = None
    keeps_custom: bool = False


_process = _Process()


def prepare(compile: bool = True) -> RuntimeStatus:
    """Fast BLAS in and its threads set on a Linux CPU; memory, cache and wired limits set on Metal.
    Safe to call at any time.

    With `compile` False, and on a CPU, `mx.compile` is switched off for the rest of the process: it
    costs much there and gains nothing. Otherwise chuk switches it off only while it computes
    itself. Raises ConfigError for a CHUK_BLAS_THREADS that is neither a number nor `adaptive`, and
    for a CHUK_DEVICE that is not here."""
    here = hardware.device()
    backend = here.backend
    if not here.compiles and not compile:
        process.leave_uncompiled()
    if _process.status is not None and _process.status.device == here.name:
        return _process.status
    if backend == "metal":
        set_metal_limits(here.working_set)
    if backend == "cuda":
        _process.kernels = open_cache(
            _mlx_version(), str(here.known.get("architecture", "unknown"))
        )
    if not here.compiles and process.is_own_process():
        process.leave_uncompiled()
    choice = thread_choice(os.environ, threads.count_cores())
    found = _prepare_blas(backend, choice)
    _process.threads = choice.threads
    _process.governor = _governor(choice) if found.swapped and choice.adaptive else None
    _process.status = RuntimeStatus(
        backend,
        here.name,
        here.frozen,
        _dtype_reason(backend),
        found,
        choice.origin,
        _process.governor is not None,
    )
    return _process.status


def kernel_notes() -> list[str]:
    """What to say before the first step where no kernel is compiled yet."""
    cache = _process.kernels
    if cache is None:
        return []
    kept = f"once; later runs find them in {cache.shared}"
    if cache.awaits:
        return [f"GPU kernels for this kind of run are being compiled, {kept}"]
    if cache.is_empty:
        return [
            "GPU kernels are compiled as the first step meets them, three to five seconds each,"
            f" {kept}"
        ]
    return []


def kernel_folder() -> Path | None:
    """Where compiled kernels are kept for all, None where none are: on other devices, or where the
    user chose the folder. `prepare` comes first."""
    return _process.kernels.shared if _process.kernels is not None else None


def make_kernels(words: Sequence[str], order: str) -> None:
    """Start a process of this Python, `words` behind its name and `order` on stdin, that puts
    kernels into `kernel_folder`."""
    if _process.kernels is not None:
        _process.kernels.have_made([sys.executable, *words], order)


def keep_custom_kernels() -> None:
    """Have chuk's own CUDA kernels kept beside those that MLX keeps, where it can be done."""
    cache = _process.kernels
    if cache is None or _process.keeps_custom:
        return
    from chuk_lib.runtime.custom_kernels import keep_custom
    from chuk_lib.runtime.elf import ElfError

    with suppress(ElfError, OSError, AttributeError):
        keep_custom(cache.find, cache.keep)
    _process.keeps_custom = True


def await_kernels() -> None:
    """Wait for what `make_kernels` began, for no longer than it could take."""
    if _process.kernels is not None:
        _process.kernels.wait()


def publish_kernels() -> None:
    """Have other processes find what MLX compiled in this one. Call it between steps."""
    if _process.kernels is not None:
        _process.kernels.publish()


def _mlx_version() -> str:
    import mlx.core as mx

    return str(getattr(mx, "__version__", "unknown"))


def current_backend() -> str:
    """`cpu`, `metal` or `cuda`: where MLX computes unless told otherwise."""
    return hardware.device().backend


def on_cpu() -> bool:
    """Whether MLX computes on the CPU."""
    return current_backend() == "cpu"


def device_name() -> str:
    """What MLX calls the device it computes on: `Apple M4 Pro`, `NVIDIA H100`, `AMD EPYC`."""
    return hardware.device().name


def default_dtype(trained: bool) -> mx.Dtype:
    """The type for weights when the user names none.

    `trained`: whether the weights themselves will be updated. Then float32 everywhere: bfloat16
    keeps 8 bits, so an update smaller than 1/256 of a weight, as at the usual learning rates, would
    be rounded away. Frozen weights (to generate, or under LoRA adapters) are bfloat16 on a GPU. On
    a CPU they are float32 too: bfloat16 products do not go through BLAS there and are 20 to 70
    times slower."""
    import mlx.core as mx

    return mx.float32 if trained or hardware.device().frozen == "float32" else mx.bfloat16


def thread_choice(
    environment: os._Environ[str] | dict[str, str], cores: threads.Cores
) -> ThreadChoice:
    """CHUK_BLAS_THREADS over OPENBLAS_NUM_THREADS over the machine."""
    wanted = environment.get("CHUK_BLAS_THREADS", "").strip().lower()
    if wanted == "adaptive":
        return ThreadChoice(
            threads.default_threads(cores), "CHUK_BLAS_THREADS=adaptive", adaptive=True
        )
    if wanted:
        if not wanted.isdigit() or int(wanted) < 1:
            raise ConfigError(
                f"CHUK_BLAS_THREADS is {wanted!r}, not a number of threads",
                "set it to a number from 1 up, or to `adaptive`",
            )
        return ThreadChoice(int(wanted), "CHUK_BLAS_THREADS")
    general = environment.get("OPENBLAS_NUM_THREADS", "").strip()
    if general.isdigit() and int(general) >= 1:
        return ThreadChoice(int(general), "OPENBLAS_NUM_THREADS")
    return ThreadChoice(threads.default_threads(cores), f"{cores.usable} usable cores")


def adapt_threads() -> int:
    """Threads BLAS uses now. With `CHUK_BLAS_THREADS=adaptive` the number follows the load of the
    machine, looked at no more than once a second: call it between steps. Otherwise it never
    changes."""
    if _process.governor is None:
        return _process.threads
    wanted = _process.governor.threads()
    if wanted != _process.threads:
        blas.set_threads(wanted)
        _process.threads = wanted
    return wanted


def _prepare_blas(backend: str, choice: ThreadChoice) -> blas.BlasStatus:
    if backend != "cpu":
        return blas.BlasStatus(name="not used", fast=True, reason="products run on the GPU")
    if sys.platform == "darwin":
        return blas.BlasStatus(name="Accelerate", fast=True)
    if not sys.platform.startswith("linux"):
        return blas.BlasStatus(name="MLX's own", fast=False, reason=f"not known on {sys.platform}")
    return blas.install(os.environ.get("CHUK_BLAS", "").strip() or "auto", choice.threads)


def _governor(choice: ThreadChoice) -> threads.Governor:
    return threads.Governor(threads.count_cores().usable, choice.threads)


def _dtype_reason(backend: str) -> str:
    if backend == "cpu":
        return "only float32 products are fast on a CPU"
    return "frozen weights on a GPU; weights that are trained are float32"
