"""The formulas of merging, tensor by tensor, in float32, a million numbers at a time.

With W₀ the base's tensor, Wᵢ a model's, Δᵢ = Wᵢ − W₀, wᵢ its weight and λ a factor:

- linear (Wortsman et al. 2022): Σ wᵢWᵢ, over Σ wᵢ with `normalize`
- slerp: sin((1−t)θ)/sin θ · W₀ + sin(tθ)/sin θ · W₁, θ the angle between the two tensors as vectors
- task_arithmetic (Ilharco et al. 2023): W₀ + λ Σ wᵢΔᵢ
- ties (Yadav et al. 2023): only the largest Δᵢ, and of those only what has the sign of their
weighted sum
- dare_linear, dare_ties (Yu et al. 2024): each number of Δᵢ is kept by chance, with probability
`density`
- della, della_linear (Deep et al. 2024): by chance too, large numbers of a row likelier than small
ones
- breadcrumbs, breadcrumbs_ties (Davari and Belilovsky 2024): neither the largest nor the small Δᵢ
- model_stock (Jang et al. 2024): between W₀ and the mean, the nearer to W₀ the less the Δᵢ point
the same way
- passthrough: one tensor, times `scale`

What thins Δᵢ out returns a function that is called with its pieces in order; it may have read them
all before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from chuk_lib.errors import ConfigError
from chuk_lib.models.reading import CHUNK

Piece = np.ndarray
Thin = Callable[[Piece], Piece]
RESCALES = ("paper", "l1", "none")
"""How what was kept by chance makes up for the rest: over its probability, or so that Σ|Δᵢ|
stays."""


class Numbers(Protocol):
    """A tensor that can be read more than once, in pieces."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    def chunks(self, size: int) -> Iterator[Piece]:
        """Its numbers in order, `size` at a time."""
        ...


@dataclass(frozen=True)
class Part:
    """The tensor of one model in a merge and what is said for it."""

    tensor: Numbers
    weight: float = 1.0
    density: float = 1.0
    epsilon: float = 0.15
    gamma: float = 0.01
    scale: float = 1.0


