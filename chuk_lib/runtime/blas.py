"""Give MLX a fast BLAS on a Linux CPU, without touching anything else.

MLX's Linux wheel links the netlib reference BLAS: 2-3 GFLOP/s where OpenBLAS makes 100.
`scipy-openblas32` (built by the NumPy team, one file, picks its kernels for the processor it finds)
has the same functions under the names `scipy_cblas_*`. MLX calls three: sgemm, dgemm and cgemm;
their slots in `libmlx.so` are pointed at it (see `elf`).

A reader would get two things wrong. The swap works before or after the first product, for MLX calls
through the slot every time; and it can be taken back, which is how `chuk doctor` measures both.
Every step is checked, the last check being products with known results through MLX itself; on any
surprise all is put back and `reason` says why."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from chuk_lib.runtime import elf

FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so")
FAST = re.compile(r"openblas|mkl|blis|atlas|armpl|nvpl|accelerate", re.IGNORECASE)
ROW_MAJOR, NO_TRANSPOSE = 101, 111


class BlasError(Exception):
    """Why the fast BLAS is not in use. It becomes `BlasStatus.reason`, never a crash."""


@dataclass(frozen=True)
class BlasStatus:
    """Which BLAS MLX's CPU products use. `swapped`: chuk put it there. `reason`: why it is not a
    fast one, if so."""

    name: str
    fast: bool
    swapped: bool = False
    version: str = ""
    core: str = ""
    threads: int | None = None
    library: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Library:
    """A loaded BLAS: its three products by MLX's names, and OpenBLAS's own controls when it has
    them."""

    handle: ctypes.CDLL
    path: str
    prefix: str
    config: str
    core: str

    def address(self, function: str) -> int:
        """Where `cblas_sgemm` and the like are, under this library's own name for it."""
        pointer = ctypes.cast(getattr(self.handle, self.prefix + function), ctypes.c_void_p).value
        if not pointer:
            raise BlasError(f"{self.prefix}{function} of {self.path} has no address")
        return pointer

    @property
    def version(self) -> str:
        """`0.3.34` out of `OpenBLAS 0.3.34.481.3 DYNAMIC_ARCH …`; empty when it does not say."""
        found = re.search(r"OpenBLAS (\d+\.\d+\.\d+)", self.config)
        return found.group(1) if found else ""

    def set_threads(self, threads: int) -> None:
        """Use this many threads from the next product on. Without OpenBLAS's controls: nothing."""
        if hasattr(self.handle, self.prefix + "openblas_set_num_threads"):
            getattr(self.handle, self.prefix + "openblas_set_num_threads")(ctypes.c_int(threads))

    def threads(self) -> int | None:
        """How many threads it uses; None when it cannot tell."""
        if not hasattr(self.handle, self.prefix + "openblas_get_num_threads"):
            return None
        return int(getattr(self.handle, self.prefix + "openblas_get_num_threads")())


@dataclass
class _Swap:
    """The one swap of this process: what is in the slots and what was."""

    library: Library | None = None
    before: dict[int, int] = field(default_factory=dict)
    after: dict[int, int] = field(default_factory=dict)
    reason: str = ""


_swap = _Swap()


def install(choice: str, threads: int) -> BlasStatus:
    """Put a fast BLAS under MLX. `choice`: `auto`, `off`, or the path of a library with
    (scipy_)cblas_* functions.

    MLX must be imported. Never raises: look at `fast` and `reason` of what comes back.
    """
    if _swap.library is not None:
        return status()
    try:
        if choice == "off":
            raise BlasError("switched off by CHUK_BLAS=off")
        already = _linked_blas()
        if FAST.search(already):
            return BlasStatus(name=already, fast=True, library=already)
        library = _find(choice)
        library.set_threads(threads)
        _check_directly(library)
        _put_in(library)
        _swap.reason = ""
    except (BlasError, elf.ElfError, OSError) as error:
        _swap.reason = str(error)
    return status()


def status() -> BlasStatus:
    """Which BLAS is in use now."""
    library = _swap.library
    if library is None:
        return BlasStatus(name="netlib reference BLAS", fast=False, reason=_swap.reason)
    name = "OpenBLAS" if library.config else Path(library.path).name
    return BlasStatus(
        name,
        True,
        True,
        library.version,
        library.core,
        threads=library.threads(),
        library=library.path,
    )


def set_threads(threads: int) -> None:
    """Threads of the fast BLAS from the next product on; nothing happens when none is in."""
    if _swap.library is not None:
        _swap.library.set_threads(threads)


def remove() -> None:
    """Give MLX the wheel's own BLAS back. The library stays loaded: a product may be running in
    it."""
    if _swap.library is not None:
        elf.write_pointers(_swap.before)
        _swap.library, _swap.reason = None, "taken out again"


