"""Output head and log-softmax in one, a tile of tokens at a time: a batch's logits never exist
whole.

For token t with hidden state h, logits l = f(W·h) and target y:

    log p(y) = l_y − logsumexp(l)         ∂ log p(y)/∂l = onehot(y) − p
    H = logsumexp(l) − Σ p·l              ∂H/∂l = −p·(log p + H)

f is what the family does to its logits (soft cap, scale), and the temperature.

On a CPU, inside `runtime.fast_math()`, the exponentials run in NumPy over the same memory: MLX's
exp is scalar there and about 20 times slower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np

from chuk_lib import runtime
from chuk_lib.models.transforms import LogitTransform
from chuk_lib.training.utils.head_products import HeadProduct

# Probabilities kept for the backward pass, on a CPU; beyond that they are made again.
KEEP_BYTES = 256 << 20
Stats = tuple[mx.array, ...]
"""Log-prob, entropy, top-1 hit; and with moments the mean logit and log Σp². Float32 (N,) each."""


@dataclass(frozen=True)
class StatOptions:
    """What is wanted of the statistics of target tokens.

    `temperature` divides the logits. `gradient=False`, for evaluation and for old and reference
    log-probs, saves the work that only a backward pass needs. `entropy_gradient`: the entropy
    carries a gradient too. `moments`: also the mean logit over the vocabulary and log Σp², without
    gradient. `gap`: also the target's logit less the mean logit, with a gradient and untempered."""

    temperature: float = 1.0
    gradient: bool = True
    entropy_gradient: bool = False
    moments: bool = False
    gap: bool = False


@dataclass(frozen=True)
class FusedHead:
    """A head that is run in tiles: the product that makes logits, and what the family does to
    them."""

    product: HeadProduct
    transform: LogitTransform | None = None

    def stats(
        self, hidden: mx.array, targets: mx.array, options: StatOptions = StatOptions()
    ) -> Stats:
        """Statistics of targets (N,) under hidden states (N, H); the first has a gradient, maybe
        the second."""
        run = _Run(self, targets, options)
        if not options.gradient:
            return run.forward(hidden, *self.product.trained)
        if self.product.trained:
            return cast(Stats, run.trained()(hidden, *self.product.trained))
        return cast(Stats, run.frozen()(hidden)[: 5 if options.moments else 3])


