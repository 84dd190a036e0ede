"""What all commands have in common: no option is given twice in silence, and any setting may be
typed as a flag.

Settings without a flag of their own, and the names that other tools have for them, are taken as
flags too: `--weight-decay 0.1` and `--lr 1e-4` are what `--set weight_decay=0.1` and
`--learning-rate 1e-4` are."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from chuk_lib.config.settings import Setting

# Typer 0.26 to 0.28 name it in no other public way.
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
FLAGS = "chuk_cli.flags"
"""Where the context holds the settings that were typed as flags without having one: {name as typed:
text or bool}."""
WORDS = "chuk_cli.words"
"""Where the context holds the arguments as they were typed, for options that answer at once."""
SettingNames = Callable[[], "Mapping[str, Setting]"]
_SUGGEST_FROM = 0.7


class Command(TyperCommand):
    """A command whose options are refused when they stand twice, and which knows its settings by
    every name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer does. Raises ConfigError for an option that is given twice; an unknown one gets
        the right hint."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        ctx.meta[WORDS] = list(args)
        try:
            args = self._take_settings(ctx, args)
            self._refuse_twice(ctx, args)
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            self._explain(error)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises ConfigError for a `CHUK_…` variable that means nothing."""
        from chuk_lib.config.environment import refuse_unknown

        refuse_unknown(os.environ, _setting_variables)
        return super().invoke(ctx)

    def _options(self) -> dict[str, Any]:
        names = (
            (name, param) for param in self.params for name in (*param.opts, *param.secondary_opts)
        )
        # Arguments have names without.
        return {name: param for name, param in names if name.startswith("-")}

    def _settings(self) -> Mapping[str, Setting]:
        """The settings of the command by every name that is understood, as flags."""
        names: SettingNames | None = getattr(self.callback, "setting_names", None)
        return {_flag(name): item for name, item in names().items()} if names else {}

    def _take_settings(self, ctx: Any, args: Sequence[str]) -> list[str]:
        """The words that are left when settings without a flag are taken out; `--learning_rate` has
        dashes then."""
        options, kept, words = self._options(), list[str](), list(args)
        taken: dict[str, Any] = {}
        while words:
            word = words.pop(0)
            if word == "--":
                return [*kept, word, *words]
            flag, equals, text = word.partition("=")
            option = options.get(flag) or options.get(
                _flag(flag[2:]) if flag.startswith("--") else flag
            )
            if option is not None:
                kept.append(word if flag in options else _flag(flag[2:]) + equals + text)
                if not equals and not option.is_flag and words:
                    kept.append(words.pop(0))
            elif (found := self._setting(flag)) is None:
                kept.append(word)
            else:
                item, on = found
                name = flag[2:].replace("-", "_").removeprefix("" if on else "no_")
                _refuse_second(item, flag, taken)
                taken[name] = _value(item, word, on, text if equals else None, words)
        ctx.meta[FLAGS] = taken
        return kept

    def _setting(self, flag: str) -> tuple[Setting, bool] | None:
        """The setting that a flag without an option means, and whether it is switched on."""
        if not flag.startswith("--"):
            return None
        known, name = self._settings(), _flag(flag[2:])
        if name in known:
            return known[name], True
        positive = known.get(_flag(name[5:])) if name.startswith("--no-") else None
        return (positive, False) if positive is not None and positive.base_type is bool else None

    def _refuse_twice(self, ctx: Any, args: Sequence[str]) -> None:
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        options = [
            param for param in order if param.param_type_name == "option" and not param.is_eager
        ]
        for param, times in Counter[Any](options).items():
            if times > 1 and not param.multiple:
                raise ConfigError(
                    f"`{param.opts[0]}` is given {_times(times)}", _how_to_give_one(param)
                )
        known = self._settings() if ctx.meta[FLAGS] else {}
        for name in ctx.meta[FLAGS]:
            item = known[_flag(name)]
            for param in options:
                if param.name in (item.name, *item.aliases):
                    raise ConfigError(
                        f"`{param.opts[0]}` and `{_flag(name)}` are one setting", "give it once"
                    )

    def _explain(self, error: Any) -> None:
        """Give an unknown option the nearest names of all that would be taken, or what to do
        instead."""
        if not hasattr(error, "possibilities"):
            return
        from chuk_lib.config.foreign import instead_of

        flag = _flag(error.option_name.lstrip("-"))
        settings = self._settings()
        hint = instead_of(flag[2:].replace("-", "_")) if settings else ""
        near = difflib.get_close_matches(
            flag, [*self._options(), *settings], n=2, cutoff=_SUGGEST_FROM
        )
        error.possibilities, error.hint = (None if hint else near), hint
        if not hint and not near and settings:
            error.hint = (
                f"`chuk config show {self.name}` lists all settings, `{error.ctx.command_path}"
                " --help` the rest"
            )


class App(typer.Typer):
    """A Typer application whose commands are `Command`s."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """As Typer's."""
        return super().command(name, **{"cls": Command, **settings})


def _flag(name: str) -> str:
    return "--" + name.lstrip("-").replace("_", "-")


def _value(item: Setting, word: str, on: bool, text: str | None, words: list[str]) -> Any:
    """What a setting's flag says: the text after it; a switch may stand alone, or before true or
    false."""
    if item.base_type is bool:
        follows = words[0].lower() if words else ""
        if text is None and follows in ("true", "false"):
            text = words.pop(0)
        return on if text is None else text if on else _no_value(word)
    if text is None and not words:
        raise ConfigError(f"`{word}` needs a value", f"{item.name}: {item.help}")
    return words.pop(0) if text is None else text


def _no_value(word: str) -> Any:
    raise ConfigError(f"`{word}` takes no value", f"write `{word.partition('=')[0]}`")


def _refuse_second(item: Setting, flag: str, taken: Mapping[str, Any]) -> None:
    for name in taken:
        if name in (item.name, *item.aliases):
            raise ConfigError(f"`{_flag(name)}` and `{flag}` are one setting", "give it once")


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"


def _how_to_give_one(param: Any) -> str:
    if param.name == "data":
        return "give one; `chuk data mix A B --output BOTH` makes one file of several"
    return "one value counts, so the others would do nothing: give it once"


def _setting_variables() -> set[str]:
    from chuk_lib.training.pipeline.config import setting_variables

    return setting_variables()
