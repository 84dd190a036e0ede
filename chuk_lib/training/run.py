"""A run from its first file to its last event: what every trainer does around `fit`.

A new run writes its directory only when model and data are known to be good; a resumed one takes weights, moments and
counters from its newest valid checkpoint. Whatever happens, the lock is let go and the log says how it ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import mlx.nn as nn
from mlx.utils import tree_flatten

from chuk_lib import __version__, runtime
from chuk_lib.config.settings import as_dict
from chuk_lib.errors import ChukError, ConfigError
from chuk_lib.events import Event, JsonLines, Sink, fan_out
from chuk_lib.models import load_trained_weights, provenance_of, save_pretrained, set_trainable
from chuk_lib.models.randomness import switch_dropout_off
from chuk_lib.sinks import make_sinks
from chuk_lib.training.algorithm import Algorithm
from chuk_lib.training.by_size import count_weights, scaled_rate
from chuk_lib.training.checkpoints import Checkpoint, load_memory, load_optimizer_state, prune, save_checkpoint
from chuk_lib.training.completions_log import CompletionsLog
from chuk_lib.training.config import Config, TrainerConfig
from chuk_lib.training.engine import Hooks, Plan, Progress, fit
from chuk_lib.training.fits import loss_words
from chuk_lib.training.identity import Inputs, changed_settings, compare, inputs_of, rows_around
from chuk_lib.training.optimizers import ChukOptimizer, build_optimizer
from chuk_lib.training.planning.footprint import StepLimit
from chuk_lib.training.run_dir import RunDir, default_run_path
from chuk_lib.training.schedulers import Schedule, warmup_of


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `reason` is done, stopped or early_stopping; `metrics` are the last ones logged, `left_out`
    says which rows were cut or left out."""

    run_dir: Path
    steps: int
    reason: str
    metrics: dict[str, Any]
    best: dict[str, Any] | None
    checkpoint: Path | None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """An open run directory, where its settings came from, and the checkpoint to go on from, if any; with that the
    names of settings that are changed on the way, and whether anything else may have changed."""

    directory: RunDir
    origins: dict[str, str] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    allow_changed: bool = False
    warnings: Sequence[str] = ()
    changes: Sequence[str] = ()


@dataclass(frozen=True)
class Job:
    """What a trainer hands over: its algorithm with a plan of `steps`, and what to know about its data.

    `epoch(step)` says how many passes over the data `step` finished steps are; `data` and `notes` go into the log.
    `conversational` data makes a model that expects its chat template. `watched` is the evaluation metric that decides
    which checkpoint is the best. `updates_per_step` is what the learning rate's schedule counts: 1 where it moves once
    a step, whatever updates that makes. `rows(step)` are the rows of the data that a step takes. `chosen` names
    settings that the model's size decided, and says so in words.
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
    updates_per_step: int = 1
    rows: Callable[[int], Sequence[int]] | None = None
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
    plan = plan_of(config, job.steps, job.updates_per_step)
    plan = replace(plan, watched=job.watched, greater_is_better=job.greater_is_better)
    check_evaluation(config, job.evaluate is not None)
    optimizer = build_optimizer(config, job.algorithm.model)
    sinks = [*make_sinks(config.report_to), *map(_in_users_world, sinks)]
    inputs = inputs_of(config, provenance_of(trainer.model), job.fingerprint)
    run = open_run() if open_run else _new_run(job, config)
    try:
        run = _compared(run, job, config, inputs)
        progress = _restore(trainer.model, optimizer, run, job)
        kept = CompletionsLog(run.directory.completions, progress.step)
        if not run.directory.is_described:
            _describe(run, config, job)
        log = JsonLines.append_to(run.directory.events)
        try:
            emit = fan_out([log, *sinks])
            return _train(trainer, job, inputs, optimizer, plan, progress, run, emit, should_stop, kept)
        finally:
            log.close()
            kept.close()
    finally:
        run.directory.close()


def _in_users_world(sink: Sink) -> Sink:
    def see(event: Event) -> None:
        with runtime.users_own():
            sink(event)

    see.__name__ = getattr(sink, "__name__", type(sink).__name__)  # what a message calls it
    return see


def check_evaluation(config: TrainerConfig, has_data: bool) -> None:
    """Raise ConfigError where early stopping would have nothing to measure."""
    if config.early_stopping_patience is not None and not has_data:
        raise ConfigError("early stopping has no validation data", "give --eval-data, or a folder with a valid file")


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
    if _without_dropout(config):
        switch_dropout_off(model)
    set_trainable(model, lora=adapted, num_layers=None if adapted else config.num_layers)
    if config.gradient_checkpointing:
        from chuk_lib.models import checkpoint_layers

        checkpoint_layers(model, config.checkpointing_blocks)
    return adapted


def step_math(config: TrainerConfig) -> AbstractContextManager[None]:
    """How steps compute on a CPU: fast, unless memory was asked for, which NumPy's speed costs. What is not finite
    makes no noise here: the engine looks at what comes out."""
    return runtime.computing(fast=not config.gradient_checkpointing)


def _without_dropout(config: TrainerConfig) -> bool:
    return bool(getattr(config, "disable_dropout", False))  # SFT has no such setting


def settings_notes(config: TrainerConfig, updates: int) -> tuple[str, ...]:
    """What the user should know about the settings of a run of `updates`: a peak of the learning rate that it never
    comes to, dropout that is switched off."""
    notes = []
    warmup = warmup_of(config.warmup_steps, config.warmup_ratio, updates)
    if config.lr_scheduler_type != "constant" and 0 < updates <= warmup:
        notes.append(
            f"the warmup takes {warmup:,} updates and the run has {updates:,}: the learning rate never gets to "
            f"{config.learning_rate or 0:g}; lower warmup_steps"
        )
    if config.lora is not None and config.lora.dropout and _without_dropout(config):
        notes.append(
            f"lora_dropout={config.lora.dropout:g} does nothing: this trainer switches dropout off, as TRL does; "
            "disable_dropout=false keeps it"
        )
    return tuple(notes)


def plan_of(config: TrainerConfig, steps: int, updates_per_step: int = 1) -> Plan:
    """The engine's plan for `steps` steps, in each of which the schedule moves `updates_per_step` times."""
    updates = steps * updates_per_step
    warmup = warmup_of(config.warmup_steps, config.warmup_ratio, updates)
    schedule = Schedule(
        config.lr_scheduler_type, warmup, updates, config.num_cycles, config.lr_power, config.min_lr_rate,
        config.num_decay_steps, config.learning_rate or 0.0,
    )  # fmt: skip
    return Plan(
        steps=steps, seed=config.seed, schedule=schedule, max_grad_norm=config.max_grad_norm,
        log_interval=config.log_interval, eval_interval=config.eval_steps,
        checkpoint_interval=config.checkpoint_interval, patience=config.early_stopping_patience,
        threshold=config.early_stopping_threshold, compiled=not runtime.on_cpu(), updates_per_step=updates_per_step,
    )  # fmt: skip