@contextmanager
def wheel_blas() -> Iterator[None]:
    """The wheel's own BLAS for the length of a `with` block; for measuring."""
    if _swap.library is None:
        yield
        return
    elf.write_pointers(_swap.before)
    try:
        yield
    finally:
        elf.write_pointers(_swap.after)


def _linked_blas() -> str:
    """The library that MLX's calls end in without us: one preloaded into the process, else what
    libmlx.so links to."""
    mlx = elf.loaded_library("libmlx.so")
    everywhere, linked = ctypes.CDLL(None), ctypes.CDLL(str(mlx))
    scope = everywhere if hasattr(everywhere, "cblas_sgemm") else linked
    address = ctypes.cast(scope.cblas_sgemm, ctypes.c_void_p).value
    if not address:
        raise BlasError("libmlx.so is not linked to a BLAS library")
    return str(elf.library_at(address).resolve())


def _find(choice: str) -> Library:
    if choice != "auto":
        return _open(choice)
    reasons = []
    for candidate in _candidates():
        try:
            return _open(candidate)
        except (BlasError, OSError) as error:
            reasons.append(str(error))
    raise BlasError("no fast BLAS found: " + "; ".join(reasons))


def _candidates() -> list[str]:
    """Our dependency first, then the system's OpenBLAS by its usual names."""
    spec = importlib.util.find_spec("scipy_openblas32")
    own = []
    if spec is not None and spec.origin:
        own = [
            str(p) for p in sorted((Path(spec.origin).parent / "lib").glob("libscipy_openblas*.so"))
        ]
    return [*own, *SYSTEM_LIBRARIES]


def _open(path: str) -> Library:
    handle = ctypes.CDLL(path)
    prefixes = [p for p in ("scipy_", "") if all(hasattr(handle, p + f) for f in FUNCTIONS)]
    if not prefixes:
        raise BlasError(f"{path} has no cblas_sgemm, cblas_dgemm and cblas_cgemm")
    prefix = prefixes[0]
    config = _words(handle, prefix + "openblas_get_config")
    if "USE64BITINT" in config:
        raise BlasError(f"{path} takes 64-bit integers, MLX passes 32-bit ones")
    return Library(handle, path, prefix, config, _words(handle, prefix + "openblas_get_corename"))


def _words(handle: ctypes.CDLL, function: str) -> str:
    if not hasattr(handle, function):
        return ""
    call = getattr(handle, function)
    call.restype = ctypes.c_char_p
    return (call() or b"").decode("ascii", "replace")


def _check_directly(library: Library) -> None:
    """One product called from here, before MLX sees the library: (2,3) times (3,2) of known
    numbers."""
    a = (ctypes.c_float * 6)(1, 2, 3, 4, 5, 6)
    b = (ctypes.c_float * 6)(7, 8, 9, 10, 11, 12)
    c = (ctypes.c_float * 4)()
    one, none, integer = ctypes.c_float(1), ctypes.c_float(0), ctypes.c_int
    call = getattr(library.handle, library.prefix + "cblas_sgemm")
    call.restype = None
    shape = (
        integer(ROW_MAJOR),
        integer(NO_TRANSPOSE),
        integer(NO_TRANSPOSE),
        integer(2),
        integer(2),
        integer(3),
    )
    call(*shape, one, a, integer(3), b, integer(2), none, c, integer(2))
    if list(c) != [58, 64, 139, 154]:
        raise BlasError(f"{library.path} computed a wrong product: {list(c)}")


def _put_in(library: Library) -> None:
    slots = elf.import_slots(elf.loaded_library("libmlx.so"), FUNCTIONS)
    before = {slot: elf.read_pointer(slot) for slot in slots.values()}
    after = {slot: library.address(name) for name, slot in slots.items()}
    elf.write_pointers(after)
    try:
        _check_through_mlx()
    except BlasError:
        elf.write_pointers(before)
        raise
    _swap.library, _swap.before, _swap.after = library, before, after


def _check_through_mlx() -> None:
    """Small products of whole numbers, exact in any order of summation, in the three types and with
    a transpose."""
    import mlx.core as mx

    for dtype in (mx.float32, mx.float64, mx.complex64):
        with mx.stream(mx.cpu):
            a = mx.arange(6).reshape(2, 3).astype(dtype)
            b = mx.arange(12).reshape(3, 4).astype(dtype)
            straight, turned = (a @ b).tolist(), (b.T @ a.T).T.tolist()
        if not straight == turned == [[20, 23, 26, 29], [56, 68, 80, 92]]:
            raise BlasError(f"a {dtype} product through MLX came out wrong")
