"""Dataclass settings as command-line options.

`@with_settings(SFTConfig)` gives a command one option for each setting that has a flag, `--config
FILE` and `--set KEY=VALUE`, and hands it a `Resolved` object: the settings and where each value
came from. Later ones win: defaults < `--config` files in order < `CHUK_<SETTING>` variables <
`--set` < flags that were typed.

A relative path in a file (`model`, `data`, the file of a reward …) means one beside that file when
it exists; otherwise it stays as written (a hub id, or a path from the working directory)."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.command import FLAGS, SettingNames
from chuk_cli.completion import setting_of, settings_files
from chuk_cli.out import Out
from chuk_cli.ranks import RANK_OPTIONS, over_ranks
from chuk_lib.config.files import find
from chuk_lib.config.paths import beside
from chuk_lib.config.settings import (
    Layer,
    Resolved,
    Setting,
    resolve,
    settings_of,
    spellings,
    unknown_name,
)
from chuk_lib.config.yaml_lines import read_entries
from chuk_lib.errors import ConfigError
from chuk_lib.training.config import TrainerConfig
from chuk_lib.training.recipes import RECIPES, config_class

if TYPE_CHECKING:
    from chuk_lib.config.forms.form import Translation

PANEL = "Configuration"
Warn = Callable[[str], None]
_METAVARS = {int: "INTEGER", float: "NUMBER", int | float: "NUMBER", str: "TEXT"}

ConfigOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        metavar="FILE",
        rich_help_panel=PANEL,
        autocompletion=settings_files,
        help=(
            "YAML file of settings, or the name of one that comes with chuk (`chuk config ls`);"
            " repeat it, later ones win."
        ),
    ),
]


def _set_option(cls: type, command: str) -> Any:
    """`--set`, whose keys are the settings of a dataclass."""
    of = command if command in RECIPES else "sft"
    words = (
        f"Any setting by its name (`chuk config show {of}` has all); repeat it. --name VALUE is"
        " understood too."
    )
    option = typer.Option(
        "--set",
        metavar="KEY=VALUE",
        rich_help_panel=PANEL,
        help=words,
        autocompletion=setting_of(cls),
    )
    return Annotated[list[str] | None, option]


def with_settings(cls: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the settings of a dataclass as options. Its parameter `settings` receives a
    `Resolved[cls]`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        def with_options(ctx: typer.Context, **given: Any) -> Any:
            flags = {name: given.pop(name) for name in flagged(cls)}
            files, overrides = given.pop("config") or [], given.pop("set_values") or []
            typed = {
                name: value for name, value in flags.items() if was_typed(ctx, name)
            } | ctx.meta.get(FLAGS, {})
            warn = Out.of(given.get("json", False), given.get("quiet", False)).warn
            settings = resolve_settings(cls, files, os.environ, overrides, typed, warn)
            ranks = {name: given.pop(name) for name in RANK_OPTIONS if name in given}
            if ranks and not given.get("dry_run"):
                over_ranks(**ranks, data=settings.value.data)
            return command(settings=settings, **given)

        return dressed(with_options, command, cls, lambda: setting_names(cls))

    return decorate


def resolve_settings(
    cls: type,
    files: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    warn: Warn = lambda text: None,
) -> Resolved[Any]:
    """Merge the layers of a command line. Raises ConfigError that names the file and line, variable
    or option."""
    known = setting_names(cls)
    layers = [layer for file in files for layer in read_config(named_file(file), cls, warn)]
    layers += _from_environment(cls, environment or {})
    layers += [Layer("--set", _assignment(text)) for text in overrides]
    layers += [
        Layer(flag_name(known[name], value), {name: value}) for name, value in (flags or {}).items()
    ]
    return resolve(cls, layers)


def named_file(path: Path) -> Path:
    """A settings file as `--config` names it: a path, or the name of one that comes with chuk.
    Raises ConfigError."""
    return path if path.exists() else find(str(path))


def read_config(path: Path, cls: type, warn: Warn = lambda text: None) -> list[Layer]:
    """The settings of a YAML file, each with `file:line` as its origin. What became of a file in
    another tool's form, or in the old sectioned one, is told to `warn`."""
    from chuk_lib.config.forms import form_of
    from chuk_lib.config.forms.form import refuse_lost, told, translate

    entries = read_entries(path)
    form = form_of(entries)
    if form is not None:
        translation = translate(form, path, cls, command_of(cls))
        refuse_lost(translation)
        warn(told(translation))
        return _layers_of(translation, cls)
    names, known = spellings(cls), settings_of(cls)
    layers = []
    for entry in entries:
        key, value, origin = entry.keys[0], entry.value, f"{path.name}:{entry.line}"
        if not isinstance(key, str):
            raise ConfigError(
                f"`{key}` ({origin}) is no name of a setting",
                "write settings as `name: value` lines",
            )
        if isinstance(value, dict) and not (key in names and known[names[key]].kind == "json"):
            raise ConfigError(
                f"`{key}` ({origin}) is a section", "write settings as flat `name: value` lines"
            )
        if key not in names:
            raise unknown_name(key, list(names), origin)
        layers.append(Layer(origin, {key: beside(path, known[names[key]], value)}))
    return layers


