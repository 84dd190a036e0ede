"""Short speed measurements for `chuk doctor`. Rough by intent: tell a slow BLAS from a fast one, no
more."""

from __future__ import annotations

import time

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
