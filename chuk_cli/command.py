"""What all commands have in common: no option is given twice in silence, and any setting may be
typed as a flag.

Settings without a flag of their own, and the names that other tools have for them, are taken as
flags too: `--weight-decay 0.1` and `--lr 1e-4` are what `--set weight_decay=0.1` and
`--learning-rate 1e-4` are."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from chuk_cli.flags import Words, as_flag
from chuk_cli.out import Out
from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from chuk_lib.config.settings import Setting

# Typer 0.26 to 0.28 name it in no other public way.
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
FLAGS = "chuk_cli.flags"
"""Where the context holds the settings that were typed as flags without having one: {name as typed:
text or bool}."""
NOTES = "chuk_cli.notes"
"""Where the context holds what is to be said about the spelling of words."""
WORDS = "chuk_cli.words"
"""Where the context holds the arguments as they were typed, for options that answer at once."""
SettingNames = Callable[[], "Mapping[str, Setting]"]
_SUGGEST_FROM = 0.7
_METAVARS = {
    "int": "INTEGER",
    "int range": "INTEGER",
    "float": "NUMBER",
    "float range": "NUMBER",
    "str": "TEXT",
}


class Command(TyperCommand):
    """A command whose options are refused when they stand twice, and which knows its settings by
    every name."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for param in self.params:
            if not param.metavar and not getattr(param, "is_flag", True):
                param.metavar = _METAVARS.get(param.type.name)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer does. Raises ConfigError for an option that is given twice; an unknown one gets
        the right hint."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        ctx.meta[WORDS] = list(args)
        try:
            words = Words(self.params, self._settings()).read(args)
            ctx.meta[FLAGS], ctx.meta[NOTES] = words.taken, words.notes
            self._refuse_twice(ctx, words)
            return super().parse_args(ctx, words.kept)
        except USAGE_ERROR as error:
            self._explain(error)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises ConfigError for a `CHUK_…` variable that means nothing."""
        from chuk_lib.config.environment import refuse_unknown

        refuse_unknown(os.environ, _setting_variables)
        given = ctx.params.get
        for note in ctx.meta.get(NOTES, ()):
            Out.of(given("json", False), given("quiet", False)).note(note)
        return super().invoke(ctx)

    def _settings(self) -> Mapping[str, Setting]:
        """The settings of the command by every name that is understood, as flags."""
        names: SettingNames | None = getattr(self.callback, "setting_names", None)
        return {as_flag(name): item for name, item in names().items()} if names else {}

    def _refuse_twice(self, ctx: Any, words: Words) -> None:
        _, _, order = self.make_parser(ctx).parse_args(list(words.kept))
        options = [
            param for param in order if param.param_type_name == "option" and not param.is_eager
        ]
        for param, times in Counter[Any](options).items():
            if times > 1 and not param.multiple:
                raise ConfigError(
                    f"`{param.opts[0]}` is given {_times(times)}", _how_to_give_one(param)
                )
        for name, word in words.typed.items():
            item = words.settings[as_flag(name)]
            for param in options:
                if param.name in (item.name, *item.aliases):
                    raise ConfigError(
                        f"`{param.opts[0]}` and `{word}` are one setting", "give it once"
                    )

    def _explain(self, error: Any) -> None:
        """Give an unknown option the nearest names of all that would be taken, or what to do
        instead."""
        if not hasattr(error, "possibilities"):
            return
        from chuk_lib.config.foreign import instead_of

        flag = as_flag(error.option_name.lstrip("-"))
        settings = self._settings()
        hint = instead_of(flag[2:].replace("-", "_")) if settings else ""
        own = {name for param in self.params for name in param.opts if name.startswith("--")}
        near = difflib.get_close_matches(flag, own | {*settings}, n=2, cutoff=_SUGGEST_FROM)
        error.possibilities, error.hint = (None if hint else near), hint
        if not hint and settings and (others := _commands_with(flag)):
            kept = "a run keeps it: `--model RUN` starts another one from the run's weights"
            words = kept if self.name == "resume" else f"it is a setting of {others}"
            error.possibilities, error.hint = None, words
        elif not hint and not near and settings:
            error.hint = (
                f"`chuk config show {self.name}` lists all settings, `{error.ctx.command_path}"
                " --help` the rest"
            )


class App(typer.Typer):
    """A Typer application whose commands are `Command`s."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """As Typer's."""
        return super().command(name, **{"cls": Command, **settings})


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"


def _how_to_give_one(param: Any) -> str:
    if param.name == "data":
        return "give one; `chuk data mix A B --output BOTH` makes one file of several"
    return "one value counts, so the others would do nothing: give it once"


def _commands_with(flag: str) -> str:
    """The training commands that have a setting of this name."""
    from chuk_lib.config.settings import spellings
    from chuk_lib.training.recipes import RECIPES, config_class

    name = flag[2:].replace("-", "_")
    having = [command for command in RECIPES if name in spellings(config_class(command))]
    return ", ".join(f"`chuk train {command}`" for command in having)


def _setting_variables() -> set[str]:
    from chuk_lib.training.pipeline.config import setting_variables

    return setting_variables()
