"""Several trainings, one after the other: each stage begins with what the one before it made.

Stages are runs like any other, each in a folder of the pipeline's; `pipeline.json` says how far all
of it is. Begun again, a pipeline passes over finished stages and goes on inside the one that was
interrupted, from its newest checkpoint: the result has the same bits as that of a pipeline that was
never interrupted.

Adapters: a stage that asks for the adapters which its model already has goes on training them, so
that the result is one adapter on the first model. A stage that asks for others, or for all weights,
gets the adapters merged first."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chuk_lib.config.paths import absolute, absolute_path, moved
from chuk_lib.config.settings import Resolved, as_dict
from chuk_lib.errors import ChukError, ConfigError
from chuk_lib.events import Event, Sink
from chuk_lib.training.config import TrainerConfig
from chuk_lib.training.pipeline.checks import (
    changed_inputs,
    check_pipeline,
    fingerprint_inputs,
    in_stage,
    question_of,
    without_stage_names,
)
from chuk_lib.training.pipeline.config import EVAL, Pipeline, Stage, known_settings, with_model
from chuk_lib.training.pipeline.manifest import (
    FAILED,
    FINISHED,
    STOPPED,
    PipelineDir,
    StageRecord,
    base_name,
    differences,
)
from chuk_lib.training.run_dir import default_run_path
from chuk_lib.utils.paths import write_whole

_NO_RESULT = ("model", "output", "report_to", "data", "eval_data", "ref_log_probs_cache")
"""Settings that are told apart by what they lead to (weights, rows), or that lead to nothing."""


@dataclass(frozen=True)
class PipelineResult:
    """How it ended: `reason` is done or stopped; `model` is what the last training stage made, None
    when no stage did; `records` are the manifest's, one a stage that was begun."""

    path: Path
    reason: str
    records: tuple[StageRecord, ...]
    model: Path | None
    stages: int


def run_pipeline(
    pipeline: Pipeline,
    *,
    sinks: Sequence[Sink] = (),
    should_stop: Callable[[], bool] = lambda: False,
    redo: bool = False,
    overwrite: bool = False,
) -> PipelineResult:
    """Run every stage that is not finished, in `pipeline.output` or a new folder under `runs/`.

    A stage that was begun with other settings, another model or other data is refused (ConfigError)
    unless `redo`: then it and those after it are run again. `overwrite` begins all of them anew.
    Raises what stages raise, the message beginning with the stage's name."""
    check_pipeline(pipeline)
    pipeline = _absolute(pipeline)
    path = Path(
        pipeline.output or default_run_path("pipeline", pipeline.model or pipeline.stages[-1].name)
    ).resolve()
    folder = PipelineDir.open(path, overwrite)
    try:
        work = _Work(pipeline, folder, list(sinks), should_stop)
        work.compare(redo)
        folder.intend(pipeline.model, [_intent(stage) for stage in pipeline.stages])
        return work.run()
    finally:
        folder.close()


