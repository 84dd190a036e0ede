"""Options that the commands of `chuk model` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelArgument = Annotated[
    str,
    typer.Argument(help="A folder, run, checkpoint, adapter or cached hub id.", metavar="MODEL"),
]
RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of a hub model.", metavar="NAME"),
]
NewFolderOption = Annotated[
    Path, typer.Option("--output", "-o", help="Folder of the new model.", metavar="DIR")
]
