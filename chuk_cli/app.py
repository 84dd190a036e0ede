"""The root of the command line and its one error boundary."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer
from typer.main import get_command

from chuk_cli import __version__, ctrl_c
from chuk_cli.command import USAGE_ERROR
from chuk_cli.errors import FAILURE, INTERRUPTED, report, report_usage
from chuk_cli.lazy import LazyGroup

app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"chuk {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Post-training for language models with MLX."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Every failure is told here and nowhere
    else."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in options
    _prepare_process()
    try:
        ctrl_c.unwind()
        code = get_command(app)(args=list(arguments), prog_name="chuk", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _leave_closed_pipe()
    except typer.Abort:
        return FAILURE
    except USAGE_ERROR as error:
        return report_usage(error, as_json)
    except Exception as error:  # the one place where a bug becomes an apology
        return INTERRUPTED if ctrl_c.was_pressed() else report(error, as_json)
    finally:
        ctrl_c.end()
    return code if isinstance(code, int) else 0


def _prepare_process() -> None:
    """What cannot be encoded is written escaped; SIGTERM and SIGHUP unwind, so that half-written
    files are removed. The process is chuk's own."""
    from chuk_lib.runtime.process import own_process

    own_process()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def _leave_closed_pipe() -> int:
    """Whoever read our output has left: no message, and nothing more to write at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILURE
