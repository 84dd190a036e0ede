"""`chuk train`: fine-tune a model, or go on with a run that stopped."""

from __future__ import annotations

import typer

from chuk_cli.train.grpo import grpo
from chuk_cli.train.pipeline import pipeline
from chuk_cli.train.ppo import ppo
from chuk_cli.train.preferences import cpo, dpo, kto, orpo, reward
from chuk_cli.train.resume import resume
from chuk_cli.train.sft import sft

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fine-tune a model, or go on with a run.")
app.command()(sft)
app.command()(dpo)
app.command()(kto)
app.command()(orpo)
app.command()(cpo)
app.command()(grpo)
app.command()(ppo)
app.command()(reward)
app.command(no_args_is_help=True)(pipeline)
app.command(no_args_is_help=True)(resume)
