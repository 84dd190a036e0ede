"""Arguments and options that several `chuk runs` commands share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chuk_cli.out import Out, glyph

if TYPE_CHECKING:
    from chuk_lib.runs.record import RunRecord


_WIDTH_OFF_TERMINAL = 100


def complete_run(incomplete: str) -> list[str]:
    """Names of runs under `runs/`, for shell completion."""
    from chuk_lib.runs.find import RUNS, list_runs

    names = [run.relative_to(RUNS).as_posix() for run in list_runs(RUNS)] if RUNS.is_dir() else []
    return [name for name in names if name.startswith(incomplete)]


RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="A run: a path, a name under runs/, or its beginning. Default: the newest.",
        autocompletion=complete_run,
        show_default=False,
    ),
]
RunsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN…", help="Runs: paths or names under runs/.", autocompletion=complete_run
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="Metrics, with commas between. Default: rewards and losses.",
        metavar="LIST",
    ),
]


def locate(run: str | None) -> Path:
    """The directory of the run that is meant; the newest when none is named."""
    from chuk_lib.runs.find import find_run, newest_run

    return find_run(run) if run else newest_run()


def locate_newest(run: str | None, out: Out) -> Path:
    """As `locate`; of a pipeline the stage that was begun last, which is said."""
    from chuk_lib.runs.find import find_runs

    if run is None:
        return locate(None)
    found = find_runs(run)
    if len(found) > 1:
        others = ", ".join(f"`{run}/{path.name}`" for path in found[:-1])
        out.say(f"`{run}` is a pipeline: this is its newest stage; before it: {others}")
    return found[-1]


def load(run: str | None, out: Out) -> RunRecord:
    """Read the run that is meant, of a pipeline its newest stage."""
    from chuk_lib.runs.record import read_run

    return read_run(locate_newest(run, out))


def load_all(runs: list[str]) -> list[RunRecord]:
    """Read several runs, all stages of pipelines among them; one that is named twice is read
    once."""
    from chuk_lib.runs.find import find_runs
    from chuk_lib.runs.record import read_run

    return [
        read_run(path) for path in dict.fromkeys(path for run in runs for path in find_runs(run))
    ]


def width_of(out: Out) -> int:
    """Columns to draw in: the terminal's, at most 160; a sensible number elsewhere."""
    known = out.console.is_terminal or os.environ.get("COLUMNS")
    return max(40, min(out.console.width, 160)) if known else _WIDTH_OFF_TERMINAL


def is_ascii() -> bool:
    """Whether stdout cannot encode the lines of a chart."""
    return not glyph("━⠿╭", "", sys.stdout)
