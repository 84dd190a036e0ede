"""Layers in NumPy, forward and backward by hand: what a CPU runs, where a step of MLX costs ten
times as much.

Arrays are time-major, (T, B, ·), with T steps of B environments. `keep` (T, B) is 0 where an
episode begins: what was remembered before that step is forgotten, and no gradient goes back over
it. The state of a layer is one array (B, S): h for a GRU, h and c side by side for an LSTM, nothing
(S = 0) without memory. Gates and names of weights are those of `mlx.nn.GRU` and `mlx.nn.LSTM`, so
either reads the other's:

    GRU   r, z = σ(Wx·x + Wh·h + b)    n = tanh(Wx·x + b + r·(Wh·h + bhn))    h' = (1 − z)·n + z·h
    LSTM  i, f, o = σ(Wx·x + Wh·h + bias)    g = tanh(…)    c' = f·c + i·g    h' = o·tanh(c')

A backward function gives the gradient with respect to the input and to each weight. The loops go
over time alone: the products with the input, and those that give the gradients of the weights, are
one for all steps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

Weights = dict[str, np.ndarray]
"""Weights or gradients by name."""


class Pass(NamedTuple):
    """A layer's outputs (T, B, H), its state after the last step (B, S), and what the backward pass
    reads."""

    outputs: np.ndarray
    state: np.ndarray
    kept: tuple[Any, ...]


def one_thread() -> AbstractContextManager[Any]:
    """NumPy's products on one thread: at this size a second one costs fifty times what it saves."""
    context: AbstractContextManager[Any] = _pools().limit(limits=1)
    return context


@cache
def _pools() -> ThreadpoolController:
    # Looks through the libraries of the process, which takes a millisecond.
    return ThreadpoolController()


def gru_forward(weights: Weights, x: np.ndarray, state: np.ndarray, keep: np.ndarray) -> Pass:
    """A GRU over x (T, B, D) from `state` (B, H)."""
    steps, rows, _ = x.shape
    width = state.shape[1]
    given = _product(x, weights["Wx"]) + weights["b"]
    into, bias = np.ascontiguousarray(weights["Wh"].T), weights["bhn"]
    befores, outputs = (np.empty((steps, rows, width), x.dtype) for _ in range(2))
    gates, offers, news = (
        np.empty((steps, rows, 2 * width), x.dtype),
        np.empty_like(outputs),
        np.empty_like(outputs),
    )
    h = state
    for t in range(steps):
        before = np.multiply(h, keep[t][:, None], out=befores[t])
        recalled = before @ into
        gate = gates[t]
        np.add(given[t, :, : 2 * width], recalled[:, : 2 * width], out=gate)
        gate *= 0.5
        np.tanh(gate, out=gate)
        gate *= 0.5
        gate += 0.5
        offer = np.add(recalled[:, 2 * width :], bias, out=offers[t])
        new = np.multiply(gate[:, :width], offer, out=news[t])
        new += given[t, :, 2 * width :]
        np.tanh(new, out=new)
        h = np.subtract(before, new, out=outputs[t])
        h *= gate[:, width:]
        h += new
    return Pass(outputs, h.copy(), (x, keep, befores, gates, offers, news))


def gru_backward(
    weights: Weights, kept: tuple[Any, ...], rise: np.ndarray
) -> tuple[np.ndarray, Weights]:
    """Gradients from those with respect to the outputs, `rise` (T, B, H)."""
    x, keep, befores, gates, offers, news = kept
    steps, rows, width = befores.shape
    resets, updates = gates[..., :width], gates[..., width:]
    # what a step multiplies its gradient by does not depend on later steps: once for all of them
    to_new = (1 - updates) * (1 - news * news)
    to_update = (befores - news) * updates * (1 - updates)
    to_reset = offers * resets * (1 - resets)
    # Of the gates before their functions, by way of the input.
    slopes = np.empty((steps, rows, 3 * width), x.dtype)
    # The same by way of the state: the third goes through the reset gate.
    recalled = np.empty_like(slopes)
    back = np.zeros((rows, width), x.dtype)
    for t in range(steps - 1, -1, -1):
        back += rise[t]
        slope, through = slopes[t], recalled[t]
        new = np.multiply(back, to_new[t], out=slope[:, 2 * width :])
        np.multiply(back, to_update[t], out=slope[:, width : 2 * width])
        np.multiply(new, to_reset[t], out=slope[:, :width])
        through[:, : 2 * width] = slope[:, : 2 * width]
        np.multiply(new, resets[t], out=through[:, 2 * width :])
        back *= updates[t]
        back += through @ weights["Wh"]
        back *= keep[t][:, None]
    flat, flat_recalled = slopes.reshape(-1, 3 * width), recalled.reshape(-1, 3 * width)
    gradients = {
        "Wx": flat.T @ x.reshape(-1, x.shape[2]),
        "Wh": flat_recalled.T @ befores.reshape(-1, width),
        "b": flat.sum(0),
        "bhn": flat_recalled[:, 2 * width :].sum(0),
    }
    return _product(slopes, weights["Wx"].T), gradients


