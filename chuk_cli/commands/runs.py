"""`chuk runs`: look at what training left behind, or is doing just now."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chuk_cli.command import App
from chuk_cli.options import JsonOption, OverwriteOption, QuietOption, YesOption
from chuk_cli.out import Out
from chuk_cli.runs.options import (
    MetricOption,
    RunArgument,
    RunsArgument,
    is_ascii,
    load,
    load_all,
    locate,
    locate_newest,
    width_of,
)
from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from chuk_cli.dashboard.board import Board
    from chuk_lib.runs.record import RunRecord
    from chuk_lib.runs.summary import Summary

app = App(
    no_args_is_help=True, add_completion=False, help="List, show, watch, compare and report runs."
)


@app.command("ls")
def list_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of runs.")] = Path("runs"),
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", metavar="CONDITION", help="key=value, key!=value, key<value …; repeat it."
        ),
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", metavar="KEY", help="Order by this; -KEY: largest first.")
    ] = "-began",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List runs with their state, losses, age and size.

    Keys are the columns (name, status, step, loss, eval_loss, best, seconds, age, size, algorithm,
    model), every setting and every metric. Values may hold `*`. A run is running when a process
    trains in it, killed when none does and the log has no end.

    Examples:
      chuk runs ls
      chuk runs ls --filter status=done --filter 'best<1.5' --sort best
      chuk runs ls experiments --filter 'model=*qwen*' --filter learning_rate=1e-4
      chuk runs ls --filter status=done -q | xargs -n 1 chuk runs report
    """
    from chuk_lib.config.settings import spellings
    from chuk_lib.runs.find import RUNS, list_runs
    from chuk_lib.runs.query import arrange, select
    from chuk_lib.runs.summary import summarize
    from chuk_lib.training.config import TrainerConfig

    out = Out.of(json, quiet)
    paths = [] if folder == RUNS and not folder.exists() else list_runs(folder)
    runs = [summarize(path) for path in paths]
    known = spellings(TrainerConfig)
    chosen = arrange(select(runs, filters or [], known), sort, known) if runs else []
    if out.human and not chosen:
        out.say(
            f"none of {len(runs)} runs fits"
            if runs
            else f"no runs in `{folder}`; `chuk train` makes one"
        )
        return
    if out.human:
        _tell_list(out, chosen)
    else:
        out.result([run.as_dict() for run in chosen], quiet=[run.path for run in chosen])


def _tell_list(out: Out, runs: Sequence[Summary]) -> None:
    from chuk_cli.runs.listing import table

    grid, hidden = table(runs, out.console.width)
    out.result([], human=grid)
    if hidden:
        out.say(f"not shown for want of width: {', '.join(hidden)}; see `--json`")


