"""The one loop. Every trainer is an `Algorithm` (where updates come from, and a loss) run by `fit`.

A step owns its randomness (seeded from (seed, step)) and its batches are addressed by step, so a
run that resumes at step k does bit for bit what an uninterrupted one does. What an update is stands
in `updater`."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from chuk_lib import runtime
from chuk_lib.errors import TrainingError
from chuk_lib.events import Event, Sink
from chuk_lib.models.randomness import evaluating
from chuk_lib.training.algorithm import Algorithm, Arrays, Report
from chuk_lib.training.optimizers import ChukOptimizer
from chuk_lib.training.schedulers import Schedule
from chuk_lib.training.signs import Signs
from chuk_lib.training.updater import Learner, Updater
from chuk_lib.training.utils.gradient_utils import add_up
from chuk_lib.utils.best import improves


@dataclass(frozen=True)
class Cadence:
    """How far to go and when to look up. Steps count from 0; cadences fire after a step is
    finished. The best checkpoint is the one with the least (or greatest) value of the evaluation
    metric `watched`. The schedule counts updates: step s makes those from s·`updates_per_step` on.
    """

    steps: int
    seed: int
    schedule: Schedule
    max_grad_norm: float = 1.0
    log_interval: int = 10
    eval_interval: int | None = None
    checkpoint_interval: int = 500
    patience: int | None = None
    threshold: float = 0.0
    compiled: bool = False
    watched: str = "eval_loss"
    greater_is_better: bool = False
    updates_per_step: int = 1

    def learning_rate(self, step: int, number: int) -> float:
        """The rate of update `number` of a step, both 0-based; updates beyond those of a step have
        that of its last."""
        return self.schedule.learning_rate(
            step * self.updates_per_step + min(number, self.updates_per_step - 1)
        )


@dataclass
class Progress:
    """What a run remembers between steps besides weights and moments; a checkpoint keeps it.

    `best` is {"step", and the watched metric, such as "eval_loss"}; `stale` counts evaluations
    since then; `counts` are sums over the run."""

    step: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    stale: int = 0

    def to_state(self) -> dict[str, Any]:
        """As plain data for `state.json`; the step itself is the checkpoint's."""
        return {"counts": self.counts, "best": self.best, "stale": self.stale}

    @staticmethod
    def from_state(step: int, state: dict[str, Any]) -> Progress:
        """Read what `to_state` wrote."""
        return Progress(step, dict(state["counts"]), state["best"], int(state["stale"]))


@dataclass(frozen=True)
class Hooks:
    """What the engine calls between steps. `save(progress, is_best)` writes a checkpoint;
    `evaluate(step)` measures and may add a `sample`; `should_stop()` is asked after every step;
    `between_steps()` is for the runtime; `overdue()` says that the last checkpoint is too long ago;
    `keep_completions(step, rows)` stores what the model wrote in a step; `reserve(micro_batch)`
    makes room for one."""

    emit: Sink
    save: Callable[[Progress, bool], None]
    evaluate: Callable[[int], dict[str, Any]] | None = None
    should_stop: Callable[[], bool] = lambda: False
    between_steps: Callable[[], object] = lambda: None
    extra_metrics: Callable[[int], dict[str, float]] = lambda step: {}
    keep_completions: Callable[[int, Sequence[Mapping[str, Any]]], None] = lambda step, rows: None
    reserve: Callable[[Arrays], None] = lambda micro_batch: None
    overdue: Callable[[], bool] = lambda: False


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A 64-bit seed for step `step`: a hash, so that neighbouring steps and seeds share nothing. Of
    several processes each has other dropout: their rows are others."""
    words = f"{seed}:{step}:{rank}" if rank else f"{seed}:{step}"
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big")


class _Window:
    """Sums since the last log record."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.reported: dict[str, list[float]] = {}
        self.completions: Sequence[Mapping[str, Any]] = ()
        self.steps = 0
        self.seconds = 0.0
        self.waited = runtime.this_world().waited

    def add(self, sums: dict[str, float], counts: dict[str, int]) -> None:
        for name, value in sums.items():
            # Sums of the window are divided by its weight once, when it is recorded: a mean of
            # means would weigh short batches too much. The gradient norm is the last update's.
            self.sums[name] = value if name == "grad_norm" else self.sums.get(name, 0.0) + value
        add_up(self.counts, counts)

    def add_report(self, report: Report) -> None:
        for name, value in report.metrics.items():
            if not math.isnan(value):
                self.reported.setdefault(name, []).append(float(value))
        self.completions = _spread(report.completions, report.shown) or self.completions

    def record(self) -> dict[str, Any]:
        """Means over the window: loss and metrics by weight, rates by time, what steps reported by
        step; grad_norm is the last one."""
        sums = dict(self.sums)
        weight, grad_norm = max(sums.pop("weight", 0.0), 1e-9), sums.pop("grad_norm", 0.0)
        metrics = {"loss": sums.pop("total", 0.0) / weight, "grad_norm": grad_norm}
        metrics |= {name: value / weight for name, value in sums.items()}
        metrics |= {name: sum(values) / len(values) for name, values in self.reported.items()}
        return metrics | {name: float(f"{value:.6g}") for name, value in self._rates().items()}

    def _rates(self) -> dict[str, float]:
        """The pace, that of tokens where there are any, and of several processes the share of time
        that this one spends on the others."""
        rates, world = {"seconds_per_step": self.seconds / max(self.steps, 1)}, runtime.this_world()
        if world.size > 1:
            rates["communication_share"] = (world.waited - self.waited) / max(self.seconds, 1e-9)
        if self.counts and "tokens" not in self.counts:
            return rates
        slots, seconds = self.counts.get("slots", 0), max(self.seconds, 1e-9)
        return rates | {
            "tokens_per_second": self.counts.get("tokens", 0) / seconds,
            "trained_tokens_per_second": self.counts.get("trained_tokens", 0) / seconds,
            "padding": 1 - self.counts.get("tokens", 0) / slots if slots else 0.0,
        }


