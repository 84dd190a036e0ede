"""One page over all stages of a pipeline, built from the parts of a run's page."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chuk_cli import __version__, humanize
from chuk_cli.dashboard.board import last_part
from chuk_cli.runs.report import (
    asset,
    completions_table,
    date,
    samples,
    section,
    settings,
    table,
    text,
    tile,
    to_script_json,
)
from chuk_cli.runs.report_charts import charts_of

if TYPE_CHECKING:
    from chuk_lib.runs.record import RunRecord
    from chuk_lib.training.pipeline.manifest import PipelineManifest, StageRecord

_FIRST = ("Reward", "Loss", "Preference accuracy", "Margin of implicit rewards", "Token accuracy")
"""Charts of a stage that come first; the others stand in the report of its own run."""
_TILES = (
    ("eval_exact_match", "Exact match"),
    ("eval_reward", "Eval reward"),
    ("reward", "Reward"),
    ("eval_rewards/accuracies", "Eval preference accuracy"),
    ("rewards/accuracies", "Preference accuracy"),
    ("eval_loss", "Eval loss"),
    ("loss", "Loss"),
)


def write_pipeline_report(path: Path, output: Path) -> None:
    """Write the page of the pipeline in `path`, whole or not at all."""
    from chuk_lib.utils.paths import write_whole

    write_whole(output, to_html(path))


def to_html(path: Path) -> str:
    """The page as text. Raises ModelError when the folder is not a pipeline's."""
    from chuk_lib.runs.record import read_run
    from chuk_lib.training.pipeline.manifest import read_manifest

    manifest = read_manifest(path)
    runs = {
        record.name: read_run(path / record.run)
        for record in manifest.records
        if record.kind != "eval"
    }
    parts = {
        "title": escape(f"{path.resolve().name}, a chuk pipeline"),
        "css": asset("report.css"),
        "head": _head(path, manifest),
        "tiles": "".join(map(_stage_tile, manifest.records)),
        "sections": "".join(_sections(path, manifest, runs)),
        "foot": escape(
            f"Written by chuk {__version__} on {date(time.time())}. This page holds all its data."
        ),
        "data": to_script_json(
            {"charts": list(_charts(runs)), "steps": max(_steps(runs), default=None)}
        ),
        "js": asset("report.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], asset("report.html"))


def _steps(runs: dict[str, RunRecord]) -> list[int]:
    return [run.summary.steps for run in runs.values() if run.summary.steps]


def _head(path: Path, manifest: PipelineManifest) -> str:
    done = sum(record.state == "finished" for record in manifest.records)
    count, states = (
        len(manifest.plan) or len(manifest.records),
        [record.state for record in manifest.records],
    )
    state = "done" if done == count else states[-1] if states else "running"
    what = " → ".join(text(stage["name"]) for stage in manifest.plan)
    seconds = sum(record.seconds for record in manifest.records)
    facts = (
        f"{done} of {count} stages · {humanize.duration(seconds)} · from"
        f" {text(last_part(manifest.model))}"
    )
    errors = "".join(
        f'<p class="error">{text(one.name)}: {text(one.error)}</p>'
        for one in manifest.records
        if one.error
    )
    name = text(path.resolve().name)
    return (
        f"<h1>{name} <span class='status {text(state)}'>{text(state)}</span></h1>"
        f"<p class='what'><b>pipeline</b> {what}</p><p class='facts'>{facts}</p>{errors}"
    )


def _stage_tile(record: StageRecord) -> str:
    """The figure that says most about a stage."""
    for name, label in _TILES:
        value = record.metrics.get(name)
        if isinstance(value, float):
            shown = (
                f"{value:.1%}"
                if label.lower().endswith(("match", "accuracy"))
                else humanize.number(value)
            )
            return tile(record.name, shown, label.lower())
    return tile(record.name, record.state, "")


def _sections(path: Path, manifest: PipelineManifest, runs: dict[str, RunRecord]) -> Iterator[str]:
    columns = ["stage", "kind", "state", "steps", "time", "model it began with", "folder"]
    yield section("Stages", table(columns, [_row(record) for record in manifest.records]))
    evals = {record.name: record for record in manifest.records if record.kind == "eval"}
    if evals:
        yield section("Evaluations", _evaluations(evals))
        yield from (_wrong(name, path / record.run) for name, record in evals.items())
    for name, run in runs.items():
        if run.completions:
            yield section(f"{name}: completions", completions_table(run.completions))
        if run.samples:
            yield section(f"{name}: samples", samples(run.samples[-2:]))
        if run.settings:
            yield section(f"{name}: settings", settings(run))


def _row(record: StageRecord) -> list[str]:
    steps = f"{record.steps:,}" if record.steps else ""
    model = last_part(record.model)
    return [
        record.name,
        record.kind,
        record.state,
        steps,
        humanize.duration(record.seconds),
        model,
        record.run,
    ]


def _evaluations(evals: dict[str, StageRecord]) -> str:
    names = list(dict.fromkeys(metric for record in evals.values() for metric in record.metrics))
    rows = [
        [name, *(_figure(record.metrics.get(metric)) for metric in names)]
        for name, record in evals.items()
    ]
    return table(["stage", *(name.removeprefix("eval_").replace("_", " ") for name in names)], rows)


def _figure(value: Any) -> str:
    return (
        humanize.number(value) if isinstance(value, float) else "" if value is None else str(value)
    )


def _wrong(name: str, folder: Path) -> str:
    """Some wrong answers of an evaluation."""
    try:
        found = json.loads((folder / "eval.json").read_text(encoding="utf-8")).get("wrong") or []
    except (OSError, ValueError, AttributeError):
        return ""
    keys = ("prompt", "completion", "target")
    rows = [
        [str(answer.get(key, "")) for key in keys]
        for answer in found[:10]
        if isinstance(answer, dict)
    ]
    return (
        section(f"{name}: wrong answers", table(["prompt", "written", "wanted"], rows))
        if rows
        else ""
    )


def _charts(runs: dict[str, RunRecord]) -> Iterator[dict[str, Any]]:
    for name, run in runs.items():
        charts = charts_of(run)
        shown = (
            chart for chart in charts if chart["title"] in _FIRST and _says_something(chart, run)
        )
        yield from (
            {**chart, "group": name, "title": f"{name}: {chart['title']}"} for chart in shown
        )


def _says_something(chart: dict[str, Any], run: RunRecord) -> bool:
    """Token accuracy is what supervised fine-tuning raises; of preferences it says little."""
    return chart["title"] != "Token accuracy" or "rewards/accuracies" not in run.curves