@dataclass(frozen=True)
class Mixture:
    """One tensor that is about to be merged. `base` is W₀, `name` and `seed` settle what chance
    does."""

    name: str
    parts: tuple[Part, ...]
    base: Numbers | None = None
    factor: float = 1.0
    t: float = 0.5
    normalize: bool = False
    rescale: str = "paper"
    seed: int = 0

    @property
    def piece(self) -> int:
        """Numbers read at a time: whole rows."""
        row = max(1, self.parts[0].tensor.shape[-1]) if self.parts[0].tensor.shape else 1
        return max(1, CHUNK // row) * row

    def pieces(self) -> Iterator[tuple[Piece, list[Piece]]]:
        """Of each piece the base's numbers and those of the parts; without a base, zeros."""
        parts = [part.tensor.chunks(self.piece) for part in self.parts]
        bases = self.base.chunks(self.piece) if self.base is not None else None
        for each in zip(*parts, strict=True):
            yield (np.zeros(1, np.float32) if bases is None else next(bases)), list(each)

    def differences(self, index: int) -> Iterator[Piece]:
        """Δᵢ of the part of that index, in pieces."""
        for base, parts in replace(self, parts=(self.parts[index],)).pieces():
            yield parts[0] - base

    def random(self, index: int) -> np.random.Generator:
        """Chance for one part: the same for the same seed, tensor and place among the models."""
        digest = sha256(f"{self.seed}\0{index}\0{self.name}".encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def _linear(mixture: Mixture) -> Iterator[Piece]:
    total = sum(part.weight for part in mixture.parts) if mixture.normalize else 1.0
    if abs(total) < 1e-8:
        raise ConfigError("the weights add up to 0", "use --no-normalize, or other weights")
    for _, parts in mixture.pieces():
        yield cast(Piece, _weighted(mixture, parts) / np.float32(total))


def _weighted(mixture: Mixture, parts: Sequence[Piece]) -> Piece:
    whole = np.zeros_like(parts[0])
    for part, piece in zip(mixture.parts, parts, strict=True):
        whole = whole + piece * np.float32(part.weight)
    return whole


def _slerp(mixture: Mixture) -> Iterator[Piece]:
    products = np.zeros(3)
    for first, (second,) in mixture.pieces():
        a, b = first.astype(np.float64), second.astype(np.float64)
        products += (a @ b, a @ a, b @ b)
    size = np.sqrt(products[1] * products[2])
    cosine, t = (products[0] / size if size else 1.0), mixture.t
    own, other = 1 - t, t
    if abs(cosine) <= _PARALLEL:
        angle = np.arccos(cosine)
        own, other = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    for first, (second,) in mixture.pieces():
        yield first * np.float32(own) + second * np.float32(other)


_PARALLEL = 0.9995
"""Above this cosine two tensors count as parallel and are mixed along a line."""


def _stock(mixture: Mixture) -> Iterator[Piece]:
    count = len(mixture.parts)
    products = np.zeros((count, count))
    for base, parts in mixture.pieces():
        deltas = np.stack([part - base for part in parts]).astype(np.float64)
        products += deltas @ deltas.T
    sizes = np.sqrt(np.diag(products))
    pairs = [(i, j) for i in range(count) for j in range(i)]
    cosine = np.mean(
        [np.clip(products[i, j] / max(sizes[i] * sizes[j], 1e-6), -1, 1) for i, j in pairs]
    )
    t = np.float32(count * cosine / (1 + (count - 1) * cosine))
    for base, parts in mixture.pieces():
        yield t * (sum(parts[1:], parts[0]) / np.float32(count)) + (1 - t) * base


def _passthrough(mixture: Mixture) -> Iterator[Piece]:
    (part,) = mixture.parts
    for piece in part.tensor.chunks(mixture.piece):
        yield piece if part.scale == 1 else piece * np.float32(part.scale)


@dataclass(frozen=True)
class _Task:
    """W₀ + λ Σ wᵢ·thin(Δᵢ); with `elect` only what agrees with the sign of that sum, 0 counting as
    +."""

    thin: Callable[[Mixture, int], Thin]
    elect: bool = False

    def __call__(self, mixture: Mixture) -> Iterator[Piece]:
        kept = [self.thin(mixture, index) for index in range(len(mixture.parts))]
        weights = [np.float32(part.weight) for part in mixture.parts]
        for base, parts in mixture.pieces():
            deltas = [
                keep(part - base) * weight
                for keep, part, weight in zip(kept, parts, weights, strict=True)
            ]
            whole: Any = sum(deltas[1:], deltas[0])
            total: Any = sum(weights)
            if self.elect:
                sign = np.where(whole >= 0, np.float32(1), np.float32(-1))
                agreed = [np.sign(delta) == sign for delta in deltas]
                whole = sum(
                    (delta * mask for delta, mask in zip(deltas, agreed, strict=True)),
                    np.zeros_like(whole),
                )
                total = sum(
                    (mask * weight for mask, weight in zip(agreed, weights, strict=True)),
                    np.zeros_like(whole),
                )
            if mixture.normalize:
                whole = whole / np.where(np.abs(total) < 1e-8, np.float32(1), total)
            yield base + whole * np.float32(mixture.factor)


def _all(mixture: Mixture, index: int) -> Thin:
    return lambda delta: delta


def _largest(mixture: Mixture, index: int) -> Thin:
    """The int(density·n) largest |Δ| of the tensor; of equal ones the first."""
    density = mixture.parts[index].density
    if density >= 1:
        return _all(mixture, index)
    count = int(np.prod(mixture.parts[index].tensor.shape))
    return _ranked(mixture, index, lambda delta: _LAST - _size(delta), 0, int(density * count))


def _crumbs(mixture: Mixture, index: int) -> Thin:
    """int(density·n) of the tensor's |Δ|: not the int(gamma·n) largest, nor the smallest."""
    part = mixture.parts[index]
    if part.density >= 1:
        return _all(mixture, index)
    count = int(np.prod(part.tensor.shape))
    kept = int(part.density * count)
    low = max(0, count - kept - int(part.gamma * count))
    return _ranked(mixture, index, _size, low, low + kept)


def _ranked(
    mixture: Mixture, index: int, key: Callable[[Piece], Piece], low: int, high: int
) -> Thin:
    """Keep the numbers whose place, sorted by `key` and then by where they stand, is from `low` to
    below `high`."""
    if low >= high:
        return np.zeros_like
    first, last = at_places(lambda: map(key, mixture.differences(index)), low, high - 1)
    below = dict([first, last])
    edges = sorted(below)

    def keep(delta: Piece) -> Piece:
        own = key(delta)
        mask = (own > edges[0]) & (own < edges[-1])
        for edge in edges:
            equal = np.flatnonzero(own == edge)
            places = below[edge] + np.arange(len(equal))
            below[edge] += len(equal)
            mask[equal] = (places >= low) & (places < high)
        return delta * mask

    return keep


_LAST = np.uint32(0x7FFFFFFF)


def _size(delta: Piece) -> Piece:
    """The bits of |Δ| as a float32: unsigned numbers that have the order of what they stand for."""
    return cast(Piece, np.abs(delta).astype(np.float32, copy=False).view(np.uint32))


def at_places(keys: Callable[[], Iterable[Piece]], *places: int) -> list[tuple[int, int]]:
    """The keys (32 bits) that stand at some places when all are sorted, each with the place of the
    first that equals it.

    Counted by the upper 16 bits, then by the lower ones of those that share the upper ones, so that
    memory does not depend on how many keys there are."""
    by_upper = np.zeros(1 << 16, np.int64)
    for piece in keys():
        by_upper += np.bincount(piece >> 16, minlength=1 << 16)
    ends = np.cumsum(by_upper)
    uppers = [int(np.searchsorted(ends, place, "right")) for place in places]
    by_lower = {upper: np.zeros(1 << 16, np.int64) for upper in uppers}
    for piece in keys():
        for upper, counts in by_lower.items():
            counts += np.bincount(piece[piece >> 16 == upper] & 0xFFFF, minlength=1 << 16)
    found = []
    for place, upper in zip(places, uppers, strict=True):
        before = int(ends[upper] - by_upper[upper])
        inner = np.cumsum(by_lower[upper])
        lower = int(np.searchsorted(inner, place - before, "right"))
        found.append((upper << 16 | lower, before + int(inner[lower] - by_lower[upper][lower])))
    return found


def _chance(mixture: Mixture, index: int) -> Thin:
    """Each number with the same probability."""
    density = np.float32(mixture.parts[index].density)
    return _drawn(mixture, index, lambda delta: density)


def _chance_by_size(mixture: Mixture, index: int) -> Thin:
    """Each number with a probability from density − epsilon to density + epsilon, by its rank in
    its row."""
    part = mixture.parts[index]
    if part.density <= part.epsilon or part.density + part.epsilon >= 1:
        raise ConfigError(
            f"density {part.density:g} with epsilon {part.epsilon:g} gives probabilities outside"
            " 0 to 1",
            "take a density further from 0 and 1, or a smaller epsilon",
        )
    row = part.tensor.shape[-1] if part.tensor.shape else 1
    steps = (
        np.linspace(part.density - part.epsilon, part.density + part.epsilon, row)
        if row > 1
        else [part.density]
    )
    by_rank = np.asarray(steps, np.float32)

    def probability(delta: Piece) -> Piece:
        rows = np.abs(delta).reshape(-1, row)
        chances = np.empty_like(rows, np.float32)
        np.put_along_axis(chances, np.argsort(rows, axis=1, kind="stable"), by_rank[None], axis=1)
        return cast(Piece, chances.reshape(-1))

    return _drawn(mixture, index, probability)


def _drawn(mixture: Mixture, index: int, probability: Callable[[Piece], Any]) -> Thin:
    def thinned(random: np.random.Generator, delta: Piece) -> tuple[Piece, Any]:
        chance = probability(delta)
        return delta * (random.random(len(delta), dtype=np.float32) < chance), chance

    factor = np.float32(1)
    if mixture.rescale == "l1":
        sums, random = np.zeros(2), mixture.random(index)
        for delta in mixture.differences(index):
            sums += (
                np.abs(delta).sum(dtype=np.float64),
                np.abs(thinned(random, delta)[0]).sum(dtype=np.float64),
            )
        factor = np.float32(sums[0] / sums[1] if sums[1] else 1)
    again = mixture.random(index)

    def keep(delta: Piece) -> Piece:
        kept, chance = thinned(again, delta)
        return cast(Piece, kept / chance if mixture.rescale == "paper" else kept * factor)

    return keep


class Method(NamedTuple):
    """How a method merges a tensor; which settings it reads besides each model's `weight`; whether
    it normalizes unless told otherwise; whether it needs a base; and how many models (without the
    base) it takes."""

    merge: Callable[[Mixture], Iterator[Piece]]
    reads: tuple[str, ...]
    normalize: bool = False
    needs_base: bool = True
    least: int = 1
    most: int | None = None


_TASK = ("weight", "lambda", "normalize")
METHODS: dict[str, Method] = {
    "linear": Method(_linear, ("weight", "normalize"), normalize=True, needs_base=False),
    "slerp": Method(_slerp, ("t",), most=1),
    "task_arithmetic": Method(_Task(_all), _TASK),
    "ties": Method(_Task(_largest, elect=True), (*_TASK, "density"), normalize=True),
    "dare_linear": Method(_Task(_chance), (*_TASK, "density", "rescale")),
    "dare_ties": Method(_Task(_chance, elect=True), (*_TASK, "density", "rescale")),
    "della": Method(
        _Task(_chance_by_size, elect=True),
        (*_TASK, "density", "epsilon", "rescale"),
        normalize=True,
    ),
    "della_linear": Method(_Task(_chance_by_size), (*_TASK, "density", "epsilon", "rescale")),
    "breadcrumbs": Method(_Task(_crumbs), (*_TASK, "density", "gamma")),
    "breadcrumbs_ties": Method(_Task(_crumbs, elect=True), (*_TASK, "density", "gamma")),
    "model_stock": Method(_stock, (), least=2),
    "passthrough": Method(_passthrough, ("scale",), needs_base=False, most=1),
}