def _new_run(job: Job, config: TrainerConfig) -> Run:
    return Run(RunDir.create(Path(config.output or default_run_path(job.name, str(config.model)))))


def _compared(run: Run, job: Job, config: TrainerConfig, inputs: Inputs) -> Run:
    """The run with warnings about what changed since its checkpoint. Raises what `compare` raises."""
    if run.checkpoint is None:
        return run
    step = run.checkpoint.step
    settings = as_dict(config)
    now = {"inputs": inputs.all(), "settings": settings, "rows": rows_around(job.rows, step)}
    told = compare(run.checkpoint.state, now, run.directory.path, step, chosen=run.changes, allowed=run.allow_changed)
    where = {name: "the command line" if name in run.changes else "config.yaml" for name in settings}
    names = changed_settings(run.checkpoint.state.get("settings") or {}, settings)
    run.directory.change_origins({name: f"{where[name]}, changed after step {step:,}" for name in names})
    return replace(run, warnings=(*run.warnings, *told))


def _restore(model: nn.Module, optimizer: ChukOptimizer, run: Run, job: Job) -> Progress:
    if run.checkpoint is None:
        return Progress()
    load_trained_weights(model, run.checkpoint.folder)
    optimizer.restore(load_optimizer_state(run.checkpoint))
    job.algorithm.recall(load_memory(run.checkpoint))
    return Progress.from_state(run.checkpoint.step, run.checkpoint.state)


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
    inputs: Inputs,
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
    for text in (*job.notes, *runtime.kernel_notes(), *_through(run, progress, plan)):
        emit(Event("note", progress.step, {"text": text}))
    idle = settings_notes(trainer.config, job.steps * job.updates_per_step)
    lost = loss_words(job.data.get("report") or {})
    for text in (*run.warnings, *lost, *idle, *_slow_blas()):
        emit(Event("warning", progress.step, {"text": text}))
    hooks = Hooks(
        emit=watched, save=lambda now, best: _save(trainer, job, inputs, optimizer, run, now, best, watched),
        evaluate=job.evaluate, should_stop=should_stop, between_steps=_between_steps,
        extra_metrics=lambda step: {"epoch": round(job.epoch(step), 4), **_memory()}, keep_completions=kept.add,
    )  # fmt: skip
    try:
        with step_math(trainer.config), StepLimit.of(job.algorithm.model, optimizer) as reserve:
            reason = fit(job.algorithm, optimizer, plan, progress, replace(hooks, reserve=reserve))
    except BaseException as error:
        text = error.message if isinstance(error, ChukError) else type(error).__name__
        emit(Event("finished", progress.step, {"reason": "failed", "error": text, "steps": progress.step}))
        raise
    ended = {"reason": reason, "steps": progress.step, "seconds": round(time.perf_counter() - began, 3)}
    details = {"best": progress.best, "checkpoint": last.checkpoint, "metrics": last.metrics}
    emit(Event("finished", progress.step, ended | details))
    checkpoint = Path(last.checkpoint) if last.checkpoint else None
    return RunResult(run.directory.path, progress.step, reason, last.metrics, progress.best, checkpoint, lost)


def _through(run: Run, progress: Progress, plan: Plan) -> list[str]:
    """What to say of a run that has no step left."""
    if run.checkpoint is None or progress.step < plan.steps:
        return []
    return [f"the run is through its {progress.step:,} steps: --max-steps N (above that) or --num-epochs goes on"]


def _between_steps() -> None:
    runtime.adapt_threads()
    runtime.publish_kernels()


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
    trainer: Trainer,
    job: Job,
    inputs: Inputs,
    optimizer: ChukOptimizer,
    run: Run,
    progress: Progress,
    best: bool,
    emit: Sink,
) -> None:
    state = progress.to_state() | {"fingerprint": job.fingerprint, "algorithm": job.name}
    state |= {"inputs": inputs.all(), "settings": as_dict(trainer.config)}
    state["rows"] = rows_around(job.rows, progress.step)
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
