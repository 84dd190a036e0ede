"""A run from its first file to its last event: what every trainer does around `fit`.

A new run writes its directory only when model and data are known to be good; a resumed one takes weights, moments and
counters from its newest valid checkpoint. Whatever happens, the lock is let go and the log says how it ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from chuk_lib import __version__, runtime
from chuk_lib.config.settings import as_dict
from chuk_lib.errors import ChukError, ConfigError, DataError
from chuk_lib.events import Event, JsonLines, Sink, fan_out
from chuk_lib.models import load_trained_weights, provenance_of, save_pretrained, set_trainable
from chuk_lib.sinks import make_sinks
from chuk_lib.training.algorithm import Algorithm
from chuk_lib.training.by_size import count_weights, scaled_rate
from chuk_lib.training.checkpoints import Checkpoint, load_memory, load_optimizer_state, prune, save_checkpoint
from chuk_lib.training.completions_log import CompletionsLog
from chuk_lib.training.config import Config, TrainerConfig
from chuk_lib.training.engine import Hooks, Plan, Progress, fit
from chuk_lib.training.optimizers import ChukOptimizer, build_optimizer
from chuk_lib.training.run_dir import RunDir, default_run_path
from chuk_lib.training.schedulers import Schedule


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `reason` is done, stopped or early_stopping; `metrics` are the last ones logged."""

    run_dir: Path
    steps: int
    reason: str
    metrics: dict[str, Any]
    best: dict[str, Any] | None
    checkpoint: Path | None


@dataclass(frozen=True)
class Run:
    """An open run directory, where its settings came from, and the checkpoint to go on from, if any."""

    directory: RunDir
    origins: dict[str, str] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    allow_changed_data: bool = False
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Job:
    """What a trainer hands over: its algorithm with a plan of `steps`, and what to know about its data.

    `epoch(step)` says how many passes over the data `step` finished steps are; `data` and `notes` go into the log.
    `conversational` data makes a model that expects its chat template. `watched` is the evaluation metric that decides
    which checkpoint is the best. `chosen` names settings that the model's size decided, and says so in words.
    """

    algorithm: Algorithm
    name: str
    steps: int
    epoch: Callable[[int], float]
    fingerprint: str
    data: dict[str, Any]
    notes: Sequence[str] = ()
    evaluate: Callable[[int], dict[str, Any]] | None = None
    conversational: bool = False
    watched: str = "eval_loss"
    greater_is_better: bool = False
    chosen: Mapping[str, str] = field(default_factory=dict)


class Trainer(Protocol):
    """What `run_training` needs of a trainer."""

    model: nn.Module
    tokenizer: Any

    @property
    def config(self) -> TrainerConfig:
        """All settings, complete."""


def run_training(
    trainer: Trainer,
    job: Job,
    *,
    sinks: Sequence[Sink] = (),
    should_stop: Callable[[], bool] = lambda: False,
    open_run: Callable[[], Run] | None = None,
) -> RunResult:
    """Train to the end of the job's plan, in a new run directory or the one that `open_run` opens.

    Everything that can be wrong with settings, model or data is found before the directory is made.
    """
    config = trainer.config
    plan = replace(plan_of(config, job.steps), watched=job.watched, greater_is_better=job.greater_is_better)
    if plan.patience is not None and job.evaluate is None:
        raise ConfigError("early stopping has no validation data", "give --eval-data, or a folder with a valid file")
    optimizer = build_optimizer(config, job.algorithm.model)
    sinks = [*make_sinks(config.report_to), *sinks]
    run = open_run() if open_run else _new_run(job, config)
    try:
        progress = _restore(trainer.model, optimizer, run, job)
        kept = CompletionsLog(run.directory.completions, progress.step)
        if not run.directory.is_described:
            _describe(run, config, job)
        log = JsonLines.append_to(run.directory.events)
        try:
            return _train(trainer, job, optimizer, plan, progress, run, fan_out([log, *sinks]), should_stop, kept)
        finally:
            log.close()
            kept.close()
    finally:
        run.directory.close()