def lstm_forward(weights: Weights, x: np.ndarray, state: np.ndarray, keep: np.ndarray) -> Pass:
    """An LSTM over x (T, B, D) from `state` (B, 2H): h, then c."""
    steps, rows, _ = x.shape
    width = state.shape[1] // 2
    given = _product(x, weights["Wx"]) + weights["bias"]
    into = np.ascontiguousarray(weights["Wh"].T)
    befores, cells, bounded, outputs = (np.empty((steps, rows, width), x.dtype) for _ in range(4))
    gates = np.empty((steps, rows, 4 * width), x.dtype)
    h, c = state[:, :width], state[:, width:]
    half = np.full(4 * width, 0.5, x.dtype)
    half[2 * width : 3 * width] = 1  # σ(x) = ½ + ½·tanh(x/2), so that one tanh serves all four
    shift = 1 - half
    shift[shift > 0] = 0.5
    for t in range(steps):
        forget = keep[t][:, None]
        before = np.multiply(h, forget, out=befores[t])
        cell = np.multiply(c, forget, out=cells[t])
        gate = np.matmul(before, into, out=gates[t])
        gate += given[t]
        gate *= half
        np.tanh(gate, out=gate)
        gate *= half
        gate += shift
        c = gate[:, width : 2 * width] * cell
        c += gate[:, :width] * gate[:, 2 * width : 3 * width]
        h = np.multiply(gate[:, 3 * width :], np.tanh(c, out=bounded[t]), out=outputs[t])
    return Pass(outputs, np.concatenate([h, c], axis=1), (x, keep, befores, cells, bounded, gates))


def lstm_backward(
    weights: Weights, kept: tuple[Any, ...], rise: np.ndarray
) -> tuple[np.ndarray, Weights]:
    """Gradients from those with respect to the outputs, `rise` (T, B, H)."""
    x, keep, befores, cells, bounded, gates = kept
    steps, rows, width = befores.shape
    i, f, g, o = (gates[..., part * width : (part + 1) * width] for part in range(4))
    to_cell = o * (1 - bounded * bounded)
    factors = np.concatenate(
        [g * i * (1 - i), cells * f * (1 - f), i * (1 - g * g), bounded * o * (1 - o)], axis=2
    )
    slopes = np.empty_like(gates)
    back, back_cell = np.zeros((rows, width), x.dtype), np.zeros((rows, width), x.dtype)
    for t in range(steps - 1, -1, -1):
        back += rise[t]
        back_cell += back * to_cell[t]
        slope = slopes[t].reshape(rows, 4, width)
        factor = factors[t].reshape(rows, 4, width)
        np.multiply(back_cell[:, None], factor[:, :3], out=slope[:, :3])
        np.multiply(back, factor[:, 3], out=slope[:, 3])
        forget = keep[t][:, None]
        back = slopes[t] @ weights["Wh"]
        back *= forget
        back_cell = back_cell * f[t]
        back_cell *= forget
    flat = slopes.reshape(-1, 4 * width)
    gradients = {
        "Wx": flat.T @ x.reshape(-1, x.shape[2]),
        "Wh": flat.T @ befores.reshape(-1, width),
        "bias": flat.sum(0),
    }
    return _product(slopes, weights["Wx"].T), gradients


def dense_forward(weights: Weights, x: np.ndarray, state: np.ndarray, keep: np.ndarray) -> Pass:
    """tanh(W·x + b), which remembers nothing."""
    outputs = np.tanh(_product(x, weights["weight"]) + weights["bias"])
    return Pass(outputs, state, (x, outputs))


def dense_backward(
    weights: Weights, kept: tuple[Any, ...], rise: np.ndarray
) -> tuple[np.ndarray, Weights]:
    """Gradients from those with respect to the outputs."""
    x, outputs = kept
    return linear_backward(weights, x, rise * (1 - outputs * outputs))


def linear(weights: Weights, x: np.ndarray) -> np.ndarray:
    """W·x + b."""
    found: np.ndarray = _product(x, weights["weight"]) + weights["bias"]
    return found


def linear_backward(
    weights: Weights, x: np.ndarray, rise: np.ndarray
) -> tuple[np.ndarray, Weights]:
    """Gradients of `linear`."""
    flat = rise.reshape(-1, rise.shape[-1])
    gradients = {"weight": flat.T @ x.reshape(-1, x.shape[-1]), "bias": flat.sum(0)}
    return _product(rise, weights["weight"].T), gradients


def _product(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """x·Mᵀ as one product of matrices: NumPy would make one for each step of time."""
    found: np.ndarray = (x.reshape(-1, x.shape[-1]) @ matrix.T).reshape(*x.shape[:-1], -1)
    return found