@app.command()
def show(
    run: RunArgument = None,
    completions: Annotated[
        bool,
        typer.Option(
            "--completions",
            help="Show what the model wrote while it was trained, with its rewards.",
        ),
    ] = False,
    step: Annotated[
        int | None,
        typer.Option(
            "--step", min=1, help="With --completions: of this step. Default: the last one."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="With --completions: at most so many.")
    ] = 16,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show one run: curves, chosen settings, samples, environment, checkpoints.

    Examples:
      chuk runs show
      chuk runs show first
      chuk runs show runs/first --json | jq .settings
      chuk runs show grpo-run --completions --step 40
    """
    out = Out.of(json, quiet)
    if completions:
        from chuk_cli.runs.completions import show_completions

        show_completions(out, locate_newest(run, out), step, limit)
        return
    if step is not None:
        raise ConfigError("`--step` does nothing without --completions", "add --completions")
    found = load(run, out)
    human = None
    if out.human:
        from chuk_cli.runs.show import page

        human = page(found, width_of(out), is_ascii())
    out.result(found.as_dict(), human=human, quiet=str(found.path))
    if found.summary.error:
        out.say(f"it failed: {found.summary.error}")
    if found.summary.status in ("stopped", "failed", "killed") and found.checkpoints:
        out.say(f"resume: `chuk train resume {shlex.quote(str(found.path))}`")


@app.command()
def watch(run: RunArgument = None, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Watch a run that another process trains, until it ends. Ctrl-C leaves the run alone.

    With --json every event is a line, as from `chuk train --json`. Exits with 1 when the run failed
    or was killed.

    Examples:
      chuk runs watch
      chuk runs watch first
      chuk runs watch first --quiet && chuk eval --model runs/first --data test.jsonl
    """
    from chuk_cli.runs.watch import watch as follow

    out = Out.of(json, quiet)
    path = locate_newest(run, out)
    _close_watch(out, path, follow(path, out))


def _close_watch(out: Out, path: Path, board: Board) -> None:
    if out.quiet:
        out.result({}, quiet=str(path))
    reason = "killed" if board.finished is None else str(board.finished.get("reason", "done"))
    if reason == "failed" and board.finished and board.finished.get("error"):
        out.say(f"it failed: {board.finished['error']}")
    if reason in ("killed", "failed", "stopped"):
        out.say(f"resume: `chuk train resume {shlex.quote(str(path))}`")
    if reason in ("killed", "failed"):
        raise typer.Exit(1)


@app.command()
def plot(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN…", help="Runs; default: the newest.")
    ] = None,
    metric: MetricOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write .svg, or .png with matplotlib."),
    ] = None,
    log: Annotated[
        bool, typer.Option("--log", help="Logarithmic values, in the terminal.")
    ] = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Plot metrics of one or more runs, in the terminal or as a picture.

    A metric and its evaluation (loss, eval_loss) share a chart; others get their own.

    Examples:
      chuk runs plot first
      chuk runs plot first second --metric loss,eval_loss,learning_rate
      chuk runs plot first second --output losses.svg
    """
    from chuk_cli.runs.plotting import last_values, terminal
    from chuk_lib.runs.figures import pictures

    out = Out.of(json, quiet)
    found = load_all(list(runs)) if runs else [load(None, out)]
    charts = pictures(found, metric)
    if output is not None:
        from chuk_lib.runs.images import save_pictures

        _refuse_existing(output, overwrite)
        save_pictures(charts, output)
        out.result({"output": str(output)}, human=str(output), quiet=str(output))
        return
    data = [
        {"title": chart.title, "lines": [vars(line) for line in chart.lines]} for chart in charts
    ]
    out.result(
        data, human=terminal(out, charts, log) if out.human else None, quiet=last_values(charts)
    )


@app.command(no_args_is_help=True)
def compare(
    runs: RunsArgument,
    metric: MetricOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare runs: settings that differ, final metrics, curves over each other.

    Examples:
      chuk runs compare first second
      chuk runs compare runs/sweep-* --metric eval_loss
      chuk runs compare first second --json | jq .settings
    """
    from chuk_cli.runs.compare import as_dict, page
    from chuk_lib.runs.figures import pictures

    out = Out.of(json, quiet)
    found = load_all(runs)
    if len(found) < 2:
        raise ConfigError("comparing takes at least two runs", "`chuk runs show` shows one")
    human = page(found, pictures(found, metric), width_of(out), is_ascii()) if out.human else None
    out.result(as_dict(found), human=human, quiet=[_best_first(found)])


def _best_first(runs: list[RunRecord]) -> str:
    """The run with the best evaluation, or the last loss or reward where none was evaluated: the
    highest reward when all have one, else the lowest loss."""
    by_reward = all(
        run.summary.reward is not None or run.summary.eval_reward is not None for run in runs
    )
    sign, last = (-1.0, "reward") if by_reward else (1.0, "loss")
    values = [
        run.summary.best if run.summary.best is not None else getattr(run.summary, last)
        for run in runs
    ]
    rank = [None if value is None else sign * value for value in values]
    known = [
        (value, index) for index, value in enumerate(rank) if value is not None and value == value
    ]
    return str(runs[min(known)[1] if known else 0].path)