class _Work:
    """A pipeline in its folder."""

    def __init__(
        self,
        pipeline: Pipeline,
        folder: PipelineDir,
        sinks: Sequence[Sink],
        should_stop: Callable[[], bool],
    ) -> None:
        self._pipeline = pipeline
        self._folder = folder
        self._sinks = sinks
        self._should_stop = should_stop

    def compare(self, redo: bool) -> None:
        """Hold what was run so far against what is asked now; drop what is to be run again."""
        stages = self._pipeline.stages
        for number, record in enumerate(self._folder.records):
            stage = stages[number] if number < len(stages) else None
            is_gone = record.state == FINISHED and not (self._folder.path / record.run).is_dir()
            changes = (
                ["its result is gone"]
                if is_gone
                else _changes(record, self._ready(stage) if stage else None)
            )
            if not changes:
                continue
            if not redo:
                raise ConfigError(
                    f"stage `{record.name}` was begun with other settings or input:"
                    f" {'; '.join(changes[:4])}",
                    "--redo runs it and the stages after it again; or choose another --output",
                )
            self._folder.drop_from(number)
            break

    def run(self) -> PipelineResult:
        """Run what is not finished."""
        reason = "done"
        for number, stage in enumerate(self._pipeline.stages):
            if (
                number < len(self._folder.records)
                and self._folder.records[number].state == FINISHED
            ):
                continue
            if self._should_stop():
                reason = STOPPED
                break
            with in_stage(stage):
                reason = self._run_stage(number, stage)
            if reason == STOPPED:
                break
        last = self._policy(len(self._folder.records))
        records = tuple(self._folder.records)
        return PipelineResult(self._folder.path, reason, records, last, len(self._pipeline.stages))

    def _run_stage(self, number: int, stage: Stage) -> str:
        if number == len(self._folder.records):
            # What a process left that was killed while it dropped the stage.
            self._folder.clear(stage.folder)
        stage = self._ready(stage)
        record = self._begin(number, stage)
        began = time.time()
        try:
            done = self._measure(stage) if stage.kind == EVAL else self._train(stage)
        except BaseException as error:
            text = error.message if isinstance(error, ChukError) else type(error).__name__
            self._folder.put(number, replace(record, state=FAILED, error=text, ended=time.time()))
            raise
        seconds = done.pop("seconds", time.time() - began)
        state = STOPPED if done.pop("reason") == STOPPED else FINISHED
        facts = done | {"seconds": round(seconds, 3), "ended": time.time(), "error": None}
        self._folder.put(number, replace(record, state=state, **facts))
        return "done" if state == FINISHED else STOPPED

    def _begin(self, number: int, stage: Stage) -> StageRecord:
        """The stage as running in the manifest; one that goes on keeps its beginning."""
        record = _record(stage)
        old = self._folder.records[number] if number < len(self._folder.records) else None
        record = replace(record, began=old.began if old else time.time())
        self._folder.put(number, record)
        return record

    def _train(self, stage: Stage) -> dict[str, Any]:
        from chuk_lib.training.jobs import resume, train

        path = self._folder.path / stage.folder
        if (summary := _finished_run(path)) is not None:
            return summary
        sinks = [_naming(sink, stage, len(self._pipeline.stages)) for sink in self._sinks]
        if (path / "config.yaml").is_file():
            result = resume(path, sinks=sinks, should_stop=self._should_stop)
        else:
            config = replace(stage.settings.value, output=str(path), model=str(self._base(stage)))
            result = train(
                stage.kind,
                config,
                origins=stage.settings.origins,
                sinks=sinks,
                should_stop=self._should_stop,
                overwrite=True,
            )
        if result.reason == STOPPED:
            return {"reason": STOPPED, "steps": result.steps}
        return _finished_run(path) or {
            "reason": result.reason,
            "steps": result.steps,
            "metrics": result.metrics,
        }

    def _measure(self, stage: Stage) -> dict[str, Any]:
        from chuk_lib.training.measuring.measure import answer, read_question

        config, path, began = stage.settings.value, self._folder.path / stage.folder, time.time()
        about = {
            "algorithm": EVAL,
            "model": config.model,
            "data": config.data,
            "run_dir": str(path),
        }
        self._tell(stage, Event("started", 0, about))
        report = answer(read_question(question_of(config)), config.model)
        path.mkdir(exist_ok=True)
        write_whole(
            path / "eval.json", json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n"
        )
        known = {name: values[~np.isnan(values)] for name, values in report.values().items()}
        metrics = report.metrics | {
            f"eval_{name}": float(some.mean()) for name, some in known.items() if len(some)
        }
        self._tell(stage, Event("eval", 0, metrics))
        ended = {"reason": "done", "steps": 0, "seconds": round(time.time() - began, 3)}
        self._tell(stage, Event("finished", 0, ended))
        return {"reason": "done", "metrics": metrics | {"rows": report.rows}}

    def _tell(self, stage: Stage, event: Event) -> None:
        for sink in self._sinks:
            _naming(sink, stage, len(self._pipeline.stages))(event)

    def _base(self, stage: Stage) -> Path | str:
        """The model that a training stage is given: as it is, or with its adapters merged."""
        config, source = stage.settings.value, str(stage.settings.value.model)
        if not needs_merging(source, config):
            return source
        merged = self._folder.path / base_name(stage.folder)
        if not merged.is_dir():
            merge(source, merged)
        return merged

    def _ready(self, stage: Stage) -> Stage:
        """The stage with the model that it goes on with, and every `stage:NAME` as a folder."""
        models = {
            record.name: str(self._folder.path / record.run)
            for record in self._folder.records
            if record.kind != EVAL
        }
        if not stage.own_model:
            before = self._policy(stage.number - 1)
            origin = "the stages before" if before else "--model"
            stage = with_model(stage, str(before or self._pipeline.model), origin)
        return without_stage_names(stage, models)

    def _policy(self, count: int) -> Path | None:
        """What the last of the first `count` stages that trains a policy made."""
        made = [stage for stage in self._pipeline.stages[:count] if stage.makes_policy]
        return self._folder.path / made[-1].folder if made else None


