"""Options that `chuk env play` and `chuk env hybrid` share."""

from __future__ import annotations

from typing import Annotated

import typer

SecondsOption = Annotated[
    float, typer.Option("--max-tool-seconds", metavar="S", min=0.1, help="Deadline of a call.")
]
PlayerOption = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="MODEL", help="Who plays; unset: you, on stdin."),
]
HeatOption = Annotated[
    float, typer.Option("--temperature", "-t", min=0.0, help="Of the model; 0: the likeliest.")
]
