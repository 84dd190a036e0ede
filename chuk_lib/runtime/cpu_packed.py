"""Products with packed (quantized) weights on a CPU: unpack the weight, multiply, forget it.

MLX's own kernel reads the packed weight anew for each row: for 8 rows of 2,048 numbers into 8,192
it takes twice as long as unpacking and multiplying, for 256 rows twenty times (two cores, float32).
The gradient unpacks again, so that a step never holds more than the weights of a few layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx

from chuk_lib.runtime.device import on_cpu

LEAST_ROWS = 6
"""Rows from which unpacking a 4-bit weight costs less than MLX's kernel."""


@dataclass
class _Switch:
    """MLX's own product while another stands in its place."""

    original: Any = None


_switch = _Switch()


@contextmanager
def packed_products() -> Iterator[None]:
    """Unpack weights for products of many rows while the block runs, on a CPU. A block inside
    another one changes nothing."""
    if _switch.original is not None or not on_cpu():
        yield
        return
    _switch.original = mx.quantized_matmul
    mx.quantized_matmul = _product(mx.quantized_matmul)
    try:
        yield
    finally:
        mx.quantized_matmul, _switch.original = _switch.original, None


@contextmanager
def original_products() -> Iterator[None]:
    """MLX's own product again, inside a `packed_products()` block."""
    original, ours = _switch.original, mx.quantized_matmul
    if original is None:
        yield
        return
    mx.quantized_matmul, _switch.original = original, None
    try:
        yield
    finally:
        mx.quantized_matmul, _switch.original = ours, original


def _product(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """`mx.quantized_matmul` that unpacks for many float32 rows and is `original` otherwise."""

    def choose(
        x: mx.array,
        w: mx.array,
        /,
        scales: mx.array,
        biases: mx.array | None = None,
        transpose: bool = True,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        **options: Any,
    ) -> mx.array:
        if options or not transpose or not _suits(x, w, scales, biases):
            return original(x, w, scales, biases, transpose, group_size, bits, mode, **options)

        def unpack() -> mx.array:
            return mx.dequantize(w, scales, biases, group_size, bits, mode).astype(mx.float32)

        return _multiply(x, unpack)

    return choose


def _suits(x: mx.array, w: mx.array, scales: mx.array, biases: mx.array | None) -> bool:
    # Scales without biases are powers of two or of a few bits: bfloat16 holds such weights exactly.
    exact = biases is None or scales.dtype == mx.float32
    wide = x.dtype == mx.float32 and w.ndim == 2 and exact
    return wide and x.size >= LEAST_ROWS * x.shape[-1]


def _multiply(x: mx.array, unpack: Callable[[], mx.array]) -> mx.array:
    @mx.custom_function
    def multiply(x: mx.array) -> mx.array:
        return x @ unpack().T

    @multiply.vjp
    def multiply_vjp(_: Any, cotangent: mx.array, output: mx.array) -> mx.array:
        return cotangent @ unpack()

    return cast(mx.array, multiply(x))
