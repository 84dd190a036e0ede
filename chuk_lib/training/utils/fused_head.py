"""Output head and log-softmax in one, a tile of tokens at a time: a batch's logits never exist whole.

For token t with hidden state h, head weight W (V, H) and target y:  l = f(W·h),  log p(y) = l_y − logsumexp(l),
and the gradient is  ∂ log p(y)/∂l = onehot(y) − softmax(l).  f is what the family does to its logits (soft cap, scale).

On a CPU, inside `runtime.fast_math()`, the exponentials run in NumPy over the same memory: MLX's exp is scalar there
and about 20 times slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np

from chuk_lib import runtime
from chuk_lib.models.transforms import LogitTransform

_TILE_BYTES = {"cpu": 4 << 20, "gpu": 1 << 30}
Stats = tuple[mx.array, mx.array, mx.array]
KEEP_BYTES = 256 << 20  # probabilities kept for the backward pass, on a CPU; beyond that they are made again


@dataclass(frozen=True)
class FusedHead:
    """A head that can be tiled: `weight` (V, H), float, maybe trained.

    Its product with hidden states and the product's gradients are all that is needed of it.
    """

    weight: mx.array
    trained: bool
    transform: LogitTransform | None = None

    def stats(self, hidden: mx.array, targets: mx.array, gradient: bool = True) -> Stats:
        """Log-prob (with gradient), entropy and top-1 hit of targets (N,) under hidden states (N, H); float32.

        `gradient=False` saves the work that only a backward pass needs.
        """
        run = _Run(self, targets)
        if not gradient:
            return run.forward(hidden, self.weight)
        if self.trained:
            return cast(Stats, run.trained()(hidden, self.weight))
        return cast(Stats, run.frozen()(hidden)[:3])


def tile_rows(vocabulary: int) -> int:
    """Tokens in a tile: what fits the cache on a CPU, half a gibibyte of float32 logits on a GPU."""
    return max(16, _TILE_BYTES["cpu" if runtime.on_cpu() else "gpu"] // (4 * vocabulary))


class _Run:
    """One pass over the tiles, and what its backward pass needs.

    With a trained head the backward pass makes each tile's probabilities again (on a CPU they are kept while they are
    small). With a frozen head the forward pass makes the gradient of every log-prob, (N, H) in the hidden states'
    type: the gradient of anything made of them is that times a number for each token.
    """

    def __init__(self, head: FusedHead, targets: mx.array) -> None:
        kernel: Any = _NumpyTile if runtime.is_fast() else _MlxTile
        tile = tile_rows(head.weight.shape[0])
        keep = not head.trained or 4 * targets.shape[0] * head.weight.shape[0] <= KEEP_BYTES
        self._weight = head.weight
        self._slices = [slice(at, at + tile) for at in range(0, targets.shape[0], tile)]
        self._tiles = [kernel(targets[part], head.transform, keep) for part in self._slices]

    def trained(self) -> Callable[..., Any]:
        """As a function of (hidden, weight) with gradients for both."""
        function = mx.custom_function(self.forward)
        function.vjp(lambda primals, cotangents, _: self._backward(primals[0], primals[1], cotangents[0]))
        return function

    def frozen(self) -> Callable[..., Any]:
        """As a function of (hidden,) with a gradient for it alone; its fourth result is that gradient's rows."""
        function = mx.custom_function(lambda hidden: self._forward_with_gradient(hidden, self._weight))
        function.vjp(lambda _, cotangents, results: cotangents[0][:, None].astype(results[3].dtype) * results[3])
        return function

    def forward(self, hidden: mx.array, weight: mx.array) -> Stats:
        """Log-probs, entropies and hits, tile after tile."""
        parts: list[Stats] = []
        for part, tile in zip(self._slices, self._tiles, strict=True):
            rows = _after(hidden[part], parts[-1] if parts else ())
            parts.append(tile.forward(_product(rows, weight)))
        return _joined(parts)

    def _forward_with_gradient(self, hidden: mx.array, weight: mx.array) -> tuple[mx.array, ...]:
        parts: list[Stats] = []
        rises: list[mx.array] = []
        for part, tile in zip(self._slices, self._tiles, strict=True):
            rows = _after(hidden[part], (*parts[-1], rises[-1]) if parts else ())
            stats, rise = tile.with_gradient(_product(rows, weight), rows, weight)
            parts.append(stats)
            rises.append(rise.astype(hidden.dtype))
            if tile.eager:
                mx.eval(rises[-1])
        return (*_joined(parts), mx.concatenate(rises))

    def _backward(self, hidden: mx.array, weight: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
        to_hidden: list[mx.array] = []
        to_weight: mx.array | None = None
        for part, tile in zip(self._slices, self._tiles, strict=True):
            rows = _after(hidden[part], (to_hidden[-1], to_weight) if to_weight is not None else ())
            product = None if tile.kept else _product(rows, weight)
            slope = tile.backward(product, cotangent[part]).astype(weight.dtype)
            to_hidden.append((slope @ weight).astype(hidden.dtype))
            share = slope.T @ rows.astype(weight.dtype)
            to_weight = share if to_weight is None else to_weight + share
            if tile.eager:
                mx.eval(to_hidden, to_weight)
        assert to_weight is not None
        return mx.concatenate(to_hidden), to_weight


def _after(rows: mx.array, earlier: Sequence[mx.array]) -> mx.array:
    """`rows`, not computed with before all of `earlier` is there: so that one tile's logits exist at a time."""
    return mx.depends([rows], list(earlier))[0] if earlier else rows


def _joined(parts: list[Stats]) -> Stats:
    logps, entropy, correct = (mx.concatenate(list(column)) for column in zip(*parts, strict=True))
    return logps, entropy, correct


class _NumpyTile:
    """A tile on a CPU: NumPy works on the memory of MLX's product, in cache."""

    eager = True

    def __init__(self, targets: mx.array, transform: LogitTransform | None, keep: bool) -> None:
        self._targets = np.array(targets)
        self._rows = np.arange(len(self._targets))
        self._transform = transform
        self._keep = keep
        self._probs: np.ndarray | None = None
        self._slope: Any = None

    @property
    def kept(self) -> bool:
        """Whether the backward pass can do without the logits."""
        return self._probs is not None

    def forward(self, product: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Log-probs, entropies and hits of the tile."""
        shifted, probs = self._exponentials(product)
        sums = probs.sum(axis=1)
        log_sums = np.log(sums)
        at_target = shifted[self._rows, self._targets]
        entropy = log_sums - np.einsum("ij,ij->i", probs, shifted) / sums
        if self._keep:
            probs /= sums[:, None]
            self._probs = probs
        return mx.array(at_target - log_sums), mx.array(entropy), mx.array((at_target >= 0).astype(np.float32))

    def backward(self, product: mx.array | None, cotangent: mx.array) -> mx.array:
        """The gradient with respect to the head's product: cotangent·(onehot − softmax)·f'."""
        if product is not None:
            _, self._probs = self._exponentials(product)
            self._probs /= self._probs.sum(axis=1, keepdims=True)
        slope, scale = self._probs, np.array(cotangent)
        assert slope is not None
        self._probs = None
        slope *= -scale[:, None]
        slope[self._rows, self._targets] += scale
        return mx.array(slope if self._slope is None else slope * self._slope)

    def with_gradient(self, product: mx.array, rows: mx.array, weight: mx.array) -> tuple[Stats, mx.array]:
        """`forward`, and the gradient of each log-prob with respect to its hidden state (N, H)."""
        stats = self.forward(product)
        return stats, self.backward(None, mx.ones(product.shape[:1])) @ weight

    def _exponentials(self, product: mx.array) -> tuple[np.ndarray, np.ndarray]:
        """Logits less their row's maximum, and the exponentials of that."""
        logits = product.astype(mx.float32)
        mx.eval(logits)
        shifted = np.array(logits, copy=False)
        if self._transform is not None:
            self._transform.in_place(shifted)
            self._slope = self._transform.slope(shifted)
        shifted -= shifted.max(axis=1, keepdims=True)
        return shifted, np.exp(shifted)


class _MlxTile:
    """A tile on a GPU: lazy, made again in the backward pass."""

    eager = False
    kept = False

    def __init__(self, targets: mx.array, transform: LogitTransform | None, keep: bool) -> None:
        self._targets = targets
        self._transform = transform

    def forward(self, product: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Log-probs, entropies and hits of the tile."""
        logits = self._logits(product)
        log_z = mx.logsumexp(logits, axis=-1)
        at_target = mx.take_along_axis(logits, self._targets[:, None], axis=-1)[:, 0]
        entropy = log_z - (mx.exp(logits - log_z[:, None]) * logits).sum(axis=-1)
        hits = (mx.argmax(logits, axis=-1) == self._targets).astype(mx.float32)
        return at_target - log_z, entropy, hits

    def backward(self, product: mx.array | None, cotangent: mx.array) -> mx.array:
        """The gradient with respect to the head's product: cotangent·(onehot − softmax)·f'."""
        assert product is not None
        logits = self._logits(product)
        return self._rise(logits, mx.logsumexp(logits, axis=-1)) * cotangent[:, None]

    def _rise(self, logits: mx.array, log_z: mx.array) -> mx.array:
        """The gradient of each log-prob with respect to the head's product: (onehot − softmax)·f'."""
        onehot = mx.arange(logits.shape[-1]) == self._targets[:, None]
        rise = onehot.astype(mx.float32) - mx.exp(logits - log_z[:, None])
        return rise if self._transform is None else rise * self._transform.slope(logits)

    def with_gradient(self, product: mx.array, rows: mx.array, weight: mx.array) -> tuple[Stats, mx.array]:
        """`forward`, and the gradient of each log-prob with respect to its hidden state (N, H).

        Without a transform the entropy comes from that gradient g: Σ p·l = l_y − h·g, since l is linear in h. That
        saves two passes over the logits.
        """
        logits = self._logits(product)
        log_z = mx.logsumexp(logits, axis=-1)
        rise = self._rise(logits, log_z).astype(weight.dtype) @ weight
        if self._transform is not None:
            return self.forward(product), rise
        targets = self._targets[:, None]
        at_target = mx.take_along_axis(product, targets, axis=-1)[:, 0]
        logps = at_target.astype(mx.float32) - log_z
        entropy = (rise.astype(mx.float32) * rows.astype(mx.float32)).sum(axis=-1) - logps
        hits = (at_target >= product.max(axis=-1)).astype(mx.float32)
        return (logps, entropy, hits), rise

    def _logits(self, product: mx.array) -> mx.array:
        logits = product.astype(mx.float32)
        return logits if self._transform is None else self._transform(logits)


def _product(hidden: mx.array, weight: mx.array) -> mx.array:
    return hidden.astype(weight.dtype) @ weight.T
