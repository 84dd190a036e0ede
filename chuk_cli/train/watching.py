"""A training job under the display that fits the mode, and what is said when it is over."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from chuk_cli import humanize
from chuk_cli.interrupt import Stop
from chuk_cli.out import Out, glyph
from chuk_cli.streams import lasting_stdout
from chuk_lib.config.settings import Resolved
from chuk_lib.errors import ConfigError
from chuk_lib.training.config import TrainerConfig

if TYPE_CHECKING:
    from chuk_cli.dashboard.board import Board
    from chuk_lib.events import Event, Sink
    from chuk_lib.training.online.episode import MakePlayer
    from chuk_lib.training.run import Join, RunResult

Train = Callable[["Sequence[Sink]", Callable[[], bool]], "RunResult"]


def run(
    out: Out,
    algorithm: str,
    settings: Resolved[Any],
    overwrite: bool,
    make_player: MakePlayer | None = None,
) -> None:
    """Train with an algorithm of `chuk_lib.training.recipes`, watched; `make_player` as in
    `jobs.train`."""

    def train(sinks: Sequence[Sink], should_stop: Callable[[], bool]) -> RunResult:
        from chuk_lib.training.jobs import train as start

        return start(
            algorithm,
            settings.value,
            origins=settings.origins,
            sinks=sinks,
            should_stop=should_stop,
            overwrite=overwrite,
            make_player=make_player,
            join=joiner(settings.value),
        )

    watch(out, train)


def joiner(config: Any) -> Join | None:
    """How a run joins the parameter server that its settings name, if any. Raises ConfigError
    where Ray is missing."""
    if getattr(config, "parameter_server", None) is None:
        return None
    from chuk_lib.distributed import join
    from chuk_lib.distributed.cluster import require_ray

    require_ray()
    return join


def require(config: TrainerConfig) -> None:
    """Raise ConfigError that names the option for what nobody gave."""
    for name, value in (("model", config.model), ("data", config.data)):
        if not value:
            raise ConfigError(
                f"no {name} given", f"add `--{name} …`, or `{name}:` to a `--config` file"
            )


def watch(out: Out, train: Train) -> None:
    """Run a training job under the display that fits the mode, say what came of it, and exit 129
    and up if stopped.

    The run does not need those who read along: a terminal or a pipe may close.
    """
    from chuk_cli.dashboard.board import Board

    board = Board()
    with lasting_stdout():
        with ExitStack() as stack:
            stop = stack.enter_context(
                Stop(on_first=lambda: out.say(STOPPING), on_second=lambda: show_cursor())
            )
            sinks = [board.see, lambda event: arm(stop, event), *displays(out, stack)]
            result = train(sinks, stop)
        _tell_result(out, board, result, stopped=stop() and result.reason == "stopped")
    if stop() and result.reason == "stopped":
        raise typer.Exit(stop.exit_code)


def _tell_result(out: Out, board: Board, result: RunResult, stopped: bool) -> None:
    from chuk_lib.experts.config import NAME as EXPERT

    if summary := _summary(board):
        out.say(summary)
    for text in result.left_out:
        out.say(f"note: {text}")
    if stopped:
        out.say(f"resume: `chuk train resume {shlex.quote(nearest(result.run_dir))}`")
    elif board.about.get("algorithm") == EXPERT:
        out.say(f"next: `chuk experts run {shlex.quote(nearest(result.run_dir))}`")
    elif board.about.get("algorithm") == "reward":
        out.say(
            "next: `chuk train grpo --reward"
            f" reward_model:path={shlex.quote(nearest(result.run_dir))} …`"
        )
    else:
        out.say(f"next: `{_next_command(board, result)}`")
    _print_path(out, result)


STOPPING = "stopping: the step is finished and saved first; once more quits at once"


def arm(stop: Stop, event: Event) -> None:
    """From the first event on, a signal lets the step finish."""
    if event.kind == "started":
        stop.arm()


def show_cursor() -> None:
    """Give the terminal its cursor back: the live view has hidden it."""
    if sys.stderr.isatty():
        sys.stderr.write("\033[?25h\n")


def displays(out: Out, stack: ExitStack) -> list[Sink]:
    """JSON lines, nothing, the live view or plain lines."""
    if out.json:
        from chuk_lib.events import JsonLines

        return [JsonLines(sys.stdout)]
    if out.quiet:
        return []
    if sys.stderr.isatty() and not out.err_console.is_dumb_terminal:
        from chuk_cli.dashboard.live import LiveView

        return [stack.enter_context(LiveView(out.err_console, ascii=not glyph("━⠿╭", "")))]
    from chuk_cli.dashboard.lines import Lines

    out.say("getting ready: libraries, model, data")
    return [Lines(sys.stderr)]


def _summary(board: Board) -> str:
    """The losses and the pace; how it ended and how long it took stand in the display's last
    line."""
    speed = board.latest.get("tokens_per_second")
    parts = [f"{board.watched} {humanize.number(board.line[-1][1])}"] if board.line else []
    parts += [f"eval {board.watched} {humanize.number(board.evals[-1][1])}"] if board.evals else []
    if board.best_eval:
        step, loss = board.best_eval
        parts.append(f"best {humanize.number(loss)} at step {step:,}")
    parts += [f"{humanize.count(speed)} tokens/s"] if speed is not None else []
    return "result: " + ", ".join(parts) if parts else ""


def _next_command(board: Board, result: RunResult) -> str:
    """The command that tries the model out, with the last sample's prompt when it is short."""
    sampled = (board.sample or {}).get("prompt", "")
    prompt = (
        sampled
        if 0 < len(sampled) <= 60 and "\n" not in sampled and "`" not in sampled
        else "Hello"
    )
    return (
        f"chuk infer --model {shlex.quote(nearest(result.run_dir))} --prompt {shlex.quote(prompt)}"
    )


def nearest(path: Path) -> str:
    """The path as seen from here when that is shorter."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _print_path(out: Out, result: RunResult) -> None:
    """The run directory on stdout; in JSON mode the events have said it."""
    if not out.json:
        where: dict[str, Any] = {"run_dir": str(result.run_dir)}
        out.result(where, human=nearest(result.run_dir), quiet=nearest(result.run_dir))