def tile_rows(vocabulary: int) -> int:
    """Tokens in a tile: as many as have `runtime.tile_bytes()` of float32 logits."""
    return max(16, runtime.tile_bytes() // (4 * vocabulary))


class _Run:
    """One pass over the tiles, and what its backward pass needs.

    With a trained head the backward pass makes each tile's probabilities again (on a CPU they are
    kept while they are small). With a frozen head the forward pass makes the gradient of every
    log-prob, (N, H) in the hidden states' type: the gradient of anything made of them is that times
    a number for each token."""

    def __init__(self, head: FusedHead, targets: mx.array, options: StatOptions) -> None:
        kernel: Any = _NumpyTile if runtime.is_fast() else _MlxTile
        tile = tile_rows(head.product.vocabulary)
        # A frozen head keeps its probabilities whatever their size: they live for one tile only,
        # since the forward pass turns them into gradient rows at once. A trained head needs them in
        # the backward pass, for all tiles. With a gradient through the entropy the logits are
        # needed again too, so nothing is kept.
        small = 4 * targets.shape[0] * head.product.vocabulary <= KEEP_BYTES
        keep = (
            options.gradient
            and not options.entropy_gradient
            and (small or not head.product.trained)
        )
        self._head = head.product
        self._options = options
        self._slices = [slice(at, at + tile) for at in range(0, targets.shape[0], tile)]
        self._tiles = [
            kernel(targets[part], head.transform, keep, options.moments) for part in self._slices
        ]

    def trained(self) -> Callable[..., Any]:
        """As a function of (hidden, *trained arrays of the head) with gradients for all."""
        function = mx.custom_function(self.forward)
        # mx.custom_function: MLX calls `_backward` in place of differentiating `forward`, which
        # would keep every tile's logits for the backward pass.
        function.vjp(
            lambda primals, cotangents, _: self._backward(primals[0], primals[1:], cotangents)
        )
        return function

    def frozen(self) -> Callable[..., Any]:
        """As a function of (hidden,) with a gradient for it alone; its last results are the
        gradients' rows."""
        function = mx.custom_function(self._forward_with_gradient)
        both = self._options.entropy_gradient

        def backward(
            _: Any, cotangents: Sequence[mx.array], results: Sequence[mx.array]
        ) -> mx.array:
            # Gradient of token t's log-prob with respect to its hidden state: row t of the last
            # result, made in the forward pass. The chain rule is then one multiplication by the
            # incoming gradient. Cotangents 2.. (hits, moments) are dropped: they carry none.
            rises = results[-2:] if both else results[-1:]
            scaled = [
                c[:, None].astype(rise.dtype) * rise
                for c, rise in zip(cotangents, rises, strict=False)
            ]
            return scaled[0] + scaled[1] if both else scaled[0]

        function.vjp(backward)
        return function

    def forward(self, hidden: mx.array, *trained: mx.array) -> Stats:
        """Statistics, tile after tile."""
        parts: list[Stats] = []
        for part, tile in zip(self._slices, self._tiles, strict=True):
            # MLX is lazy: without this dependency it may compute several tiles' logits before it
            # reduces the first.
            rows = _after(hidden[part], parts[-1] if parts else ())
            parts.append(tile.forward(self._head.logits(rows, trained)))
        return _joined(parts)

    def _forward_with_gradient(self, hidden: mx.array) -> tuple[mx.array, ...]:
        parts: list[Stats] = []
        for part, tile in zip(self._slices, self._tiles, strict=True):
            rows = _after(hidden[part], parts[-1] if parts else ())
            stats, rises = self._rises(tile, rows)
            parts.append((*stats, *(rise.astype(hidden.dtype) for rise in rises)))
            if tile.eager:
                mx.eval(parts[-1])
        return _joined(parts)

    def _rises(self, tile: Any, rows: mx.array) -> tuple[Stats, list[mx.array]]:
        """A tile's statistics, and the gradients of log-probs (and entropies) with respect to its
        hidden states."""
        if self._options.entropy_gradient:
            ones = mx.ones(rows.shape[:1])
            logits = lambda: self._head.logits(rows, ())  # noqa: E731 (a NumPy tile works where they stand)
            slopes = [tile.slope(logits(), ones, None), tile.slope(logits(), None, ones)]
            return tile.forward(logits()), [self._head.to_rows(slope, rows) for slope in slopes]
        product = self._head.logits(rows, ())
        stats, slope = tile.with_slope(product)
        rise = self._head.to_rows(slope, rows)
        # The shortcut reads Σ p·l off h·g, so g must not have been rounded to bfloat16 and the
        # logits must be linear in h: a bias would be missing from h·g.
        if stats is None and self._head.linear and rise.dtype == mx.float32:
            stats = tile.forward_from(product, rise, rows)
        return stats or tile.forward_with(product, slope), [rise]

    def _backward(
        self, hidden: mx.array, trained: Sequence[mx.array], cotangents: Sequence[mx.array]
    ) -> tuple[mx.array, ...]:
        to_hidden: list[mx.array] = []
        to_trained: list[mx.array] = []
        to_entropy = cotangents[1] if self._options.entropy_gradient else None
        for part, tile in zip(self._slices, self._tiles, strict=True):
            # The next tile also waits for the sums of weight gradients: otherwise one (V, H) share
            # a tile would be alive until the end.
            rows = _after(hidden[part], (to_hidden[-1], *to_trained) if to_hidden else ())
            product = None if tile.kept else self._head.logits(rows, trained)
            slope = tile.slope(
                product, cotangents[0][part], None if to_entropy is None else to_entropy[part]
            )
            rise, *shares = self._head.pull(slope, rows, trained)
            to_hidden.append(rise.astype(hidden.dtype))
            to_trained = (
                [a + b for a, b in zip(to_trained, shares, strict=True)] if to_trained else shares
            )
            if tile.eager:
                mx.eval(to_hidden, to_trained)
        return mx.concatenate(to_hidden), *to_trained


def _after(rows: mx.array, earlier: Sequence[mx.array]) -> mx.array:
    """`rows`, not computed with before all of `earlier` is there: so that one tile's logits exist
    at a time."""
    return mx.depends([rows], list(earlier))[0] if earlier else rows


def _joined(parts: list[Stats]) -> Stats:
    return tuple(mx.concatenate(list(column)) for column in zip(*parts, strict=True))


class _NumpyTile:
    """A tile on a CPU: NumPy works on the memory of MLX's product, in cache."""

    eager = True

    def __init__(
        self, targets: mx.array, transform: LogitTransform | None, keep: bool, moments: bool
    ) -> None:
        self._targets = np.array(targets)
        self._rows = np.arange(len(self._targets))
        self._transform = transform
        self._keep = keep
        self._moments = moments
        self._probs: np.ndarray | None = None
        self._rate: Any = None

    @property
    def kept(self) -> bool:
        """Whether the backward pass can do without the logits."""
        return self._probs is not None

    def forward(self, product: mx.array) -> Stats:
        """The statistics of the tile."""
        # With x = l − max l and e = exp x, whose sum is s: log p(y) = x_y − log s, and H = log s −
        # Σ e·x / s. The maximum drops out of both; it returns in the mean logit only.
        shifted, probs, peaks = self._exponentials(product)
        sums = probs.sum(axis=1)
        log_sums = np.log(sums)
        at_target = shifted[self._rows, self._targets]
        entropy = log_sums - np.einsum("ij,ij->i", probs, shifted) / sums
        # A hit: nothing is larger than the target, whose shifted logit is then 0. Ties count.
        found = [at_target - log_sums, entropy, (at_target >= 0).astype(np.float32)]
        if self._moments:
            found += [
                shifted.mean(axis=1) + peaks,
                np.log(np.einsum("ij,ij->i", probs, probs)) - 2 * log_sums,
            ]
        if self._keep:
            probs /= sums[:, None]
            self._probs = probs
        return tuple(mx.array(value) for value in found)

    def slope(
        self, product: mx.array | None, to_logp: mx.array | None, to_entropy: mx.array | None
    ) -> mx.array:
        """The gradient with respect to the head's product, given those with respect to log-probs
        and entropies."""
        # `slope` begins as the probabilities and becomes the gradient in place: at this size a
        # second array of (tile, V) would leave the CPU's cache.
        slope, log_probs = self._probs, None
        self._probs = None
        if slope is None or to_entropy is not None:
            if product is None:
                raise ValueError("the logits are needed")
            log_probs, slope, _ = self._exponentials(product)
            sums = slope.sum(axis=1, keepdims=True)
            slope /= sums
            log_probs -= np.log(sums)
        if to_entropy is not None and log_probs is not None:
            entropy = -np.einsum("ij,ij->i", slope, log_probs)[:, None]
            factor = -np.array(to_entropy)[:, None] * (log_probs + entropy)
            # dL/dl = a·(onehot − p) − b·p·(log p + H), with a and b the gradients that arrive for
            # log-prob and entropy: p times the bracket (−b·(log p + H) − a), then a at the target.
            slope *= factor if to_logp is None else factor - np.array(to_logp)[:, None]
        elif to_logp is not None:
            slope *= -np.array(to_logp)[:, None]
        if to_logp is not None:
            slope[self._rows, self._targets] += np.array(to_logp)
        # Through the family's own function of the logits (soft cap, scale): its derivative at each.
        return mx.array(slope if self._rate is None else slope * self._rate)

    def with_slope(self, product: mx.array) -> tuple[Stats | None, mx.array]:
        """The statistics, and the gradient of each log-prob with respect to the head's product."""
        stats = self.forward(product)
        return stats, self.slope(None, mx.ones(product.shape[:1]), None)

    def _exponentials(self, product: mx.array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits less their row's maximum, the exponentials of that, and the maxima."""
        logits = product.astype(mx.float32)
        mx.eval(logits)
        # A view, not a copy: what follows is written over MLX's own result, which nobody else
        # reads.
        shifted = np.array(logits, copy=False)
        if self._transform is not None:
            self._transform.in_place(shifted)
            self._rate = self._transform.slope(shifted)
        peaks = shifted.max(axis=1)
        shifted -= peaks[:, None]
        return shifted, np.exp(shifted), peaks


class _MlxTile:
    """A tile on a GPU: lazy, made again in the backward pass."""

    eager = False
    kept = False

    def __init__(
        self, targets: mx.array, transform: LogitTransform | None, keep: bool, moments: bool
    ) -> None:
        self._targets = targets
        self._transform = transform
        self._moments = moments

    def forward(self, product: mx.array) -> Stats:
        """The statistics of the tile."""
        logits = self._logits(product)
        log_z = mx.logsumexp(logits, axis=-1)
        at_target = mx.take_along_axis(logits, self._targets[:, None], axis=-1)[:, 0]
        probs = mx.exp(logits - log_z[:, None])
        entropy = log_z - (probs * logits).sum(axis=-1)
        hits = (mx.argmax(logits, axis=-1) == self._targets).astype(mx.float32)
        found = (at_target - log_z, entropy, hits)
        return (
            (*found, logits.mean(axis=-1), mx.log(mx.square(probs).sum(axis=-1)))
            if self._moments
            else found
        )

    def slope(
        self, product: mx.array | None, to_logp: mx.array | None, to_entropy: mx.array | None
    ) -> mx.array:
        """The gradient with respect to the head's product, given those with respect to log-probs
        and entropies."""
        if product is None:
            raise ValueError("the logits are needed")
        logits = self._logits(product)
        log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        probs = mx.exp(log_probs)
        slope = mx.zeros_like(probs)
        if to_logp is not None:
            onehot = mx.arange(logits.shape[-1]) == self._targets[:, None]
            slope = slope + (onehot.astype(mx.float32) - probs) * to_logp[:, None]
        if to_entropy is not None:
            entropy = -(probs * log_probs).sum(axis=-1, keepdims=True)
            slope = slope - probs * (log_probs + entropy) * to_entropy[:, None]
        return slope if self._transform is None else slope * self._transform.slope(logits)

    def with_slope(self, product: mx.array) -> tuple[Stats | None, mx.array]:
        """The gradient of each log-prob with respect to the head's product; the statistics are None
        when they come cheaper from what is made of it (`forward_from`)."""
        logits = self._logits(product)
        onehot = mx.arange(logits.shape[-1]) == self._targets[:, None]
        slope = onehot.astype(mx.float32) - mx.exp(
            logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        )
        if self._transform is None and not self._moments:
            return None, slope
        if self._transform is not None:
            slope = slope * self._transform.slope(logits)
        return self.forward(product), slope

    def forward_from(self, product: mx.array, rise: mx.array, rows: mx.array) -> Stats:
        """The statistics, with the entropy from the gradient g of the log-prob with respect to the
        hidden state h: Σ p·l = l_y − h·g where l is linear in h. That saves two passes over the
        logits."""
        log_z = mx.logsumexp(product.astype(mx.float32), axis=-1)
        at_target = mx.take_along_axis(product, self._targets[:, None], axis=-1)[:, 0]
        logps = at_target.astype(mx.float32) - log_z
        entropy = (rise.astype(mx.float32) * rows.astype(mx.float32)).sum(axis=-1) - logps
        return logps, entropy, (at_target >= product.max(axis=-1)).astype(mx.float32)

    def forward_with(self, product: mx.array, slope: mx.array) -> Stats:
        """The statistics, with the entropy from the slope onehot − p: Σ p·l = l_y − Σ slope·l. One
        more pass over the logits; what `forward_from` reads would be rounded to the head's type."""
        log_z = mx.logsumexp(product, axis=-1)
        at_target = mx.take_along_axis(product, self._targets[:, None], axis=-1)[:, 0]
        entropy = log_z - at_target + (slope * product).sum(axis=-1)
        return at_target - log_z, entropy, (at_target >= product.max(axis=-1)).astype(mx.float32)

    def _logits(self, product: mx.array) -> mx.array:
        logits = product.astype(mx.float32)
        return logits if self._transform is None else self._transform(logits)