def _spread(rows: Sequence[Mapping[str, Any]], most: int) -> Sequence[Mapping[str, Any]]:
    """At most so many of the rows, evenly over all of them: those of one prompt stand together."""
    return [rows[index * len(rows) // most] for index in range(most)] if len(rows) > most else rows


def fit(
    algorithm: Algorithm,
    optimizer: ChukOptimizer | Learner,
    plan: Cadence,
    progress: Progress,
    hooks: Hooks,
) -> str:
    """Train from `progress.step` to `plan.steps`. Returns why it ended: done, stopped or
    early_stopping.

    `progress` is updated in place. The last finished step is always saved. Raises TrainingError
    when a loss or gradient is not finite, after saving the last good state."""
    update = (
        optimizer
        if isinstance(optimizer, Learner)
        else Updater(algorithm, optimizer, plan.max_grad_norm, plan.compiled, hooks.reserve)
    )
    window, saved_at, reason, world = _Window(), progress.step, "done", runtime.this_world()
    # From the counts, so that a resumed run does not repeat what it has warned of.
    signs = Signs(progress.counts)
    if _is_stale(plan, progress):  # killed between the last checkpoint and the word that it is over
        algorithm.model.eval()
        return "early_stopping"
    algorithm.model.train()
    while progress.step < plan.steps:
        began = time.perf_counter()
        learning_rate = _run_step(algorithm, update, plan, progress, window, hooks, saved_at, signs)
        # Evaluation, saving and drawing are not in a step's time: the pace is that of training.
        window.seconds += time.perf_counter() - began
        hooks.emit(Event("moved", progress.step))
        if progress.step % plan.log_interval == 0 or progress.step in (1, plan.steps):
            hooks.emit(
                Event("step", progress.step, _record(window, learning_rate, progress, hooks))
            )
            if window.completions:
                hooks.emit(
                    Event(
                        "completions",
                        progress.step,
                        {"rows": [dict(row) for row in window.completions]},
                    )
                )
            window = _Window()
        # The order matters: evaluation decides whether this state is the best, and the checkpoint
        # that follows holds that decision. A kill between the two repeats the evaluation.
        improved = _evaluate_if_due(algorithm, plan, progress, hooks)
        stale = _is_stale(plan, progress)
        stop = hooks.should_stop()
        last = stale or stop or progress.step == plan.steps
        due = improved or progress.step % plan.checkpoint_interval == 0
        stop, overdue = world.votes(stop, not (last or due) and hooks.overdue())
        last = last or stop
        if last or due or overdue:
            hooks.save(progress, improved)
            saved_at = progress.step
        if last and progress.step < plan.steps:
            reason = "early_stopping" if stale else "stopped"
            break
        hooks.between_steps()
    for warning in signs.sum_up(progress.step):
        hooks.emit(Event("warning", progress.step, warning))
    algorithm.model.eval()
    return reason


def _is_stale(plan: Cadence, progress: Progress) -> bool:
    return plan.patience is not None and progress.stale >= plan.patience


def _run_step(
    algorithm: Algorithm,
    update: Updater | Learner,
    plan: Cadence,
    progress: Progress,
    window: _Window,
    hooks: Hooks,
    saved_at: int,
    signs: Signs,
) -> float:
    # Dropout and sampling of a step depend on (seed, step) alone, whatever was drawn before: that
    # is what makes a resumed run equal to one that was never stopped.
    mx.random.seed(step_seed(plan.seed, progress.step, runtime.this_world().rank))
    learning_rate = plan.learning_rate(progress.step, 0)
    counts: dict[str, int] = {}
    norms: list[float] = []
    for number, part in enumerate(algorithm.updates(progress.step)):
        learning_rate = plan.learning_rate(progress.step, number)
        try:
            sums = update(part, learning_rate)
        except FloatingPointError as error:
            raise _bad_numbers(
                algorithm, error, progress, hooks, saved_at, updates_done=number
            ) from None
        window.add(sums, part.counts)
        norms.append(sums.get("grad_norm", 0.0))
        add_up(counts, part.counts)
    # Counts are added and the step number moves only after all its updates are applied: whatever
    # raises above leaves `progress` at the last whole step.
    report = algorithm.finish(progress.step)
    add_up(progress.counts, counts)
    progress.step += 1
    window.steps += 1
    window.add_report(report)
    for text in report.warnings:
        hooks.emit(Event("warning", progress.step, {"text": text}))
    for warning in signs.see(report.metrics, norms):
        hooks.emit(Event("warning", progress.step, warning))
    if report.completions:
        hooks.keep_completions(progress.step, report.completions)
    return learning_rate


def _record(
    window: _Window, learning_rate: float, progress: Progress, hooks: Hooks
) -> dict[str, Any]:
    record = window.record() | {
        "learning_rate": learning_rate,
        **_run_counts(progress.counts),
    }
    return record | hooks.extra_metrics(progress.step)


def _run_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Sums over the run: of tokens, or of whatever else an algorithm without them counts."""
    if not counts or "tokens" in counts:
        return {"num_tokens": counts.get("tokens", 0)}
    return {f"num_{name}": value for name, value in counts.items() if "/" not in name}


def _evaluate_if_due(algorithm: Algorithm, plan: Cadence, progress: Progress, hooks: Hooks) -> bool:
    """Evaluate when the plan says so; returns whether this was the best so far."""
    # Unset, evaluations go with checkpoints, so that `best` has weights to point at.
    interval = plan.eval_interval or plan.checkpoint_interval
    due = progress.step % interval == 0 or progress.step == plan.steps
    if hooks.evaluate is None or not due:
        return False
    began = time.perf_counter()
    hooks.emit(Event("moved", progress.step, {"doing": "evaluating"}))
    with evaluating(algorithm.model):
        metrics = dict(hooks.evaluate(progress.step))
    runtime.release_cache()
    sample = metrics.pop("sample", None)
    best = (progress.best or {}).get(plan.watched)
    improved = improves(
        metrics[plan.watched], best, greater=plan.greater_is_better, threshold=plan.threshold
    )
    progress.stale = 0 if improved else progress.stale + 1
    if improved:
        progress.best = {"step": progress.step, plan.watched: metrics[plan.watched]}
    data = metrics | {"best": improved, "seconds": round(time.perf_counter() - began, 3)}
    hooks.emit(Event("eval", progress.step, data))
    if sample is not None:
        hooks.emit(Event("sample", progress.step, sample))
    return improved


def _bad_numbers(
    algorithm: Algorithm,
    error: FloatingPointError,
    progress: Progress,
    hooks: Hooks,
    saved_at: int,
    updates_done: int,
) -> TrainingError:
    """The error that ends the run. The state is saved when it is that of a whole step: after the
    first update of several it is not."""
    if updates_done == 0 and saved_at != progress.step:
        hooks.save(progress, False)
        saved_at = progress.step
    kept = f"the state after step {saved_at} is saved" if saved_at else "nothing was trained"
    done = (
        "no weight was changed"
        if updates_done == 0
        else f"update {updates_done + 1} of the step was not applied"
    )
    return TrainingError(
        f"step {progress.step + 1} is not finite ({error}) on {algorithm.where(progress.step)};"
        f" {done}, {kept}",
        f"{_range_words(algorithm.model)}lower the learning rate, set max_grad_norm, or look at"
        " these rows",
    )


def _range_words(model: nn.Module) -> str:
    """The first thing to try where numbers between layers are float16."""
    if not any(leaf.dtype == mx.float16 for _, leaf in tree_flatten(model.parameters())):
        return ""
    return "float16 ends at 65,504: dtype=bfloat16 or dtype=float32 goes further; or "