def _layers_of(translation: Translation, cls: type) -> list[Layer]:
    path, known = translation.path, settings_of(cls)
    defaults = [
        Layer(f"{translation.form.name}'s default", {k: v}, weak=True)
        for k, v in translation.defaults.items()
    ]
    return defaults + [
        Layer(
            f"{path.name}:{item.entry.line}",
            {item.setting: beside(path, known[item.setting], item.value)},
        )
        for item in translation.mapped
    ]


def command_of(cls: type) -> str | None:
    """The training command whose settings a dataclass holds; None for one that is none's."""
    return next((name for name in RECIPES if config_class(name) is cls), None)


def _from_environment(cls: type, environment: Mapping[str, str]) -> list[Layer]:
    variables = {f"CHUK_{name.upper()}": name for name in spellings(cls)}
    return [
        Layer(variable, {name: environment[variable]})
        for variable, name in variables.items()
        if environment.get(variable)
    ]


def _assignment(text: str) -> dict[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"`--set {text}` is not KEY=VALUE", "for example `--set max_grad_norm=0.5`"
        )
    return {key.strip().replace("-", "_"): value.strip()}


def flagged(cls: type) -> dict[str, Setting]:
    """The settings of a dataclass that have a flag, by name."""
    return {name: item for name, item in settings_of(cls).items() if item.flag}


def _declared(item: Setting) -> str:
    """The flag as Typer takes it: a switch has two sides, `--packing/--no-packing`."""
    flag = item.flag or "--" + item.name.replace("_", "-")
    return f"{flag}/--no-{flag[2:]}" if item.base_type is bool and "/" not in flag else flag


def flag_name(item: Setting, value: Any = True) -> str:
    """The flag as it was typed, for the origin of a value."""
    on, _, off = _declared(item).partition("/")
    return off if value is False else on


def was_typed(ctx: typer.Context, name: str) -> bool:
    """Whether the option stood on the command line, also when its value equals the default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def setting_names(cls: type) -> dict[str, Setting]:
    """The settings of a dataclass by every name that is understood, those of other tools
    included."""
    return {name: item for item in settings_of(cls).values() for name in (*item.aliases, item.name)}


def dressed(
    wrapper: Callable[..., Any], command: Callable[..., Any], cls: type, names: SettingNames
) -> Callable[..., Any]:
    """The wrapper with the name, help and signature that Typer reads: own parameters, then
    settings, then files.

    `names` gives the settings that may be typed as flags without having one.
    """
    set_option = _set_option(cls, command.__name__)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.name != "settings"
    ]
    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *(_parameter(item) for item in flagged(cls).values()),
        inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigOption
        ),
        inspect.Parameter(
            "set_values", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=set_option
        ),
        *(_rank_parameters() if _trains(cls) else ()),
        *own,
    ]
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__module__, wrapper.__qualname__ = command.__module__, command.__qualname__
    vars(wrapper).update(__signature__=inspect.Signature(parameters), setting_names=names)
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def _trains(cls: type) -> bool:
    """Whether settings are those of one training that several processes may share; what all share
    is a pipeline's."""
    trains = issubclass(cls, TrainerConfig) and cls is not TrainerConfig
    return trains and not getattr(cls, "is_one_process", False)


def _rank_parameters() -> list[inspect.Parameter]:
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in RANK_OPTIONS.items()
    ]


def _parameter(item: Setting) -> inspect.Parameter:
    """One setting as an option. Values stay text here: `resolve` converts and checks them, as for
    files."""
    is_bool = item.base_type is bool
    names = (_declared(item), item.short) if item.short else (_declared(item),)
    option = typer.Option(
        *names,
        help=_help(item),
        rich_help_panel=item.panel,
        metavar=None if is_bool else _metavar(item),
        autocompletion=(lambda: list(item.choices)) if item.choices else None,
    )
    default = item.default if is_bool or item.default is None else _as_text(item.default)
    annotation: Any = Annotated[bool | None, option] if is_bool else Annotated[str | None, option]
    if item.kind == "data" or item.flag == "--map":  # given once for each source or column
        default, annotation = None, Annotated[list[str] | None, option]
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _help(item: Setting) -> str:
    plain_name = "--" + item.name.replace("_", "-")
    name = "" if flag_name(item) == plain_name else f" Setting `{item.name}`."
    choices = f" One of {', '.join(item.choices)}." if item.choices else ""
    return f"{item.help}{choices}{name}"


def _metavar(item: Setting) -> str:
    return (
        item.name.upper()
        if item.kind in ("path", "data", "model")
        else _METAVARS.get(item.base_type, "LIST")
    )


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
