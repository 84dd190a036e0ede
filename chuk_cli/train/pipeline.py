"""`chuk train pipeline`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli import humanize
from chuk_cli.interrupt import Stop
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out, paint
from chuk_cli.plan import settings_lines
from chuk_cli.streams import lasting_stdout
from chuk_cli.train.online import RewardOption
from chuk_cli.train.pipeline_settings import Given, to_pipeline, with_shared_settings
from chuk_cli.train.watching import STOPPING, arm, displays, nearest, show_cursor
from chuk_lib.config.settings import as_dict

if TYPE_CHECKING:
    from chuk_lib.training.pipeline.config import Pipeline, Stage
    from chuk_lib.training.pipeline.manifest import StageRecord
    from chuk_lib.training.pipeline.outline import Outline
    from chuk_lib.training.pipeline.run import PipelineResult

_METRICS = (
    ("eval_exact_match", "exact match"),
    ("eval_reward", "eval reward"),
    ("reward", "reward"),
    ("eval_rewards/accuracies", "eval preference accuracy"),
    ("rewards/accuracies", "preference accuracy"),
    ("eval_loss", "eval loss"),
    ("loss", "loss"),
)


@with_shared_settings
def pipeline(
    settings: Given,
    stages: Annotated[
        str | None,
        typer.Option("--stages", help="Stages in order, with commas between: sft,dpo,grpo,eval."),
    ] = None,
    reward: RewardOption = None,
    redo: Annotated[
        bool,
        typer.Option(
            "--redo", help="Run a stage again whose settings or input changed, and those after it."
        ),
    ] = False,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train in stages: each one begins with the model that the stage before it made.

    Options are for all stages that know them; `--set sft.learning_rate=1e-4` is for one. With a
    data folder that has `sft.jsonl`, `dpo/` and the like, each stage takes its own. A stage that
    asks for the adapters which its model has goes on training them; for other adapters, or all
    weights, they are merged first. Interrupted or killed, the same command with the same --output
    goes on where it was; that --output alone is enough. Prints the folder of the trained model, or
    of the pipeline when no stage trains.

    Examples:
      chuk train pipeline --stages sft,dpo,eval --model my-model --data data -o runs/tuned --lora
      chuk train pipeline --stages sft,grpo,eval -m my-model --data sums.jsonl --reward exact_match
      chuk train pipeline --config pipeline.yaml --set sft.learning_rate=1e-4 --dry-run
      chuk train pipeline --output runs/tuned
    """
    out = Out.of(json, quiet)
    asked = to_pipeline(settings, stages, reward)
    if dry_run:
        _show_plan(out, asked)
        return
    _run(out, asked, redo, overwrite)


def go_on(out: Out, folder: Path) -> None:
    """Go on with the pipeline in a folder, as `chuk train pipeline --output FOLDER` does."""
    _run(
        out, to_pipeline(Given([], [], {"output": str(folder)}), None), redo=False, overwrite=False
    )


def _run(out: Out, asked: Pipeline, redo: bool, overwrite: bool) -> None:
    with lasting_stdout():
        with ExitStack() as stack:
            stop = stack.enter_context(
                Stop(on_first=lambda: out.say(STOPPING), on_second=lambda: show_cursor())
            )
            sinks = [lambda event: arm(stop, event), *displays(out, stack)]
            from chuk_lib.training.pipeline.run import run_pipeline

            result = run_pipeline(
                asked, sinks=sinks, should_stop=stop, redo=redo, overwrite=overwrite
            )
        report = _write_report(result)
        _tell(out, result, report)
    if result.reason == "stopped":
        raise typer.Exit(stop.exit_code)


def _write_report(result: PipelineResult) -> Path:
    from chuk_cli.runs.pipeline_report import write_pipeline_report

    output = result.path / "report.html"
    write_pipeline_report(result.path, output)
    return output


