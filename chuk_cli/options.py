"""Options that mean the same in every command. Defaults stand in the commands, the words here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Model: a folder, a run, a checkpoint or a hub id.", metavar="MODEL"
    ),
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        help="Data: a file, a folder, a hub dataset id, or - for stdin.",
        metavar="DATA",
    ),
]
SourcesOption = Annotated[
    list[str],
    typer.Option(
        "--data",
        "-d",
        help="Data: a file, a folder, a hub dataset id, or - for stdin; repeat it for several.",
        metavar="DATA",
    ),
]
MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="prompt=question takes the column `question` for `prompt`; repeatable.",
        metavar="NAME=COLUMN",
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to write the result.", metavar="PATH")
]
ImplementationOption = Annotated[
    str,
    typer.Option(
        "--implementation", help="Whose code runs the model: auto, chuk or mlx-lm.", metavar="NAME"
    ),
]
TemplateOptionsOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs",
        help='What the chat template is told: {"enable_thinking": false}.',
        metavar="JSON",
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", help="Seed of everything random.", min=0, max=2**32 - 1)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON on stdout and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Write the bare result only.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is already there.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
]
