"""`--nproc`: one training command as several processes on this machine."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from chuk_lib.errors import ConfigError

_PANEL = "Devices"

NprocOption = Annotated[
    str | None,
    typer.Option(
        "--nproc",
        metavar="N",
        rich_help_panel=_PANEL,
        help="Processes that train together on this machine: a number, or auto (one a GPU, else"
        " one a core).",
    ),
]
CommTimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--comm-timeout",
        metavar="SECONDS",
        min=1,
        rich_help_panel=_PANEL,
        help="How long processes wait for one that does not come; unset: 600.",
    ),
]

RANK_OPTIONS = {"nproc": NprocOption, "comm_timeout": CommTimeoutOption}
"""The two by the names of their parameters."""


def over_ranks(nproc: str | None, comm_timeout: float | None, data: Any = None) -> None:
    """Run this command line again as `nproc` processes and exit with what becomes of them; return
    in a process that is one of several already, or the only one. Raises ConfigError."""
    from chuk_lib.runtime.world import launched, set_timeout

    if comm_timeout is not None:
        set_timeout(comm_timeout)
    if launched() or nproc is None:
        return
    from chuk_lib.runtime.launcher import launch, number_of

    size = number_of(nproc)
    if size == 1:
        return
    if data == "-":
        raise ConfigError(
            "data from stdin cannot go to several processes", "write it to a file first"
        )
    command = [sys.executable, "-m", "chuk_cli", *sys.argv[1:]]

    def tell(line: str) -> None:  # an error, so --quiet has it too
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    raise typer.Exit(launch(command, size, tell))
