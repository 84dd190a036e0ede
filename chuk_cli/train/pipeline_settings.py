"""The options of `chuk train pipeline`: those that all trainers share, each for every stage that
knows the setting."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from chuk_cli.command import FLAGS
from chuk_cli.settings import dressed, flag_name, flagged, named_file, setting_names, was_typed
from chuk_lib.config.settings import Layer, Setting, settings_of
from chuk_lib.errors import ConfigError
from chuk_lib.training.config import TrainerConfig

if TYPE_CHECKING:
    from chuk_lib.training.pipeline.config import Pipeline, StageSpec


@dataclass(frozen=True)
class Given:
    """What stood on the command line: files, `--set` texts, and the flags that were typed, by
    setting."""

    files: Sequence[Path]
    overrides: Sequence[str]
    flags: Mapping[str, Any]

    @property
    def output(self) -> str | None:
        """The folder that `--output` names."""
        return self.flags.get("output")


def with_shared_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the settings that all trainers share as options. Its parameter `settings`
    receives a `Given`."""

    def with_options(ctx: typer.Context, **given: Any) -> Any:
        flags = {name: given.pop(name) for name in flagged(TrainerConfig)}
        files, overrides = given.pop("config") or [], given.pop("set_values") or []
        typed = {
            name: value for name, value in flags.items() if was_typed(ctx, name)
        } | ctx.meta.get(FLAGS, {})
        return command(settings=Given(files, overrides, typed), **given)

    return dressed(with_options, command, TrainerConfig, _all_names)


def _all_names() -> dict[str, Setting]:
    """The settings of all kinds of stages, by every name: `beta` is DPO's own rather than an alias
    of PPO's."""
    from chuk_lib.training.pipeline.config import kinds, settings_class

    classes = [*map(settings_class, kinds()), TrainerConfig]
    aliases = {name: item for cls in classes for name, item in setting_names(cls).items()}
    return aliases | {name: item for cls in classes for name, item in settings_of(cls).items()}


def to_pipeline(given: Given, stages: str | None, rewards: Sequence[str] | None = None) -> Pipeline:
    """The pipeline that is meant: `--stages`, else those of a file, else those that the folder was
    begun with.

    Raises ConfigError that names the option, file and line, or variable.
    """
    from chuk_lib.training.pipeline.config import make_pipeline, parse_stages
    from chuk_lib.training.pipeline.file import read_pipeline

    specs: list[StageSpec] = []
    shared: list[Layer] = []
    for file in given.files:
        found, layers = read_pipeline(named_file(file))
        specs, shared = found or specs, shared + layers
    if stages is not None:
        specs = _chosen(parse_stages(stages), specs)
    model: list[Layer] = []
    if not specs and given.output is not None:
        specs, model = _begun(Path(given.output))
    if not specs:
        raise ConfigError(
            "no stages given",
            "add `--stages sft,dpo,eval`, `stages:` in a --config file, or the --output to go"
            " on in",
        )
    return make_pipeline(specs, [*model, *shared], _layers(given, specs, rewards))


def _chosen(asked: list[StageSpec], of_files: list[StageSpec]) -> list[StageSpec]:
    """The stages asked for, with the settings that a file has for stages of these names."""
    known = {spec.name: spec for spec in of_files}
    return [known.get(spec.name, spec) for spec in asked]


def _begun(path: Path) -> tuple[list[StageSpec], list[Layer]]:
    """The stages that a pipeline's folder was begun with, and their model."""
    from chuk_lib.training.pipeline.config import planned_again
    from chuk_lib.training.pipeline.manifest import MANIFEST, read_manifest

    if not (path / MANIFEST).is_file():
        return [], []
    manifest = read_manifest(path)
    return planned_again(manifest.plan), [Layer(MANIFEST, {"model": manifest.model})]


def _layers(given: Given, specs: Sequence[StageSpec], rewards: Sequence[str] | None) -> list[Layer]:
    """Variables, `--set` and flags for all stages, then `--set STAGE.setting`."""
    from chuk_lib.training.pipeline.config import settings_class

    classes = [settings_class(spec.kind) for spec in specs]
    variables = {f"CHUK_{name.upper()}": name for cls in classes for name in settings_of(cls)}
    layers = [
        Layer(key, {name: os.environ[key]})
        for key, name in variables.items()
        if os.environ.get(key)
    ]
    overrides = [Layer("--set", _assignment(text)) for text in given.overrides]
    to_one = [layer for layer in overrides if any("." in key for key in layer.values)]
    known = _all_names()
    flags = [
        Layer(flag_name(known[name], value), {name: value}) for name, value in given.flags.items()
    ]
    flags += [Layer("--reward", {"rewards": tuple(rewards)})] if rewards else []
    return [*layers, *(layer for layer in overrides if layer not in to_one), *flags, *to_one]


def _assignment(text: str) -> dict[str, str]:
    """`sft-2.learning-rate=1e-4` as a key and a value; the name of a stage stays as it is
    written."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"`--set {text}` is not KEY=VALUE", "for example `--set sft.learning_rate=1e-4`"
        )
    stage, dot, name = key.strip().rpartition(".")
    return {f"{stage}{dot}{name.replace('-', '_')}": value.strip()}
