"""Arguments and options that several `chuk runs` commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from chuk_lib.runs.record import Run


def complete_run(incomplete: str) -> list[str]:
    """Names of runs under `runs/`, for shell completion."""
    from chuk_lib.runs.find import RUNS, list_runs

    return [run.name for run in list_runs(RUNS) if run.name.startswith(incomplete)] if RUNS.is_dir() else []


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
    typer.Argument(metavar="RUN…", help="Runs: paths or names under runs/.", autocompletion=complete_run),
]
MetricOption = Annotated[
    str | None,
    typer.Option("--metric", help="Metrics, with commas between. Default: rewards and losses.", metavar="LIST"),
]


def locate(run: str | None) -> Path:
    """The directory of the run that is meant; the newest when none is named."""
    from chuk_lib.runs.find import find_run, newest_run

    return find_run(run) if run else newest_run()


def load(run: str | None) -> Run:
    """Read the run that is meant."""
    from chuk_lib.runs.record import read_run

    return read_run(locate(run))


def load_all(runs: list[str]) -> list[Run]:
    """Read several runs; one that is named twice is read once."""
    from chuk_lib.runs.record import read_run

    return [read_run(path) for path in dict.fromkeys(locate(run) for run in runs)]