def complete(config: Config, model: nn.Module, adapted: bool, source: str) -> Config:
    """Fill in what was left open, so that `config.yaml` alone repeats the run."""
    rate = config.learning_rate or usual_rate(config, model, adapted)
    name = config.model or provenance_of(model).source
    return replace(config, learning_rate=rate, model=name, data=config.data or source)


def usual_rate(config: TrainerConfig, model: nn.Module, adapted: bool) -> float:
    """The learning rate when nobody gave one: the trainer's usual one, for the size of this model."""
    rate = config.usual_rates[adapted]
    return scaled_rate(rate, count_weights(model), config.rate_power) if config.rate_power else rate


def prepare_model(model: nn.Module, config: TrainerConfig) -> bool:
    """Choose what is trained: adapters when the model has them, else everything or the last blocks.

    Returns whether adapters are trained. Raises ConfigError when settings ask for what is not there.
    """
    adapted = provenance_of(model).lora is not None
    if config.lora is not None and not adapted:
        raise ConfigError("the settings ask for LoRA but the model has no adapters", "load it with `lora=config.lora`")
    set_trainable(model, lora=adapted, num_layers=None if adapted else config.num_layers)
    if config.gradient_checkpointing:
        from chuk_lib.models import checkpoint_layers

        checkpoint_layers(model, config.checkpointing_blocks)
    return adapted


@contextmanager
def step_math(config: TrainerConfig) -> Iterator[None]:
    """How steps compute on a CPU: fast, unless memory was asked for, which NumPy's speed costs. What is not finite
    makes no noise here: the engine looks at what comes out."""
    fast = nullcontext() if config.gradient_checkpointing else runtime.fast_math()
    with fast, np.errstate(all="ignore"):
        yield


def plan_of(config: TrainerConfig, steps: int) -> Plan:
    """The engine's plan."""
    warmup = config.warmup_steps or round(config.warmup_ratio * steps)
    schedule = Schedule(
        config.lr_scheduler_type, warmup, steps, config.num_cycles, config.lr_power, config.min_lr_rate,
        config.num_decay_steps, config.learning_rate or 0.0,
    )  # fmt: skip
    return Plan(
        steps=steps, seed=config.seed, schedule=schedule, max_grad_norm=config.max_grad_norm,
        log_interval=config.log_interval, eval_interval=config.eval_steps,
        checkpoint_interval=config.checkpoint_interval, patience=config.early_stopping_patience,
        threshold=config.early_stopping_threshold, compiled=not runtime.on_cpu(),
    )  # fmt: skip


def _new_run(job: Job, config: TrainerConfig) -> Run:
    return Run(RunDir.create(Path(config.output or default_run_path(job.name, str(config.model)))))


def _restore(model: nn.Module, optimizer: ChukOptimizer, run: Run, job: Job) -> Progress:
    if run.checkpoint is None:
        return Progress()
    state = run.checkpoint.state
    if state.get("fingerprint") != job.fingerprint and not run.allow_changed_data:
        raise DataError(
            f"the training data is not what `{run.directory.path}` was trained on so far",
            "put the old data back, or go on with --allow-changed-data",
        )
    load_trained_weights(model, run.checkpoint.folder)
    optimizer.restore(load_optimizer_state(run.checkpoint))
    job.algorithm.recall(load_memory(run.checkpoint))
    return Progress.from_state(run.checkpoint.step, state)


def _describe(run: Run, config: TrainerConfig, job: Job) -> None:
    try:
        run.directory.write_json("run.json", {"algorithm": job.name, "chuk": __version__})
        origins = run.origins or dict.fromkeys(as_dict(config), "given in code")
        run.directory.write_json("origins.json", {**origins, **job.chosen})
        run.directory.write_json("environment.json", runtime.describe())
        run.directory.write_yaml("config.yaml", as_dict(config), job.chosen)
    except OSError:
        run.directory.discard()
        raise


