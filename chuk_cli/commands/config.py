"""`chuk config`: the settings files that come with chuk, what each setting means, and whether a
file is right."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from chuk_cli.command import App
from chuk_cli.completion import commands_or_files, settings_files
from chuk_cli.options import JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out, make_table, tell
from chuk_cli.plan import plain
from chuk_cli.settings import read_config, resolve_settings
from chuk_lib.config import files
from chuk_lib.config.forms import form_of, translated
from chuk_lib.config.forms.form import migrated
from chuk_lib.config.settings import Layer, Resolved, Setting, resolve, settings_of
from chuk_lib.errors import ConfigError
from chuk_lib.training.config import refuse_idle_settings
from chuk_lib.training.recipes import RECIPES, config_class

app = App(
    add_completion=False, no_args_is_help=True, help="List, show, check and convert settings files."
)

_TYPES = {
    int: "integer",
    float: "number",
    int | float: "number",
    bool: "true or false",
    str: "text",
}

PIPELINE = "pipeline"
ForOption = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="COMMAND",
        help=(
            "The training command that the file is for; unset: the one its first comment names,"
            " else sft."
        ),
    ),
]
FileArgument = Annotated[
    str,
    typer.Argument(
        help="A file, or the name of one that comes with chuk.",
        metavar="FILE",
        autocompletion=settings_files,
    ),
]


@app.command()
def ls(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the settings files that come with chuk.

    Examples:
      chuk config ls
      chuk config ls --json
    """
    found = files.shipped()
    rows = [{"name": item.name, "about": item.about, "path": str(item.path)} for item in found]
    table = make_table("", ["name", "about"], [[item.name, item.about] for item in found])
    Out.of(json, quiet).result(rows, human=table, quiet=[item.name for item in found])


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A file, the name of one that comes with chuk, or a training command.",
            metavar="NAME",
            autocompletion=commands_or_files,
        ),
    ],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show a settings file, or all settings of a training command.

    Examples:
      chuk config show sft
      chuk config show grpo
      chuk config show sft-lora.yaml
      chuk config show sft --json
    """
    out = Out.of(json, quiet)
    if name in RECIPES:
        known = settings_of(config_class(name))
        out.result(
            {key: _described(item) for key, item in known.items()},
            human="\n".join(_setting_lines(known)),
            quiet=list(known),
        )
        return
    path = files.find(name)
    if json:
        out.result(
            {"path": str(path), "settings": _settings_of_file(path, files.algorithm_of(path), out)}
        )
        return
    text = path.read_text(encoding="utf-8")
    out.result({}, human=text, quiet=text)


@app.command()
def check(
    file: FileArgument,
    command: ForOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check a settings file: names, values, and settings that would do nothing. Exits with 2 when
    something is wrong.

    Examples:
      chuk config check sft.yaml
      chuk config check my.yaml --for dpo
      chuk config check my.yaml --json
    """
    out = Out.of(json, quiet)
    path = files.find(file)
    algorithm = _known_command(command) if command else files.algorithm_of(path)
    problems = list(_problems(path, algorithm, out))
    settings: dict[str, Any] = {} if problems else _settings_of_file(path, algorithm, out)
    found = [{"message": error.message, "hint": error.hint} for error in problems]
    if not problems:
        text = f"{path}: {len(settings)} settings of chuk train {algorithm}, all in order"
        out.result(
            {"path": str(path), "ok": True, "problems": [], "settings": settings},
            human=text,
            quiet=str(path),
        )
        return
    if json:
        out.result({"path": str(path), "ok": False, "problems": found, "settings": {}})
    for error in problems if not json else ():
        tell(error.message, "error")
        tell(error.hint, "hint")
    raise typer.Exit(2)