@app.command()
def report(
    run: RunArgument = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to; default: report.html in the run."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a run, or a whole pipeline, as one HTML page with interactive curves.

    The page needs no network and no other file.

    Examples:
      chuk runs report first
      chuk runs report first --output first.html
      chuk runs report runs/pipeline
    """
    from chuk_cli.runs.pipeline_report import write_pipeline_report
    from chuk_cli.runs.report import write_report
    from chuk_lib.runs.find import is_pipeline

    out = Out.of(json, quiet)
    pipeline = next((folder for folder in _folders(run) if is_pipeline(folder)), None)
    folder = pipeline or locate(run)
    target = output or folder / "report.html"
    if output is not None:
        _refuse_existing(output, overwrite)
    if pipeline is not None:
        write_pipeline_report(folder, target)
    else:
        write_report(load(str(folder), out), target)
    out.result(
        {"output": str(target), "bytes": target.stat().st_size},
        human=str(target),
        quiet=str(target),
    )


def _folders(run: str | None) -> list[Path]:
    """Where a name could be: as a path, or under `runs/`."""
    from chuk_lib.runs.find import RUNS

    return [] if run is None else [Path(run), RUNS / run]


@app.command()
def export(
    run: RunArgument = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Table to write: .csv or .parquet."),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a run's metrics as a table: one row a logged step, evaluations joined.

    Examples:
      chuk runs export first --output first.csv
      chuk runs export first --output first.parquet
    """
    from chuk_lib.runs.export import export as write

    out = Out.of(json, quiet)
    if output is None:
        raise ConfigError(
            "no --output given", "name a .csv or .parquet file, for example `--output run.csv`"
        )
    found = load(run, out)
    _refuse_existing(output, overwrite)
    rows = write(found.log, output)
    out.result(
        {"output": str(output), "rows": rows}, human=f"{output}: {rows:,} rows", quiet=str(output)
    )


@app.command("rm", no_args_is_help=True)
def remove(
    runs: RunsArgument, yes: YesOption = False, json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Remove runs for good. A running one is refused; files that are not chuk's stay.

    Examples:
      chuk runs rm first
      chuk runs rm first second --yes
    """
    from chuk_cli import humanize
    from chuk_lib.errors import TrainingError
    from chuk_lib.runs.files import is_locked, remove_run, size_of

    out = Out.of(json, quiet)
    paths = list(dict.fromkeys(locate(run) for run in runs))
    if running := [str(path) for path in paths if is_locked(path)]:
        raise TrainingError(
            f"a process is training in `{running[0]}`; nothing was removed",
            "stop it with Ctrl-C first",
        )
    total = sum(size_of(path) for path in paths)
    named = ", ".join(f"`{path}`" for path in paths[:3]) + (
        f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    )
    out.confirm(f"Remove {named} ({humanize.size(total)})?", yes)
    removed = []
    for path in paths:
        left = remove_run(path)
        removed.append({"path": str(path), "left": left})
        if left:
            out.warn(f"`{path}` stays, it holds what is not chuk's: {', '.join(left[:5])}")
    said = f"removed {len(paths)} {'run' if len(paths) == 1 else 'runs'}, {humanize.size(total)}"
    out.result(removed, human=said, quiet=[str(path) for path in paths])


def _refuse_existing(output: Path, overwrite: bool) -> None:
    """Raise ConfigError rather than replace a file unasked, or write into a folder that does not
    exist."""
    if output.exists() and (output.is_dir() or not overwrite):
        raise ConfigError(
            f"`{output}` exists already", "--overwrite replaces a file, or choose another --output"
        )
    if not output.parent.is_dir():
        raise ConfigError(
            f"there is no folder `{output.parent}`", "make it first, or choose another --output"
        )