def needs_merging(source: str, config: TrainerConfig) -> bool:
    """Whether a model has adapters that a stage with these settings cannot go on training."""
    from chuk_lib.models import locate, read_adapter

    found = locate(source, local_only=Path(source).exists())
    if found.adapter_folder is None:
        return False
    has, wanted = read_adapter(found.adapter_folder).lora, config.lora
    if wanted is None:
        return True
    if any(
        getattr(has, name) != getattr(wanted, name)
        for name in ("rank", "alpha", "use_rslora", "use_dora")
    ):
        return True
    return wanted.targets is not None and (has.targets, has.num_layers) != (
        wanted.targets,
        wanted.num_layers,
    )


def merge(source: str, folder: Path) -> None:
    """Write a model with its adapters merged into its weights; the folder is there whole or not at
    all."""
    from chuk_lib.models import fuse, load_model, save_pretrained

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    model, tokenizer = load_model(source)
    save_pretrained(fuse(model), tokenizer, partial)
    partial.rename(folder)


def plan_stages(pipeline: Pipeline) -> list[Stage]:
    """The stages as they would run, for a dry run; checked, nothing written. A model that an
    earlier stage will make is named by that stage."""
    check_pipeline(pipeline)
    shown: list[Stage] = []
    before, origin = pipeline.model, "--model"
    for stage in pipeline.stages:
        shown.append(stage if stage.own_model else with_model(stage, str(before), origin))
        if stage.makes_policy:
            before, origin = f"stage:{stage.name}", "the stages before"
    return shown


def _intent(stage: Stage) -> dict[str, Any]:
    """A stage as the manifest keeps it, so that it can be asked for again: what somebody chose."""
    settings, origins = as_dict(stage.settings.value), stage.settings.origins
    chosen = {name: value for name, value in settings.items() if origins[name] != "default"}
    return {
        "name": stage.name,
        "kind": stage.kind,
        "settings": chosen,
        "origins": {name: origins[name] for name in chosen},
    }


def _record(stage: Stage) -> StageRecord:
    return StageRecord(
        stage.name,
        stage.kind,
        stage.folder,
        as_dict(stage.settings.value),
        dict(stage.settings.origins),
        fingerprint_inputs(stage),
        str(stage.settings.value.model),
    )


def _changes(record: StageRecord, stage: Stage | None) -> list[str]:
    """What a stage is asked for now that it was not begun with."""
    if stage is None:
        return ["it is no stage of this pipeline"]
    if (record.name, record.kind) != (stage.name, stage.kind):
        return [f"stage {stage.number} is now `{stage.name}` ({stage.kind})"]
    asked = _record(stage)
    old, new = (
        {k: v for k, v in one.settings.items() if k not in _NO_RESULT} for one in (record, asked)
    )
    if "rewards" in old:
        item = known_settings()["rewards"]  # an older chuk wrote their files as they were typed
        old["rewards"] = moved(item, old["rewards"], absolute_path)
    inputs = [f"its {name} changed" for name in changed_inputs(stage, record.inputs, asked.inputs)]
    return [*differences(old, new), *inputs]


def _finished_run(path: Path) -> dict[str, Any] | None:
    """What a run that is through says of itself; None for one that is not."""
    from chuk_lib.runs.log import read_log
    from chuk_lib.runs.summary import summarize

    if not (path / "events.jsonl").is_file():
        return None
    log = read_log(path / "events.jsonl")
    last = log.events[-1] if log.events else None
    if (
        last is None
        or last.kind != "finished"
        or last.data.get("reason") not in ("done", "early_stopping")
    ):
        return None
    summary = summarize(path, log)
    facts = {"steps": summary.step, "metrics": dict(summary.metrics), "seconds": summary.seconds}
    return {"reason": str(last.data["reason"]), **facts}


def _naming(sink: Sink, stage: Stage, count: int) -> Sink:
    """A sink that is told in `started` which stage this is."""
    about = {"name": stage.name, "kind": stage.kind, "number": stage.number, "of": count}

    def see(event: Event) -> None:
        sink(
            replace(event, data=event.data | {"stage": about}) if event.kind == "started" else event
        )

    return see


def _absolute(pipeline: Pipeline) -> Pipeline:
    """Local paths made absolute, so that what the manifest says holds from any folder."""

    def stage_of(stage: Stage) -> Stage:
        return replace(
            stage, settings=Resolved(absolute(stage.settings.value), stage.settings.origins)
        )

    model = None if pipeline.model is None else absolute_path(pipeline.model)
    return replace(pipeline, stages=tuple(map(stage_of, pipeline.stages)), model=model)