def _tell(out: Out, result: PipelineResult, report: Path) -> None:
    for number, record in enumerate(result.records, 1):
        out.say(f"{number}/{result.stages} {record.name}: {_outcome(record)}")
    out.say(f"report: {nearest(report)}")
    if result.reason == "stopped":
        out.say(f"resume: `chuk train pipeline --output {shlex.quote(nearest(result.path))}`")
    elif result.model is not None:
        out.say(f"next: `chuk infer --model {shlex.quote(nearest(result.model))} --prompt Hello`")
    where = nearest(result.model or result.path)
    stages = [
        {
            "name": one.name,
            "kind": one.kind,
            "state": one.state,
            "metrics": one.metrics,
            "run": one.run,
        }
        for one in result.records
    ]
    found = {
        "pipeline": str(result.path),
        "model": str(result.model) if result.model else None,
        "report": str(report),
        "reason": result.reason,
        "stages": stages,
    }
    if out.json:
        out.line(found)
    else:
        out.result(found, human=where, quiet=where)


def _outcome(record: StageRecord) -> str:
    """`finished, 60 steps in 12 s, eval loss 0.31`."""
    steps = [f"{humanize.counted(record.steps, 'step')}"] if record.steps else []
    measured = [
        (words, record.metrics[name])
        for name, words in _METRICS
        if isinstance(record.metrics.get(name), float)
    ]
    figures = [f"{words} {humanize.number(value)}" for words, value in measured[:2]]
    return ", ".join([record.state, *steps, humanize.duration(record.seconds), *figures])


def _show_plan(out: Out, asked: Pipeline) -> None:
    from chuk_lib.training.pipeline.outline import outline
    from chuk_lib.training.pipeline.run import plan_stages

    shown = plan_stages(asked)
    with out.status("dry run: counting rows"):
        outlines = [outline(stage) for stage in shown]
    stages = [_as_dict(stage) | asdict(one) for stage, one in zip(shown, outlines, strict=True)]
    found = {"model": asked.model, "output": asked.output, "stages": stages}
    out.result(
        found, human="\n".join(_lines(shown, outlines)), quiet=[stage.name for stage in shown]
    )
    out.say("dry run: nothing was written; `--json` has every setting of every stage")


def _as_dict(stage: Stage) -> dict[str, Any]:
    values, origins = as_dict(stage.settings.value), stage.settings.origins
    settings = {
        name: {"value": value, "origin": origins[name]}
        for name, value in values.items()
        if name != "output"
    }
    return {"name": stage.name, "kind": stage.kind, "folder": stage.folder, "settings": settings}


def _lines(stages: Sequence[Stage], outlines: Sequence[Outline]) -> Iterator[str]:
    """For each stage its rows and steps, then what somebody chose for it."""
    from chuk_lib.training.pipeline.config import EVAL

    for stage, one in zip(stages, outlines, strict=True):
        if stage.number > 1:
            yield ""
        kind = "" if stage.kind == stage.name else f" ({stage.kind})"
        yield paint(
            f"stage {stage.number} of {len(stages)}: {stage.name}{kind}", "success", sys.stdout
        )
        values = {
            name: value for name, value in as_dict(stage.settings.value).items() if name != "output"
        }
        chosen = {
            name: value
            for name, value in values.items()
            if stage.settings.origins[name] != "default"
        }
        plan = {"rows": _rows_in_words(one)} | (
            {} if stage.kind == EVAL else {"steps": _steps_in_words(one)}
        )
        width = max(map(len, (*plan, *chosen)))
        yield from (f"{name:<{width}}  {text}" for name, text in plan.items())
        yield from settings_lines(chosen, stage.settings.origins)
        yield paint(
            f"{len(values) - len(chosen)} other settings have their defaults",
            "secondary",
            sys.stdout,
        )
    yield ""
    yield (
        "time and memory  not known before a stage begins: its model is what the stages before it"
        " make"
    )


def _rows_in_words(one: Outline) -> str:
    return "known when the data is fetched" if one.rows is None else f"{one.rows:,}"


def _steps_in_words(one: Outline) -> str:
    if one.steps is None:
        return "known when the stage begins"
    return f"at most {one.steps:,}" if one.at_most else f"{one.steps:,}"
