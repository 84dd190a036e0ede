"""Faster functions for training on a CPU: sigmoid, tanh and attention through NumPy, over MLX's own
memory.

MLX computes exp on a CPU one element at a time, 20 times slower than NumPy. Inside `fast_math()`
three functions of MLX that models call by name are replaced for large float32 arrays, with their
gradients; everything else goes to the originals, and they are put back at the end. On a GPU it does
nothing.

The price is memory: what is computed while gradients are traced stays until the backward pass is
over."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np
from threadpoolctl import threadpool_limits

from chuk_lib.runtime.cpu_attention import CPUAttention
from chuk_lib.runtime.device import adapt_threads, on_cpu, prepare

_LEAST = 1 << 13  # elements from which the detour is shorter
_CHUNK = 1 << 16  # elements that stay in a core's cache between passes
_Function = tuple[Any, str, Callable[..., Any], Callable[..., Any]]


@dataclass
class _Switch:
    """What a running `fast_math()` block replaced: (module, name, original, replacement); nothing
    when none runs."""

    replaced: tuple[_Function, ...] = ()


_switch = _Switch()


def is_fast() -> bool:
    """Whether a `fast_math()` block is running: then work may be done in NumPy, at once, while
    gradients are traced."""
    return bool(_switch.replaced)


@contextmanager
def fast_math() -> Iterator[None]:
    """Replace the slow functions while the block runs, on a CPU and unless CHUK_CPU_MATH=off. A
    block inside another one changes nothing."""
    if is_fast() or not on_cpu() or os.environ.get("CHUK_CPU_MATH", "").lower() == "off":
        yield
        return
    prepare()
    attention = mx.fast.scaled_dot_product_attention
    replaced = (
        (mx, "sigmoid", mx.sigmoid, _elementwise(mx.sigmoid, _sigmoid)),
        (mx, "tanh", mx.tanh, _elementwise(mx.tanh, _tanh)),
        (mx.fast, "scaled_dot_product_attention", attention, _attention(attention)),
    )
    try:
        _replace(replaced)
        # NumPy brings a BLAS of its own.
        with threadpool_limits(limits=adapt_threads(), user_api="blas"):
            yield
    finally:
        _put_back(replaced)


@contextmanager
def originals() -> Iterator[None]:
    """MLX's own functions again, inside a `fast_math()` block."""
    replaced = _switch.replaced
    _put_back(replaced)
    try:
        yield
    finally:
        _replace(replaced)


def _replace(functions: tuple[_Function, ...]) -> None:
    _switch.replaced = functions
    for home, name, _, function in functions:
        setattr(home, name, function)


def _put_back(functions: tuple[_Function, ...]) -> None:
    _switch.replaced = ()
    for home, name, original, _ in functions:
        setattr(home, name, original)


def view(array: mx.array) -> np.ndarray:
    """The memory of an evaluated array as NumPy sees it: writing to it changes the array."""
    mx.eval(array)
    return np.array(array, copy=False)


def _suits(array: Any) -> bool:
    return isinstance(array, mx.array) and array.dtype == mx.float32 and array.size >= _LEAST


def _elementwise(original: Callable[..., mx.array], fast: Any) -> Callable[..., mx.array]:
    def choose(array: Any, *arguments: Any, **options: Any) -> mx.array:
        if arguments or options or not _suits(array):
            return original(array, *arguments, **options)
        return cast(mx.array, fast(array))

    return choose


def _chunks(flat: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, flat.size, _CHUNK):
        yield flat[begin : begin + _CHUNK]


@mx.custom_function
def _sigmoid(array: mx.array) -> mx.array:
    """1 / (1 + exp(−x)): the negation is a fresh array, finished in place."""
    result = mx.negative(mx.contiguous(array))
    with np.errstate(over="ignore"):
        for part in _chunks(view(result).reshape(-1)):
            np.exp(part, out=part)
            part += 1
            np.reciprocal(part, out=part)
    return result


@_sigmoid.vjp
def _sigmoid_vjp(_: Any, cotangent: mx.array, result: mx.array) -> mx.array:
    return cotangent * (result - result * result)


@mx.custom_function
def _tanh(array: mx.array) -> mx.array:
    result = mx.negative(mx.contiguous(array))
    for part in _chunks(view(result).reshape(-1)):
        np.negative(part, out=part)
        np.tanh(part, out=part)
    return result


@_tanh.vjp
def _tanh_vjp(_: Any, cotangent: mx.array, result: mx.array) -> mx.array:
    return cotangent * (1 - result * result)


def _attention(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def choose(
        q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **options: Any
    ) -> mx.array:
        others = any(value is not None for value in options.values())  # sinks, a stream
        if others or not _attention_suits(q, k, v, mask):
            return original(q, k, v, scale=scale, mask=mask, **options)
        return _attend(q, k, v, scale, mask)

    return choose


def _attention_suits(q: mx.array, k: mx.array, v: mx.array, mask: Any) -> bool:
    length = q.shape[2]
    same = length == k.shape[2] and length > 1 and all(_suits(array) for array in (q, k, v))
    plain = mask is None or mask == "causal" if not isinstance(mask, mx.array) else False
    squares = (
        isinstance(mask, mx.array)
        and mask.dtype == mx.bool_
        and mask.ndim == 4
        and mask.shape[1] == 1
    )
    fits = squares and mask.shape[2:] == (length, length) and mask.shape[0] in (1, q.shape[0])
    return same and (plain or fits)


def _attend(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: str | mx.array | None
) -> mx.array:
    seen = np.array(mask) if isinstance(mask, mx.array) else mask
    call = CPUAttention(scale, seen)
    totals: list[np.ndarray] = []

    @mx.custom_function
    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        output, sums = call.forward(*_views(q, k, v))
        totals[:] = [sums]
        return mx.array(output)

    @attend.vjp
    def attend_vjp(
        primals: tuple[mx.array, ...], cotangent: mx.array, output: mx.array
    ) -> tuple[mx.array, ...]:
        q, k, v, result, slope = _views(*primals, output, cotangent)
        gradients = call.backward(q, k, v, result, totals[0], slope)
        return tuple(mx.array(gradient) for gradient in gradients)

    return cast(mx.array, attend(q, k, v))


def _views(*arrays: mx.array) -> tuple[np.ndarray, ...]:
    whole = [mx.contiguous(array) for array in arrays]
    mx.eval(whole)
    return tuple(np.array(array, copy=False) for array in whole)
