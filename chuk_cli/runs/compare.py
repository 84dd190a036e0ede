"""Runs beside each other: what differs in their settings, how they ended, and their losses in one
chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from chuk_cli import humanize
from chuk_cli.dashboard.board import printable
from chuk_cli.runs.chart import Series, chart, colour, letter
from chuk_cli.runs.show import value_text

if TYPE_CHECKING:
    from chuk_lib.runs.figures import Picture
    from chuk_lib.runs.record import RunRecord

_LOWER = ("loss", "perplexity", "seconds", "padding")  # endings of metrics of which less is better
_HIGHER = ("accuracy", "per_second", "reward", "match", "margins")
_LEFT_OUT = (
    "epoch",
    "num_tokens",
    "learning_rate",
    "memory_bytes",
    "cache_memory_bytes",
    "eval_seconds",
)


def as_dict(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """The comparison as plain data; every value list is in the order of `runs`."""
    from chuk_lib.runs.figures import USUAL
    from chuk_lib.runs.settings import differences

    return {
        "runs": [run.summary.as_dict() for run in runs],
        "settings": differences([run.settings for run in runs]),
        "metrics": final_metrics(runs),
        "curves": {
            name: [
                {"steps": run.curves[name].steps, "values": run.curves[name].values}
                if name in run.curves
                else None
                for run in runs
            ]
            for name in USUAL
            if any(name in run.curves for run in runs)
        },
    }


def final_metrics(runs: Sequence[RunRecord]) -> dict[str, list[float | None]]:
    """The last value of each metric in each run; None where a run does not have it."""
    names = dict.fromkeys(name for run in runs for name in run.summary.metrics)
    return {name: [run.summary.metrics.get(name) for run in runs] for name in names}


def page(runs: Sequence[RunRecord], charts: Sequence[Picture], width: int, ascii: bool) -> Group:
    """Who is who, settings, final metrics, curves."""
    from chuk_lib.runs.settings import differences

    settings = differences([run.settings for run in runs])
    setting_rows = [
        (name, [value_text(value) for value in values], None) for name, values in settings.items()
    ]
    parts: list[RenderableType] = [_table(_about(runs), runs)]
    if setting_rows:
        parts += [Text("\nSettings that differ", style="bold"), _table(setting_rows, runs)]
    else:
        parts += [Text("\nAll settings are the same.")]
    metrics = [
        (name, *_metric(name, values))
        for name, values in final_metrics(runs).items()
        if name not in _LEFT_OUT
    ]
    if metrics:
        parts += [Text("\nAt the end", style="bold"), _table(metrics, runs)]
    for picture in charts:
        series = [Series(line.label, line.points) for line in picture.lines]
        parts += [
            Text(f"\n{picture.title}", style="bold"),
            *chart(series, min(width, 120), 12, ascii),
        ]
    return Group(*parts)


Row = tuple[str, list[str], int | None]  # label, cells, index of the best one


def _about(runs: Sequence[RunRecord]) -> list[Row]:
    summaries = [run.summary for run in runs]
    return [
        ("status", [item.status for item in summaries], None),
        ("steps", [f"{item.step:,}" for item in summaries], None),
        ("took", [humanize.duration(item.seconds) for item in summaries], None),
    ]


def _metric(name: str, values: Sequence[float | None]) -> tuple[list[str], int | None]:
    show = _form(name)
    known = [
        (value, index) for index, value in enumerate(values) if value is not None and value == value
    ]
    best = None
    if len({value for value, _ in known}) > 1:
        if name.endswith((*_LOWER, "_bytes", "seconds_per_step")):
            best = min(known)[1]
        elif name.endswith(_HIGHER):
            best = max(known)[1]
    return ["-" if value is None else show(value) for value in values], best


def _form(name: str) -> Callable[[float], str]:
    if name.endswith("_bytes"):
        return humanize.size
    return humanize.count if name.endswith("per_second") else humanize.number


def _table(rows: Sequence[Row], runs: Sequence[RunRecord]) -> Table:
    """One row a fact, one column a run; the best value is bold and has a star."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column("", style="dim", no_wrap=True)
    for index, run in enumerate(runs):
        head = Text.assemble(
            (letter(index), f"bold {colour(index)}"), f" {printable(run.summary.name)}"
        )
        grid.add_column(head, overflow="fold", justify="left")
    for label, cells, best in rows:
        shown = [
            Text(f"{cell} *", style="bold") if index == best else Text(cell)
            for index, cell in enumerate(cells)
        ]
        grid.add_row(label, *shown)
    return grid
