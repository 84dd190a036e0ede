"""`chuk train`: fine-tune a model, or go on with a run that stopped."""

from __future__ import annotations

import typer

from chuk_cli.train.resume import resume
from chuk_cli.train.sft import sft

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fine-tune a model, or go on with a run.")
app.command()(sft)
app.command(no_args_is_help=True)(resume)
