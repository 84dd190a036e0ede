"""Groups whose help reads a table, and which import only what was asked for: the root below, and
`chuk train`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

from typer.core import TyperGroup
from typer.main import get_command

from chuk_cli.command import App


class LazyCommand(NamedTuple):
    """One line of a group's help, and where the commands are: a module with an `app`, or
    `module:function`."""

    module: str
    help: str
    panel: str | None = None
    no_args_is_help: bool = False


Table = Mapping[str, LazyCommand]


GROUPS = {
    "train": LazyCommand(
        "chuk_cli.commands.train", "Fine-tune a model, or go on with a run.", "Work"
    ),
    "runs": LazyCommand(
        "chuk_cli.commands.runs", "List, show, watch, compare and report runs.", "Work"
    ),
    "infer": LazyCommand(
        "chuk_cli.commands.infer",
        "Generate text from a prompt, a pipe or the rows of a file.",
        "Work",
    ),
    "chat": LazyCommand("chuk_cli.commands.chat", "Talk with a model.", "Work"),
    "serve": LazyCommand("chuk_cli.commands.serve", "Answer HTTP requests with a model.", "Work"),
    "eval": LazyCommand("chuk_cli.commands.eval", "Measure a model on data.", "Work"),
    "data": LazyCommand("chuk_cli.commands.data", "Make, check and look at data.", "Prepare"),
    "batch": LazyCommand(
        "chuk_cli.commands.batch", "Build, measure and check batches on disk.", "Prepare"
    ),
    "config": LazyCommand(
        "chuk_cli.commands.config", "List, show, check and convert settings files.", "Prepare"
    ),
    "model": LazyCommand(
        "chuk_cli.commands.model", "Show, check, compare, merge, pack and make models.", "Inspect"
    ),
    "experts": LazyCommand(
        "chuk_cli.commands.experts", "List, show and play small policies.", "Inspect"
    ),
    "params": LazyCommand(
        "chuk_cli.commands.params", "Serve weights that several workers train.", "Work"
    ),
    "env": LazyCommand(
        "chuk_cli.commands.env", "Look at tools and environments, and call them.", "Inspect"
    ),
    "tokenizer": LazyCommand(
        "chuk_cli.commands.tokenizer", "Train, use, compare and check tokenizers.", "Inspect"
    ),
    "bench": LazyCommand(
        "chuk_cli.commands.bench", "Measure how fast a model writes here.", "Inspect"
    ),
    "doctor": LazyCommand(
        "chuk_cli.commands.doctor", "Check this machine: device, versions, speed.", "Inspect"
    ),
}


class LazyGroup(TyperGroup):
    """A group whose commands are stubs until one of them is resolved. `table` says where they
    are."""

    table: ClassVar[Table] = GROUPS

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, entry in self.table.items():
            self.commands[name] = TyperGroup(
                name=name, help=entry.help, rich_help_panel=entry.panel
            )

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The named command with its module imported, and the arguments that are left."""
        name, stub, rest = super().resolve_command(ctx, args)
        if name is None or name not in self.table:
            return name, stub, rest
        self.commands[name] = load(name, {name: self.entry(name, rest)})
        return name, self.commands[name], rest

    def entry(self, name: str, rest: Sequence[str]) -> LazyCommand:
        """What a name stands for before these arguments."""
        return self.table[name]


def load(name: str, table: Table = GROUPS) -> Any:
    """Import an entry of a table and return its command, ready for help."""
    module, _, function = table[name].module.partition(":")
    imported = import_module(module)
    command = get_command(
        _alone(getattr(imported, function), table[name]) if function else imported.app
    )
    command.name = name
    _keep_examples(command, plain=os.environ.get("TYPER_USE_RICH") == "0")
    return command


def find(words: Sequence[str]) -> Any:
    """The command that some words name, through groups of both kinds."""
    command = load(words[0])
    for word in words[1:]:
        inner = getattr(command, "table", {})
        command = load(word, inner) if word in inner else command.commands[word]
    return command


def _alone(function: Callable[..., Any], entry: LazyCommand) -> App:
    """An application of one command."""
    app = App(add_completion=False)
    app.command(no_args_is_help=entry.no_args_is_help)(function)
    return app


def _keep_examples(command: Any, plain: bool) -> None:
    """Mark what follows `Examples:` in each help text, so that its lines are not joined or read as
    markup."""
    text, mark, examples = (command.help or "").partition("\nExamples:")
    if mark and plain:
        blocks = [block for block in examples.split("\n\n") if block.strip()]
        command.help = text.rstrip() + "\n\n\b" + mark + "\n\n\b\n".join(blocks)
    elif mark:
        command.help = text.rstrip() + "\n" + (mark + examples).replace("[", "\\[")
    for inner in getattr(command, "commands", {}).values():
        _keep_examples(inner, plain)
