"""Short speed measurements for `chuk doctor`. Rough by intent: tell a slow BLAS from a fast one, no
more."""

from __future__ import annotations

import time
from typing import Any

from chuk_lib.runtime import blas


def matmul_gflops(size: int = 512, seconds: float = 0.15) -> float:
    """Billions of float operations a second in (size, size) float32 products on the default device,
    best of its runs."""
    import mlx.core as mx

    a, b = (
        mx.random.normal((size, size), key=mx.random.key(0)),
        mx.random.normal((size, size), key=mx.random.key(1)),
    )
    mx.eval(a, b, a @ b)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        mx.eval(a @ b)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e9


def wheel_matmul_gflops() -> float:
    """The same with the BLAS of MLX's own wheel: smaller and shorter, for it may be 50 times
    slower."""
    with blas.wheel_blas():
        return matmul_gflops(size=192, seconds=0.05)


def exp_gigavalues(seconds: float = 0.05) -> float:
    """Billions of float32 exponentials a second on the default device: what softmax and activations
    are made of."""
    import mlx.core as mx

    x = mx.random.normal((1 << 20,), key=mx.random.key(0))
    mx.eval(x, mx.exp(x))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        mx.eval(mx.exp(x))
        best = min(best, time.perf_counter() - began)
    return x.size / best / 1e9


def read_bandwidth(megabytes: int = 256, seconds: float = 0.5) -> float:
    """Bytes a second at which products read a matrix from memory: (rows, 4096) float32 by a vector,
    as decoding does, best of its runs."""
    import mlx.core as mx
    import numpy as np

    from chuk_lib.runtime.device import on_cpu

    rows = megabytes * (1 << 20) // (4 * 4096)
    here: Any = np if on_cpu() else mx
    matrix, vector = here.ones((rows, 4096), here.float32), here.ones(4096, here.float32)

    def run() -> None:
        product = matrix @ vector
        if here is mx:
            mx.eval(product)

    run()
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return 4.0 * 4096 * rows / best