def _train(
    trainer: Trainer,
    job: Job,
    optimizer: ChukOptimizer,
    plan: Plan,
    progress: Progress,
    run: Run,
    emit: Sink,
    should_stop: Callable[[], bool],
    kept: CompletionsLog,
) -> RunResult:
    began, last = time.perf_counter(), _Last(run.checkpoint)
    watched = fan_out([emit, last])
    emit(Event("started", progress.step, _started(trainer, job, run)))
    for text in job.notes:
        emit(Event("note", progress.step, {"text": text}))
    for text in (*run.warnings, *_slow_blas()):
        emit(Event("warning", progress.step, {"text": text}))
    hooks = Hooks(
        emit=watched, save=lambda now, best: _save(trainer, job, optimizer, run, now, best, watched),
        evaluate=job.evaluate, should_stop=should_stop, between_steps=runtime.adapt_threads,
        extra_metrics=lambda step: {"epoch": round(job.epoch(step), 4), **_memory()}, keep_completions=kept.add,
    )  # fmt: skip
    try:
        with step_math(trainer.config):
            reason = fit(job.algorithm, optimizer, plan, progress, hooks)
    except BaseException as error:
        text = error.message if isinstance(error, ChukError) else type(error).__name__
        emit(Event("finished", progress.step, {"reason": "failed", "error": text, "steps": progress.step}))
        raise
    ended = {"reason": reason, "steps": progress.step, "seconds": round(time.perf_counter() - began, 3)}
    details = {"best": progress.best, "checkpoint": last.checkpoint, "metrics": last.metrics}
    emit(Event("finished", progress.step, ended | details))
    checkpoint = Path(last.checkpoint) if last.checkpoint else None
    return RunResult(run.directory.path, progress.step, reason, last.metrics, progress.best, checkpoint)


class _Last:
    """Remembers the newest metrics and checkpoint for the result."""

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        self.metrics: dict[str, Any] = {}
        self.checkpoint = str(checkpoint.folder) if checkpoint else None

    def __call__(self, event: Event) -> None:
        if event.kind in ("step", "eval"):
            self.metrics |= event.data
        elif event.kind == "saved":
            self.checkpoint = event.data["path"]


def _save(
    trainer: Trainer, job: Job, optimizer: ChukOptimizer, run: Run, progress: Progress, best: bool, emit: Sink
) -> None:
    state = progress.to_state() | {"fingerprint": job.fingerprint, "algorithm": job.name}
    state["conversational"] = job.conversational
    folder = save_checkpoint(
        run.directory, progress.step, lambda folder: save_pretrained(trainer.model, trainer.tokenizer, folder),
        optimizer.state, state, job.algorithm.memory(),
    )  # fmt: skip
    best_name = f"step_{progress.best['step']:06d}" if progress.best else None
    if best_name:  # each time: a kill can come between a checkpoint and its mark
        run.directory.point("best", run.directory.checkpoints / best_name)
    prune(run.directory.path, trainer.config.keep_checkpoints, best_name)
    emit(Event("saved", progress.step, {"path": str(folder), "best": best}))


def _started(trainer: Trainer, job: Job, run: Run) -> dict[str, Any]:
    model, config = trainer.model, trainer.config
    count = lambda tree: sum(leaf.size for _, leaf in tree_flatten(tree))  # noqa: E731
    return {
        "algorithm": job.name, "model": config.model, "data": config.data, "run_dir": str(run.directory.path),
        "steps": job.steps, "start_step": run.checkpoint.step if run.checkpoint else 0,
        "epochs": config.num_epochs, "parameters": count(model.parameters()),
        "trainable_parameters": count(model.trainable_parameters()), "config": as_dict(config),
        "device": runtime.prepare().device, "dtype": _dtypes(model), "environment": runtime.describe(), **job.data,
    }  # fmt: skip


def _dtypes(model: nn.Module) -> str:
    kinds = {str(leaf.dtype).removeprefix("mlx.core.") for _, leaf in tree_flatten(model.trainable_parameters())}
    return ", ".join(sorted(kinds))


def _slow_blas() -> list[str]:
    blas = runtime.prepare().blas
    if blas.fast or not runtime.on_cpu():
        return []
    return [f"matrix products are slow: {blas.reason or blas.name}; `chuk doctor` says how to mend it"]


def _memory() -> dict[str, int]:
    use = runtime.memory()
    return {"memory_bytes": use.active, "peak_memory_bytes": use.peak}