@app.command()
def cp(
    name: FileArgument,
    to: Annotated[Path, typer.Argument(help="New file, or a folder to put it in.", metavar="DEST")],
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy a settings file that comes with chuk, to change it.

    Examples:
      chuk config cp sft-lora.yaml my.yaml
      chuk config cp tiny/sft.yaml . --overwrite
    """
    source = files.find(name)
    written = files.write(
        to / source.name if to.is_dir() else to, source.read_text(encoding="utf-8"), overwrite
    )
    out = Out.of(json, quiet)
    out.result({"path": str(written), "from": str(source)}, human=str(written), quiet=str(written))
    out.say(
        f"next: `chuk train {files.algorithm_of(source)} --config {shlex.quote(str(written))}"
        " --model MODEL --data"
        " DATA`"
    )


@app.command()
def migrate(
    file: FileArgument,
    command: ForOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New file; unset: standard output.", metavar="FILE"),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn a file of another tool into chuk's form, with a comment on what became of each key.

    Files of mlx-lm, TRL, axolotl, LLaMA-Factory and unsloth are known by their keys, as is the old
    sectioned form.

    Examples:
      chuk config migrate lora_config.yaml --output new.yaml
      chuk config migrate trl.yaml --for dpo
      chuk config migrate legacy/finetune.yaml
    """
    out = Out.of(json, quiet)
    path = files.find(file)
    meant = _known_command(command) if command else files.algorithm_of(path)
    translation = translated(path, config_class(meant), meant)
    if translation is None:
        raise ConfigError(
            f"`{path}` has chuk's form already", "`chuk config check` says whether it is right"
        )
    text = migrated(translation)
    written = files.write(output, text, overwrite) if output else None
    result = {
        "path": str(written) if written else None,
        "form": translation.form.name,
        "command": translation.command,
        "settings": {item.setting: item.value for item in translation.mapped},
        "defaults": dict(translation.defaults),
        "left": [
            {
                "key": item.entry.name,
                "line": item.entry.line,
                "reason": item.reason,
                "hint": item.hint,
            }
            for item in translation.left
        ],
    }
    out.result(
        result, human=str(written) if written else text, quiet=str(written) if written else text
    )
    for item in translation.left:
        out.say(f"not taken over: {item.entry.name} (line {item.entry.line}): {item.reason}")


def _known_command(name: str) -> str:
    if name not in (*RECIPES, PIPELINE):
        raise ConfigError(
            f"`--for {name}` is no training command", f"one of: {', '.join((*RECIPES, PIPELINE))}"
        )
    return name


def _settings_of_file(path: Path, algorithm: str, out: Out) -> dict[str, Any]:
    """What a file sets, with the place where it does; of a pipeline also its stages."""
    if algorithm != PIPELINE:
        return _given(resolve_settings(config_class(algorithm), [path], warn=lambda text: None))
    from chuk_lib.training.pipeline.file import read_pipeline

    stages, shared = read_pipeline(path)
    found = {
        name: {"value": value, "origin": layer.origin}
        for layer in shared
        for name, value in layer.values.items()
    }
    return found | {"stages": {"value": [spec.name for spec in stages], "origin": path.name}}


def _problems(path: Path, algorithm: str, out: Out) -> Iterator[ConfigError]:
    """What is wrong with a file: every bad line, else the first setting that would do nothing."""
    if algorithm == PIPELINE:
        yield from _pipeline_problems(path)
        return
    cls = config_class(algorithm)
    try:
        layers = read_config(path, cls, warn=out.warn)
    except ConfigError as error:
        yield from _line_problems(path, cls, error)
        return
    bad = [error for layer in layers for error in _refusal(cls, layer)]
    yield from bad
    if not bad:
        try:
            refuse_idle_settings(replace(resolve(cls, layers).value))
        except ConfigError as error:
            yield error


def _pipeline_problems(path: Path) -> Iterator[ConfigError]:
    from chuk_lib.training.pipeline.config import make_pipeline
    from chuk_lib.training.pipeline.file import read_pipeline

    try:
        make_pipeline(*read_pipeline(path))
    except ConfigError as error:
        yield error


def _line_problems(path: Path, cls: type, first: ConfigError) -> Iterator[ConfigError]:
    """Every unknown name of a flat file; otherwise the first error."""
    from chuk_lib.config.settings import spellings, unknown_name
    from chuk_lib.config.yaml_lines import read_entries

    yield first
    try:
        entries = read_entries(path)
    except ConfigError:
        return
    names = list(spellings(cls))
    if form_of(entries) is not None:
        return
    for entry in entries:
        error = unknown_name(entry.name, names, f"{path.name}:{entry.line}")
        if entry.name not in names and error.message != first.message:
            yield error


def _refusal(cls: type, layer: Layer) -> Iterator[ConfigError]:
    try:
        resolve(cls, [layer])
    except ConfigError as error:
        yield error


def _given(settings: Resolved[Any]) -> dict[str, dict[str, Any]]:
    """What a file sets, with the place where it does."""
    return {
        name: {"value": getattr(settings.value, name), "origin": origin}
        for name, origin in settings.origins.items()
        if origin != "default"
    }


def _described(item: Setting) -> dict[str, Any]:
    return {
        "type": _type(item),
        "optional": item.optional,
        "default": item.default,
        "help": item.help,
        "panel": item.panel,
        "flag": item.flag,
        "aliases": list(item.aliases),
        "choices": list(item.choices),
        "minimum": item.minimum,
        "above": item.above,
        "maximum": item.maximum,
        "variable": f"CHUK_{item.name.upper()}",
    }


def _type(item: Setting) -> str:
    return _TYPES.get(item.base_type, "list")


def _setting_lines(known: dict[str, Setting]) -> Iterator[str]:
    panels = dict.fromkeys(item.panel for item in known.values())
    for number, panel in enumerate(panels):
        yield ("\n" if number else "") + panel
        for item in known.values():
            if item.panel != panel:
                continue
            yield f"  {item.name}: {_type(item)} = {plain(item.default)}"
            words = [item.help, f"Flag {item.flag}." if item.flag else "Through --set and files."]
            words += [f"One of {', '.join(item.choices)}."] if item.choices else []
            words += [f"Also {', '.join(item.aliases)}."] if item.aliases else []
            yield f"      {' '.join(words)}"
