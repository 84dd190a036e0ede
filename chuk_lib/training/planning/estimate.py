"""The memory and the time of training steps, from what `chuk_lib.training.planning.probe` measured.

    peak   = weights + optimizer + held gradients + max(work, update)
    work   = a + b·blocks + rows·(c + d·blocks)      activations and gradients of one micro-batch
    update = e + f·blocks                            clipping and the optimizer, whatever the batch
    outside MLX: probabilities that the tiled output head keeps in NumPy's memory on a CPU
    time   = rows · rate · (head + blocks)           rate: seconds per row and byte of weights, the
                                                     best measured

The amounts a … f come from measured steps at the true row length, so they know the architecture,
adapters, quantization, checkpointing and how far MLX's evaluator runs ahead. Held gradients: with
accumulation the sum is kept beside a new micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import mlx.nn as nn
from mlx.utils import tree_flatten

from chuk_lib import runtime
from chuk_lib.models.heads import output_head
from chuk_lib.training.config import TrainerConfig
from chuk_lib.training.optimizers import build_optimizer
from chuk_lib.training.planning.probe import MeasuredUpdate, Probe
from chuk_lib.training.utils import fused_head as tiles
from chuk_lib.training.utils.log_probs import fused_head


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a step. `outside` is NumPy's part of the head, the others are MLX's."""

    weights: int
    optimizer: int
    gradients: int
    logits: int
    activations: int
    outside: int = 0

    @property
    def mlx_peak(self) -> int:
        """What `mx.get_peak_memory` would say."""
        return self.weights + self.optimizer + self.gradients + self.logits + self.activations

    @property
    def total(self) -> int:
        """Everything but the interpreter and its libraries."""
        return self.mlx_peak + self.outside

    def blended(self, other: MemoryEstimate, share: float) -> MemoryEstimate:
        """`share` of this and the rest of `other`, part by part."""
        mine, theirs = asdict(self), asdict(other)
        return MemoryEstimate(
            **{name: round(share * mine[name] + (1 - share) * theirs[name]) for name in mine}
        )

    def as_dict(self) -> dict[str, int]:
        """The parts and their sums."""
        return asdict(self) | {"mlx_peak": self.mlx_peak, "total": self.total}


@dataclass(frozen=True)
class Resident:
    """Bytes that stay between steps, of one set of gradients, and of a block and the head;
    `vocabulary` is the head's when it runs in tiles, `in_numpy` whether they are NumPy's."""

    weights: int
    optimizer: int
    gradients: int
    block_size: int
    head_size: int
    vocabulary: int | None
    head_trained: bool
    in_numpy: bool


def resident_of(model: nn.Module, config: TrainerConfig) -> Resident:
    """Read off the model and a freshly made optimizer; nothing is computed."""
    head = output_head(model)
    tiled = fused_head(head, model)
    return Resident(
        weights=_bytes(model.parameters()),
        optimizer=_bytes(build_optimizer(config, model).state),
        gradients=_bytes(model.trainable_parameters()),
        block_size=_bytes(model.layers[-1].parameters()),
        head_size=_bytes(head.module(model).parameters()) if head.split else 0,
        vocabulary=tiled.product.vocabulary if tiled else None,
        head_trained=bool(tiled and tiled.product.trained),
        in_numpy=runtime.on_cpu() and not config.gradient_checkpointing,
    )


@dataclass(frozen=True)
class StepModel:
    """Memory and time of a step as functions of the rows in a micro-batch."""

    resident: Resident
    probe: Probe

    def memory(self, rows: int, targets: int, accumulation: int = 1) -> MemoryEstimate:
        """The peak with `rows` rows and `targets` learned tokens in the largest micro-batch."""
        held = self.resident.gradients * min(accumulation - 1, 1)
        step = held + round(max(self._work(rows), self._update()))
        inside, outside = _head_bytes(self.resident, targets)
        gradients = min(step, held + self.resident.gradients)
        logits = min(step - gradients, inside)
        return MemoryEstimate(
            self.resident.weights,
            self.resident.optimizer,
            gradients,
            logits,
            step - gradients - logits,
            outside,
        )

    def seconds(self, rows: float) -> float:
        """Time of a micro-step of `rows` full rows, by the weights that it passes through."""
        rates = [
            point.seconds / point.rows / self._passed(point.blocks) for point in self.probe.full
        ]
        return rows * min(rates) * self._passed(self.probe.reach)

    def _passed(self, blocks: int) -> float:
        """Bytes of the weights of the head and of `blocks` blocks."""
        return self.resident.head_size + blocks * self.resident.block_size

    def _work(self, rows: int) -> float:
        low, high = _depths(self.probe.full)
        if not high:
            return _along_rows(low, rows)
        return _extended(
            low[0].blocks,
            _along_rows(low, rows),
            high[0].blocks,
            _along_rows(high, rows),
            self.probe.reach,
        )

    def _update(self) -> float:
        first, last = self.probe.short[0], self.probe.short[-1]
        return _extended(first.blocks, first.peak, last.blocks, last.peak, self.probe.reach)


def _depths(points: Sequence[MeasuredUpdate]) -> tuple[list[MeasuredUpdate], list[MeasuredUpdate]]:
    """The measurements of the smaller depth and of the larger one (none when only one depth was
    measured)."""
    least = min(point.blocks for point in points)
    return [p for p in points if p.blocks == least], [p for p in points if p.blocks != least]


def _along_rows(points: Sequence[MeasuredUpdate], rows: int) -> float:
    first, last = points[0], points[-1]
    return _extended(first.rows, first.work, last.rows, last.work, rows)


def _extended(x0: float, y0: float, x1: float, y1: float, x: float) -> float:
    """The line through two points at `x`, never falling."""
    return y0 if x1 == x0 else y0 + max(0.0, y1 - y0) * (x - x0) / (x1 - x0)


def _head_bytes(resident: Resident, targets: int) -> tuple[int, int]:
    """The tiled head's logits inside MLX, and its probabilities in NumPy's memory; 0 for a head
    that is not tiled.

    A trained head on a CPU keeps all probabilities for its backward pass while they are small.
    """
    vocabulary, trained = resident.vocabulary, resident.head_trained
    if vocabulary is None:
        return 0, 0
    tile = 4 * vocabulary * min(targets, tiles.tile_rows(vocabulary))
    if not resident.in_numpy:
        return tile, 0
    whole = 4 * vocabulary * targets
    return tile, whole if trained and whole <= tiles.KEEP_BYTES else tile


def _bytes(tree: object) -> int:
    return sum(leaf.nbytes for _, leaf in tree_flatten(tree))
