"""The root group. Its help reads the table below; only the group that was asked for is imported."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, NamedTuple

from typer.core import TyperGroup
from typer.main import get_command


class Group(NamedTuple):
    """One line of the root help, and where the commands are."""

    module: str
    help: str
    panel: str


GROUPS = {
    "train": Group("chuk_cli.commands.train", "Fine-tune a model, or go on with a run.", "Work"),
    "runs": Group("chuk_cli.commands.runs", "List, show, watch, compare and report runs.", "Work"),
    "infer": Group("chuk_cli.commands.infer", "Generate text from a prompt, a file or a pipe.", "Work"),
    "eval": Group("chuk_cli.commands.eval", "Measure a model on data.", "Work"),
    "data": Group("chuk_cli.commands.data", "Make, check and look at data.", "Prepare"),
    "batch": Group("chuk_cli.commands.batch", "Build, measure and check batches on disk.", "Prepare"),
    "config": Group("chuk_cli.commands.config", "List, show, check and convert settings files.", "Prepare"),
    "model": Group("chuk_cli.commands.model", "List, show, download and make models.", "Inspect"),
    "tokenizer": Group("chuk_cli.commands.tokenizer", "Train, use, compare and check tokenizers.", "Inspect"),
    "doctor": Group("chuk_cli.commands.doctor", "Check this machine: device, versions, speed.", "Inspect"),
}


class LazyGroup(TyperGroup):
    """A group whose commands are stubs until one of them is resolved."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, group in GROUPS.items():
            self.commands[name] = TyperGroup(name=name, help=group.help, rich_help_panel=group.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The named command with its module imported, and the arguments that are left."""
        name, stub, rest = super().resolve_command(ctx, args)
        if name not in GROUPS:
            return name, stub, rest
        self.commands[name] = load(name)
        return name, self.commands[name], rest


def load(name: str) -> Any:
    """Import a group of the table and return its command, ready for help."""
    command = get_command(import_module(GROUPS[name].module).app)
    command.name = name
    _keep_examples(command, plain=os.environ.get("TYPER_USE_RICH") == "0")
    return command


def _keep_examples(command: Any, plain: bool) -> None:
    """Mark what follows `Examples:` in each help text, so that its lines are not joined or read as markup."""
    text, mark, examples = (command.help or "").partition("\nExamples:")
    if mark and plain:
        blocks = [block for block in examples.split("\n\n") if block.strip()]
        command.help = text.rstrip() + "\n\n\b" + mark + "\n\n\b\n".join(blocks)
    elif mark:
        command.help = text.rstrip() + "\n" + (mark + examples).replace("[", "\\[")
    for inner in getattr(command, "commands", {}).values():
        _keep_examples(inner, plain)
