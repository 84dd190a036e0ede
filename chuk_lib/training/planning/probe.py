"""Measure what a training step needs without running one: real micro-steps on the last blocks of
the real model.

A decoder repeats its block, so what a step keeps grows by the same amount with each block and each
row. Two depths and two batch sizes of the true row length give those amounts (`estimate` extends
them). The steps are the engine's own, with a learning rate of 0: weights stay as they are, bit for
bit."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from chuk_lib.data.types import Batch
from chuk_lib.training.algorithm import Algorithm, Update
from chuk_lib.training.config import TrainerConfig
from chuk_lib.training.optimizers import ChukOptimizer, build_optimizer
from chuk_lib.training.run import plan_of, step_math
from chuk_lib.training.updater import Updater

DEPTHS = (2, 3)
"""Blocks of the measured models. One block is no good measure: the evaluator runs further ahead
than that."""

_SHORT = 8
_CLEAR = 1.5  # work this much above that of a very short row is activations, not gradients
_LEAST_TOKENS = 512
_MOST_TOKENS = 4096


@dataclass(frozen=True)
class MeasuredUpdate:
    """One update on `blocks` blocks and `rows` rows. Bytes above what is resident before it: `work`
    until the gradients are there, `peak` with the optimizer's part."""

    blocks: int
    rows: int
    work: int
    peak: int
    seconds: float


@dataclass(frozen=True)
class Probe:
    """Measurements at one row length: `short` ones of very short rows (one for each depth), `full`
    ones of true rows.

    `reach` is how many blocks a backward pass goes through.
    """

    width: int
    reach: int
    short: Sequence[MeasuredUpdate]
    full: Sequence[MeasuredUpdate]


def measure_steps(
    algorithm: Algorithm,
    config: TrainerConfig,
    batch: Batch,
    rows: int,
    to_update: Callable[[list[Batch]], Update],
) -> Probe:
    """Measure steps towards `rows` rows like those of `batch`. The model keeps its weights and its
    mode."""
    model = algorithm.model
    reach = max(1, _reach(model))
    run = _Runner(algorithm, config, batch, to_update)
    was_training = model.training
    model.train()
    try:
        depths = DEPTHS if reach > DEPTHS[-1] else (reach,)
        try:
            short = [run(depth, 1, _SHORT) for depth in depths]
        except (IndexError, KeyError, ValueError):  # a model whose blocks cannot be taken away
            depths = (reach,)
            short = [run(reach, 1, _SHORT)]
        full = [*_at_depth(run, short[0], rows)]
        full += [run(depth, done.rows) for depth in depths[1:] for done in full]
    finally:
        model.train(was_training)
        mx.clear_cache()
    return Probe(batch.input_ids.shape[1], reach, short, full)


def _at_depth(run: _Runner, short: MeasuredUpdate, rows: int) -> Iterator[MeasuredUpdate]:
    """Two batch sizes at one depth: enough tokens for the code paths of real steps, and for
    activations, not gradients, to make the peak; where the true number of rows is not more than
    that, it is one of the two."""
    small = max(1, min(rows // 2, -(-_LEAST_TOKENS // run.width)))
    done = run(short.blocks, small)
    while (
        done.work < _CLEAR * short.work
        and 4 * small <= rows
        and 2 * small * run.width <= _MOST_TOKENS
    ):
        small *= 2
        done = run(short.blocks, small)
    yield done
    if rows > 1:
        yield run(short.blocks, rows if rows <= 3 * small else 2 * small)


class _Runner:
    """Runs one update on some blocks and rows, and reads the peak."""

    def __init__(
        self,
        algorithm: Algorithm,
        config: TrainerConfig,
        batch: Batch,
        to_update: Callable[[list[Batch]], Update],
    ) -> None:
        self._algorithm = algorithm
        self._config = config
        self._batch = batch
        self._to_update = to_update
        self._compiled = plan_of(config, 1).compiled
        self.width = batch.input_ids.shape[1]

    def __call__(self, blocks: int, rows: int, width: int | None = None) -> MeasuredUpdate:
        model = self._algorithm.model
        with _last_blocks(model, blocks):
            optimizer = _Watched(build_optimizer(self._config, model))
            update = self._to_update([resized(self._batch, rows, width)])
            mx.eval(model.parameters(), optimizer.state, update.micro_batches)
            gc.collect()
            mx.clear_cache()
            mx.reset_peak_memory()
            resident, began = mx.get_active_memory(), time.perf_counter()
            with step_math(self._config):
                Updater(self._algorithm, optimizer, self._config.max_grad_norm, self._compiled)(
                    update, 0.0
                )
            seconds = time.perf_counter() - began
            return MeasuredUpdate(
                blocks, rows, optimizer.work - resident, mx.get_peak_memory() - resident, seconds
            )


class _Watched(ChukOptimizer):
    """An optimizer that notes the peak at the moment its own part begins."""

    def __init__(self, real: ChukOptimizer) -> None:
        self._real = real
        self.work = 0

    @property
    def state(self) -> Any:
        """The real optimizer's state."""
        return self._real.state

    def update(self, model: nn.Module, gradients: Any, learning_rate: mx.array) -> None:
        """Note the peak, then do the real update."""
        self.work = mx.get_peak_memory()
        self._real.update(model, gradients, learning_rate)


@contextmanager
def _last_blocks(model: nn.Module, count: int) -> Iterator[None]:
    """The model with its last `count` blocks only. Raises ValueError when its list of blocks is a
    copy."""
    blocks = model.layers
    saved = list(blocks)
    if count < len(saved):
        del blocks[: len(saved) - count]
    try:
        if len(model.layers) != min(count, len(saved)):
            raise ValueError("the blocks of this model cannot be taken away")
        yield
    finally:
        blocks[:] = saved


def resized(batch: Batch, rows: int, width: int | None = None) -> Batch:
    """A batch of `rows` rows, the given ones over and over, cut at `width` tokens; at least one
    token is learned."""
    take = np.arange(rows) % len(batch.lengths)
    mask = batch.loss_mask[take, :width].copy()
    if not mask.any():
        mask[:, -1] = True
    segments = None if batch.segment_ids is None else batch.segment_ids[take, :width]
    ids = batch.input_ids[take, :width]
    lengths = np.minimum(batch.lengths[take], ids.shape[1])
    return replace(batch, input_ids=ids, loss_mask=mask, lengths=lengths, segment_ids=segments)


def _reach(model: nn.Module) -> int:
    """Blocks from the first that is trained to the last; all of them when the embedding is
    trained."""
    names = [name for name, _ in tree_flatten(model.trainable_parameters())]
    if any("embed" in name or ".wte" in name for name in names):
        return len(model.layers)
    trained = [bool(tree_flatten(block.trainable_parameters())) for block in model.layers]
    return len(trained) - trained.index(True) if any(trained) else 0
