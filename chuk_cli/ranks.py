"""`--nproc`, `--hosts`: one training command as several processes, on one machine or several."""

from __future__ import annotations

import sys
from pathlib import Path
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

HostsOption = Annotated[
    str | None,
    typer.Option(
        "--hosts",
        metavar="NAMES",
        rich_help_panel=_PANEL,
        help="Machines that train together, this one first: a,b,c, as ssh knows them; --nproc is"
        " the number of processes on each.",
    ),
]
HostfileOption = Annotated[
    Path | None,
    typer.Option(
        "--hostfile",
        metavar="FILE",
        rich_help_panel=_PANEL,
        help="The same from a file, as `mlx.distributed_config` writes it.",
    ),
]

RANK_OPTIONS = {
    "nproc": NprocOption,
    "hosts": HostsOption,
    "hostfile": HostfileOption,
    "comm_timeout": CommTimeoutOption,
}
"""All by the names of their parameters."""


def over_ranks(
    nproc: str | None,
    comm_timeout: float | None,
    hosts: str | None = None,
    hostfile: Path | None = None,
    data: Any = None,
) -> None:
    """Run this command line again as `nproc` processes on each machine, and exit with what becomes
    of them; return in a process that is one of several already, or the only one. Raises
    ConfigError, and TrainingError for a machine that cannot take part."""
    from chuk_lib.runtime.world import launched, set_timeout

    if comm_timeout is not None:
        set_timeout(comm_timeout)
    wanted = hosts is not None or hostfile is not None
    if launched() or (nproc is None and not wanted):
        return
    from chuk_lib.runtime.hosts import read_hosts
    from chuk_lib.runtime.launcher import launch, number_of

    machines = read_hosts(hosts, hostfile) if wanted else []
    size = number_of(nproc or "1")
    if size == 1 and len(machines) < 2:
        return
    if data == "-":
        raise ConfigError(
            "data from stdin cannot go to several processes", "write it to a file first"
        )

    def tell(line: str) -> None:  # an error, so --quiet has it too
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    raise typer.Exit(launch(["-m", "chuk_cli", *sys.argv[1:]], size, tell, machines))
