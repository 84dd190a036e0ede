"""What chuk changes in a process while it computes, and how everybody else gets it back.

On a CPU chuk computes without `mx.compile` (it would start a C++ compiler for every new expression,
22 s for a small model, and gains nothing), with four of MLX's functions replaced (`cpu_math`,
`cpu_packed`) and with NumPy quiet about what is not finite. That holds inside `computing()` or
`uncompiled()` and nowhere else; inside them `users_own()` puts the caller's world back for as long
as a reward, a sink or another function of the user's runs.

All three are switches of the process: other threads see them too. `own_process()` says that the
process is chuk's, as that of the command line is: then `prepare` leaves `mx.compile` off between
computations, and `users_own()` alone has it. `without_values()` is for a rehearsal, whose kernels
compute nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class _State:
    """`own`: the process is chuk's. `is_off`: chuk switched `mx.compile` off and it was on before.
    `errors`: NumPy's error state as the caller has it, while chuk has another. `has_values`: what
    MLX computes is what was asked for."""

    own: bool = False
    is_off: bool = False
    errors: dict[str, Any] | None = None
    has_values: bool = True


_state = _State()


def own_process() -> None:
    """Say that this process runs chuk and nothing else. Imports nothing; `prepare` acts on it."""
    _state.own = True


def is_own_process() -> bool:
    """Whether `own_process` was called."""
    return _state.own


@contextmanager
def without_values() -> Iterator[None]:
    """Inside, the GPU's kernels may do nothing, and arrays hold what their memory held before. A
    check of values passes, and no value becomes an index."""
    _state.has_values = False
    try:
        yield
    finally:
        _state.has_values = True


def has_values() -> bool:
    """Whether what MLX computes may be looked at: False inside `without_values` alone."""
    return _state.has_values


def leave_uncompiled() -> None:
    """Switch `mx.compile` off until `users_own()`, when it is on."""
    import mlx.core as mx

    if not _state.is_off and _compiles():
        mx.disable_compile()
        _state.is_off = True


@contextmanager
def uncompiled() -> Iterator[None]:
    """On a CPU: `mx.compile` is off inside the block, and as it was after it. A block inside
    another changes nothing."""
    import mlx.core as mx

    from chuk_lib.runtime import hardware

    if _state.is_off or hardware.device().compiles:
        yield
        return
    leave_uncompiled()
    try:
        yield
    finally:
        if _state.is_off:
            mx.enable_compile()
            _state.is_off = False


@contextmanager
def computing(fast: bool = True) -> Iterator[None]:
    """How chuk computes: without `mx.compile` on a CPU, without NumPy's warnings (what comes out is
    looked at), with packed weights unpacked for a product (`cpu_packed`), and with `fast` by NumPy
    where that is faster (see `fast_math`)."""
    import numpy as np

    from chuk_lib.runtime.cpu_math import fast_math
    from chuk_lib.runtime.cpu_packed import packed_products

    with ExitStack() as stack:
        stack.enter_context(uncompiled())
        before = _state.errors
        if before is None:
            _state.errors = dict(np.geterr())
            stack.callback(setattr, _state, "errors", None)
        stack.enter_context(np.errstate(all="ignore"))
        stack.enter_context(packed_products())
        if fast:
            stack.enter_context(fast_math())
        yield


@contextmanager
def users_own() -> Iterator[None]:
    """The caller's world inside chuk's: `mx.compile`, MLX's functions and NumPy's error state as
    they were.

    What the user switches in the block stays switched: a `mx.disable_compile()` of theirs is not
    undone."""
    if not _state.is_off and _state.errors is None:
        yield
        return
    import mlx.core as mx
    import numpy as np

    from chuk_lib.runtime.cpu_math import originals
    from chuk_lib.runtime.cpu_packed import original_products

    was_off, errors = _state.is_off, _state.errors
    _state.is_off, _state.errors = False, None
    if was_off:
        mx.enable_compile()
    try:
        with originals(), original_products(), np.errstate(**(errors or {})):
            yield
    finally:
        _state.errors = errors
        if was_off:
            leave_uncompiled()


def _compiles() -> bool:
    """Whether `mx.compile` is on. MLX does not say, so a compiled function is called: it runs in
    Python when not."""
    import mlx.core as mx

    probe, calls = _probe()
    before = calls[0]
    nothing = mx.zeros((1,))
    probe(nothing)  # may be traced, when it is the first call
    probe(nothing)
    return calls[0] - before < 2


@cache
def _probe() -> tuple[Callable[[Any], Any], list[int]]:
    import mlx.core as mx

    calls = [0]

    def count(array: Any) -> Any:
        calls[0] += 1
        return array

    return mx.compile(count), calls
