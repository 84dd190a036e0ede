"""A run from its first file to its last event: what every trainer does around `fit`.

A new run writes its directory only when model and data are known to be good; a resumed one takes
weights, moments and counters from its newest valid checkpoint. Whatever happens, the lock is let go
and the log says how it ended."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chuk_lib import __version__, runtime
from chuk_lib.config.settings import as_dict
from chuk_lib.errors import ChukError, ConfigError, TrainingError
from chuk_lib.events import Event, JsonLines, Sink, fan_out
from chuk_lib.runtime.gpu_errors import gpu_error
from chuk_lib.sinks import make_sinks
from chuk_lib.training.algorithm import Algorithm
from chuk_lib.training.checkpoints import (
    Checkpoint,
    CheckpointClock,
    list_checkpoints,
    load_memory,
    load_optimizer_state,
    newest_valid,
    prune,
    save_checkpoint,
)
from chuk_lib.training.completions_log import CompletionsLog
from chuk_lib.training.config import RunConfig, TrainerConfig, checked
from chuk_lib.training.engine import Cadence, Hooks, Progress, fit
from chuk_lib.training.identity import Inputs, agree, changed_settings, compare, rows_around
from chuk_lib.training.optimizers import ChukOptimizer, build_optimizer
from chuk_lib.training.planning.footprint import StepLimit
from chuk_lib.training.run_dir import RunDir, default_run_path
from chuk_lib.training.schedulers import Schedule, warmup_of
from chuk_lib.training.updater import Learner
from chuk_lib.training.utils.over_ranks import check_alike


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `reason` is done, stopped or early_stopping; `metrics` are the last ones
    logged, `left_out` says which rows were cut or left out."""

    run_dir: Path
    steps: int
    reason: str
    metrics: dict[str, Any]
    best: dict[str, Any] | None
    checkpoint: Path | None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """An open run directory, where its settings came from, and the checkpoint to go on from, if
    any; with that the names of settings that are changed on the way, and whether anything else may
    have changed."""

    directory: RunDir
    origins: dict[str, str] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    allow_changed: bool = False
    warnings: Sequence[str] = ()
    changes: Sequence[str] = ()


Evaluate = Callable[[int], dict[str, Any]]
"""Metrics of the model after a step, such as `eval_loss`."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, and all that a run needs to know of it: `language_job` makes one of a
    language model; an algorithm of your own needs the first three.

    `save(folder)` writes the trained weights into a new checkpoint, `restore(folder)` takes them
    back; unset, they are those of the algorithm's model. `epoch(step)` says how many passes over
    the data `step` finished steps are. A checkpoint keeps `inputs`, fingerprints of what a run
    depends on, of which a change is refused when it goes on, and `state`, plain data. `about`,
    `notes` and `warnings` go into the log, `left_out` into the result too. `watched` is the
    evaluation metric that decides which checkpoint is the best; of equals the first, or with
    `newest_of_equals` the last. `updates_per_step` is what the learning rate's schedule counts: 1
    where it moves once a step, whatever updates that makes. `rows(step)` are the rows of the data
    that a step takes. `learner` computes and applies gradients in the place of MLX and its
    optimizer; `compiled=False` keeps a GPU from compiling the steps. `fast_math` lets a CPU compute
    with NumPy, which costs memory. `chosen` names settings that the model's size decided, and says
    so in words."""

    algorithm: Algorithm
    name: str
    steps: int
    save: Callable[[Path], None] | None = None
    restore: Callable[[Path], None] | None = None
    epoch: Callable[[int], float] | None = None
    inputs: Inputs = field(default_factory=lambda: Inputs({}, dict))
    state: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    left_out: tuple[str, ...] = ()
    evaluate: Evaluate | None = None
    watched: str = "eval_loss"
    greater_is_better: bool = False
    newest_of_equals: bool = False
    updates_per_step: int = 1
    rows: Callable[[int], Sequence[int]] | None = None
    learner: Learner | None = None
    compiled: bool = True
    fast_math: bool = True
    chosen: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write what is trained into the folder of a checkpoint."""
        if self.save is not None:
            self.save(folder)
        else:
            self.algorithm.model.save_weights(str(folder / _WEIGHTS))

    def read(self, folder: Path) -> None:
        """Take back what `write` wrote."""
        if self.restore is not None:
            self.restore(folder)
        else:
            self.algorithm.model.load_weights(str(folder / _WEIGHTS))


Join = Callable[[Job, Any, Callable[[], bool]], tuple[Job, Callable[[], bool]]]
"""Makes of a job, its settings and what stops it those of a worker among others."""
_WEIGHTS = "model.safetensors"
_ROUNDING = 1e-9
GPU_CHECKPOINT_MINUTES = 10


def run_training(
    job: Job,
    config: RunConfig,
    *,
    sinks: Sequence[Sink] = (),
    should_stop: Callable[[], bool] = lambda: False,
    open_run: Callable[[], Run] | None = None,
) -> RunResult:
    """Train to the end of the job's plan, in a new run directory or the one that `open_run` opens.

    Everything that can be wrong with settings, model or data is found before the directory is made.
    `max_steps` of the settings ends a longer plan of the job. Where several processes train
    together each calls this; `report_to`, checkpoints and the run directory are rank 0's, `sinks`
    see the events of their own process."""
    config = checked(config)
    job = replace(job, steps=min(job.steps, config.max_steps or job.steps))
    plan = plan_of(config, job.steps, job.updates_per_step)
    plan = replace(plan, watched=job.watched, greater_is_better=job.greater_is_better)
    plan = replace(plan, compiled=plan.compiled and job.compiled)
    if job.newest_of_equals and not plan.threshold:
        plan = replace(plan, threshold=-_ROUNDING)
    check_evaluation(config, job.evaluate is not None)
    optimizer = job.learner or build_optimizer(config, job.algorithm.model)
    world = runtime.this_world()
    reports = make_sinks(config.report_to) if world.is_first else []
    sinks = [*reports, *map(_in_users_world, sinks)]
    run = open_run() if open_run else _new_run(job, config)
    try:
        run = _compared(run, job, config)
        progress = _restore(optimizer, run, job)
        if world.size > 1:
            agree(world, job.inputs, as_dict(config), progress.step, job.steps)
        kept = CompletionsLog(run.directory.completions, progress.step)
        if not run.directory.is_described:
            _describe(run, config, job)
        log = JsonLines.append_to(run.directory.events)
        try:
            clock = CheckpointClock(_minutes(config), run.checkpoint)
            training = _Training(job, config, plan, optimizer, run, fan_out([log, *sinks]), clock)
            return training(progress, should_stop, kept)
        finally:
            log.close()
            kept.close()
    finally:
        run.directory.close()


def reopen(path: Path) -> Run:
    """A run directory to go on in, at its newest valid checkpoint; at the start when it has none
    yet. Raises ModelError when it is no run, or has no checkpoint that is whole."""
    path = path.resolve()
    directory = RunDir.open(path) if runtime.this_world().is_first else RunDir.elsewhere()
    try:
        warnings: list[str] = []
        is_begun = bool(list_checkpoints(path))
        checkpoint = newest_valid(path, warnings.append) if is_begun else None
        return Run(directory, {}, checkpoint, warnings=warnings)
    except BaseException:  # whatever it was, the lock must not stay
        directory.close()
        raise


def _in_users_world(sink: Sink) -> Sink:
    def see(event: Event) -> None:
        with runtime.users_own():
            sink(event)

    see.__name__ = getattr(sink, "__name__", type(sink).__name__)  # what a message calls it
    return see


def check_evaluation(config: RunConfig, has_data: bool) -> None:
    """Raise ConfigError where early stopping would have nothing to measure."""
    if config.early_stopping_patience is not None and not has_data:
        raise ConfigError(
            "early stopping has no validation data",
            "give --eval-data, or a folder with a valid file",
        )


def step_math(config: TrainerConfig) -> AbstractContextManager[None]:
    """How steps compute on a CPU: fast, unless memory was asked for, which NumPy's speed costs.
    What is not finite makes no noise here: the engine looks at what comes out."""
    return runtime.computing(fast=not config.gradient_checkpointing)


def plan_of(config: RunConfig, steps: int, updates_per_step: int = 1) -> Cadence:
    """The engine's plan for `steps` steps, in each of which the schedule moves `updates_per_step`
    times."""
    updates = steps * updates_per_step
    warmup = warmup_of(config.warmup_steps, config.warmup_ratio, updates)
    schedule = Schedule(
        config.lr_scheduler_type,
        warmup,
        updates,
        config.num_cycles,
        config.lr_power,
        config.min_lr_rate,
        config.num_decay_steps,
        config.learning_rate or 0.0,
    )
    return Cadence(
        steps=steps,
        seed=config.seed,
        schedule=schedule,
        max_grad_norm=config.max_grad_norm,
        log_interval=config.log_interval,
        eval_interval=config.eval_steps,
        checkpoint_interval=config.checkpoint_interval,
        patience=config.early_stopping_patience,
        threshold=config.early_stopping_threshold,
        compiled=not runtime.on_cpu(),
        updates_per_step=updates_per_step,
    )


def _new_run(job: Job, config: RunConfig) -> Run:
    if not runtime.this_world().is_first:
        return Run(RunDir.elsewhere())
    named = str(job.about.get("model") or "own")
    return Run(RunDir.create(Path(config.output or default_run_path(job.name, named))))


def _compared(run: Run, job: Job, config: RunConfig) -> Run:
    """The run with warnings about what changed since its checkpoint. Raises what `compare`
    raises."""
    settings = as_dict(config)
    asked = {name: settings[name] for name in run.changes}
    if run.checkpoint is None:
        run.directory.change_config(asked, job.chosen)
        return run
    step = run.checkpoint.step
    now = {"inputs": job.inputs.all(), "settings": settings, "rows": rows_around(job.rows, step)}
    told = compare(
        run.checkpoint.state,
        now,
        run.directory.path,
        step,
        chosen=run.changes,
        allowed=run.allow_changed,
    )
    where = {
        name: "the command line" if name in run.changes else "config.yaml" for name in settings
    }
    names = changed_settings(run.checkpoint.state.get("settings") or {}, settings)
    run.directory.change_origins(
        {name: f"{where[name]}, changed after step {step:,}" for name in names}
    )
    run.directory.change_config(asked, job.chosen)
    return replace(run, warnings=(*run.warnings, *told))


def _restore(optimizer: ChukOptimizer | Learner, run: Run, job: Job) -> Progress:
    if run.checkpoint is None:
        return Progress()
    job.read(run.checkpoint.folder)
    optimizer.restore(load_optimizer_state(run.checkpoint))
    job.algorithm.recall(load_memory(run.checkpoint))
    return Progress.from_state(run.checkpoint.step, run.checkpoint.state)


def _describe(run: Run, config: RunConfig, job: Job) -> None:
    try:
        run.directory.write_json("run.json", {"algorithm": job.name, "chuk": __version__})
        origins = run.origins or dict.fromkeys(as_dict(config), "given in code")
        run.directory.write_json("origins.json", {**origins, **job.chosen})
        run.directory.write_json("environment.json", runtime.describe())
        run.directory.write_yaml("config.yaml", as_dict(config), job.chosen)
    except OSError:
        run.directory.discard()
        raise


@dataclass(frozen=True)
class _Training:
    """A run between its first event and its last."""

    job: Job
    config: RunConfig
    plan: Cadence
    optimizer: ChukOptimizer | Learner
    run: Run
    emit: Sink
    clock: CheckpointClock

    def __call__(
        self, progress: Progress, should_stop: Callable[[], bool], kept: CompletionsLog
    ) -> RunResult:
        job, run, emit = self.job, self.run, self.emit
        began, last = time.perf_counter(), _Last(run.checkpoint)
        watched = fan_out([emit, last])
        self._begin(progress)
        hooks = Hooks(
            emit=watched,
            save=lambda now, best: self._save(now, best, watched),
            evaluate=job.evaluate,
            should_stop=should_stop,
            between_steps=_between_steps,
            extra_metrics=self._extra_metrics,
            keep_completions=kept.add,
            overdue=self.clock.is_overdue,
        )
        runtime.await_kernels()
        try:
            with (
                runtime.computing(fast=job.fast_math),
                StepLimit.of(job.algorithm.model, self.optimizer) as reserve,
            ):
                reason = fit(
                    job.algorithm,
                    self.optimizer,
                    self.plan,
                    progress,
                    replace(hooks, reserve=reserve),
                )
        except BaseException as failure:  # whatever it was, the log says how it ended
            error = _in_words(failure, run.directory.path, last.checkpoint)
            text = error.message if isinstance(error, ChukError) else type(error).__name__
            how = {"reason": "failed", "error": text, "steps": progress.step}
            emit(Event("finished", progress.step, how))
            if isinstance(failure, Exception):
                runtime.this_world().leave()
            if error is failure:
                raise
            raise error from failure
        ended = {
            "reason": reason,
            "steps": progress.step,
            "seconds": round(time.perf_counter() - began, 3),
        }
        details = {"best": progress.best, "checkpoint": last.checkpoint, "metrics": last.metrics}
        emit(Event("finished", progress.step, ended | details))
        runtime.this_world().leave()
        checkpoint = Path(last.checkpoint) if last.checkpoint else None
        return RunResult(
            run.directory.path,
            progress.step,
            reason,
            last.metrics,
            progress.best,
            checkpoint,
            job.left_out,
        )

    def _begin(self, progress: Progress) -> None:
        job, run, emit = self.job, self.run, self.emit
        emit(Event("started", progress.step, self._started()))
        for text in (*job.notes, *runtime.kernel_notes(), *_through(run, progress, self.plan)):
            emit(Event("note", progress.step, {"text": text}))
        for text in (*run.warnings, *job.warnings, *_slow_blas()):
            emit(Event("warning", progress.step, {"text": text}))

    def _extra_metrics(self, step: int) -> dict[str, float]:
        epoch = {"epoch": round(self.job.epoch(step), 4)} if self.job.epoch is not None else {}
        return {**epoch, **_memory()}

    def _started(self) -> dict[str, Any]:
        config, run = self.config, self.run
        return {
            "algorithm": self.job.name,
            "run_dir": str(run.directory.path),
            "steps": self.job.steps,
            "start_step": run.checkpoint.step if run.checkpoint else 0,
            "config": as_dict(config),
            "device": runtime.prepare().device,
            "environment": runtime.describe(),
            **self.job.about,
        }

    def _save(self, progress: Progress, best: bool, emit: Sink) -> None:
        job, run = self.job, self.run
        check_alike(job.algorithm.model)
        if not runtime.this_world().is_first:  # which has the same weights, and the run directory
            return
        state = progress.to_state() | {"algorithm": job.name, **job.state}
        state |= {"inputs": job.inputs.all(), "settings": as_dict(self.config)}
        state |= {"rows": rows_around(job.rows, progress.step), "passing": self.clock.is_due}
        memory = job.algorithm.memory()
        folder = save_checkpoint(
            run.directory, progress.step, job.write, self.optimizer.state, state, memory
        )
        best_name = f"step_{progress.best['step']:06d}" if progress.best else None
        if best_name:  # each time: a kill can come between a checkpoint and its mark
            run.directory.point("best", run.directory.checkpoints / best_name)
        prune(
            run.directory.path,
            self.config.keep_checkpoints,
            best_name,
            self.clock.saved(folder.name),
        )
        emit(Event("saved", progress.step, {"path": str(folder), "best": best}))


def _in_words(error: BaseException, run: Path, checkpoint: str | None) -> BaseException:
    """The error, or what it means and how to go on when the GPU failed: nothing can be saved after
    that."""
    found = gpu_error(error)
    if found is None:
        return error
    step = int(Path(checkpoint).name.removeprefix("step_")) if checkpoint else 0
    goes_on = f"goes on after step {step:,}" if step else "begins again: no checkpoint was due yet"
    return TrainingError(
        found.message, f"`chuk train resume {shlex.quote(str(run))}` {goes_on}; {found.hint}"
    )


def _minutes(config: RunConfig) -> float:
    """How old the last checkpoint may become: a GPU that fails takes with it what was not saved."""
    default = 0 if runtime.on_cpu() else GPU_CHECKPOINT_MINUTES
    return default if config.checkpoint_minutes is None else config.checkpoint_minutes


def _through(run: Run, progress: Progress, plan: Cadence) -> list[str]:
    """What to say of a run that has no step left."""
    if run.checkpoint is None or progress.step < plan.steps:
        return []
    return [
        f"the run is through its {progress.step:,} steps: --max-steps N (above that) or"
        " --num-epochs goes on"
    ]


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


def _slow_blas() -> list[str]:
    blas = runtime.prepare().blas
    if blas.fast or not runtime.on_cpu():
        return []
    return [
        f"matrix products are slow: {blas.reason or blas.name}; `chuk doctor` says how to mend it"
    ]


def _memory() -> dict[str, int]:
    use = runtime.memory()
    return {
        "memory_bytes": use.active,
        "peak_memory_bytes": use.peak,
        "cache_memory_bytes": use.cache,
    }
