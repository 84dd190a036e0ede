"""What a pipeline is made of: stages in their order, each with a name, a kind and the settings of
that kind.

A kind is an algorithm of `recipes`, or `eval`. Settings reach a stage in this order, later ones
win: defaults, what a file says for all stages, what it says for one, the environment, what the
command line says for all stages that know the setting, and what it says for one (`--set
sft.learning_rate=1e-4`). Standard library only."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from chuk_lib.config.settings import (
    Layer,
    Resolved,
    Setting,
    resolve,
    setting,
    settings_of,
    spellings,
    unknown_name,
)
from chuk_lib.errors import ConfigError
from chuk_lib.training.recipes import RECIPES, config_class

EVAL, REWARD = "eval", "reward"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_OF_THE_PIPELINE = ("model", "output")
"""Settings that a pipeline has once: where it begins, and where it writes."""


@dataclass(frozen=True, kw_only=True)
class EvalStageConfig:
    """Settings of an `eval` stage: what `chuk eval` measures, of the model that the stages before
    it made."""

    model: str | None = setting(
        None,
        "Model to measure; unset: what the stages before made.",
        panel="Model",
        kind="model",
    )
    data: str | None = setting(
        None,
        "Data to measure on.",
        panel="Data",
        kind="data",
    )
    output: str | None = setting(
        None, "Where the figures go; a stage has its place.", panel="Output", kind="path"
    )
    split: str | None = setting(
        None, "Split of a data folder; unset: test, else valid, else train.", panel="Data"
    )
    max_rows: int | None = setting(None, "Use the first N rows.", panel="Data", minimum=1)
    max_tokens: int | None = setting(
        None,
        "Longest answer; unset: a little over the longest target.",
        panel="Sampling",
        minimum=1,
    )
    batch_size: int = setting(32, "Rows in one batch of the loss.", minimum=1)
    rewards: tuple[str, ...] = setting(
        (),
        "Measure these rewards of sampled completions; unset: exact match of greedy answers.",
        panel="Rewards",
        aliases=("reward",),
        kind="rewards",
    )
    reward_errors: str = setting(
        "raise", "A reward that fails.", panel="Rewards", choices=("raise", "none")
    )
    samples: int = setting(
        1, "Completions of each prompt; more than one give pass@k.", panel="Sampling", minimum=1
    )
    pass_score: float = setting(
        1.0, "The first reward from which a completion passes.", panel="Rewards"
    )
    temperature: float | None = setting(
        None,
        "Sampling temperature. Unset: greedy, or 1 for several samples.",
        panel="Sampling",
        minimum=0,
    )
    seed: int = setting(0, "Seed of the samples.", minimum=0, maximum=2**32 - 1)


@dataclass(frozen=True)
class StageSpec:
    """A stage as it was written: its own settings in layers; `origin` says where, for messages."""

    name: str
    kind: str
    layers: tuple[Layer, ...] = ()
    origin: str = "--stages"


@dataclass(frozen=True)
class Stage:
    """A stage with all its settings. `own_model`: the stage names its model itself, others get what
    came before."""

    name: str
    kind: str
    number: int
    settings: Resolved[Any]
    own_model: bool = False

    @property
    def folder(self) -> str:
        """The name of its folder in the pipeline's."""
        return f"{self.number:02d}-{self.name}"

    @property
    def makes_policy(self) -> bool:
        """Whether later stages go on with what it made."""
        return self.kind not in (EVAL, REWARD)


@dataclass(frozen=True)
class Pipeline:
    """All stages in order, the model that they begin with and the folder that holds them."""

    stages: tuple[Stage, ...]
    model: str | None = None
    output: str | None = None


def kinds() -> tuple[str, ...]:
    """What a stage can be."""
    return (*RECIPES, EVAL)


def settings_class(kind: str) -> type[Any]:
    """The settings of a kind."""
    return EvalStageConfig if kind == EVAL else config_class(kind)


@cache
def known_settings() -> dict[str, Setting]:
    """The settings of all kinds of stages, by every name that they are known by."""
    found = [item for kind in kinds() for item in settings_of(settings_class(kind)).values()]
    return {name: item for item in found for name in (*item.aliases, item.name)}


def setting_variables() -> set[str]:
    """The `CHUK_…` variables of all settings, of every kind of stage, under each of their names."""
    return {f"CHUK_{name.upper()}" for name in known_settings()}


def parse_stages(text: str, origin: str = "--stages") -> list[StageSpec]:
    """`sft,dpo,eval` as stages. A kind that comes again is called `eval-2`, and so on. Raises
    ConfigError."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise ConfigError(
            f"{origin} names no stage",
            f"for example `--stages sft,eval`; kinds: {', '.join(kinds())}",
        )
    return name_stages([("", kind, (), origin) for kind in found])


def name_stages(parts: Sequence[tuple[str, str, tuple[Layer, ...], str]]) -> list[StageSpec]:
    """Stages from (name or "", kind, layers, origin). Raises ConfigError for an unknown kind and a
    name used twice."""
    specs: list[StageSpec] = []
    taken = {name for name, *_ in parts if name}
    for given, kind, layers, origin in parts:
        _check_kind(kind, origin)
        name = given or _free_name(kind, taken)
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"`{name}` ({origin}) is no name for a stage", "use letters, digits, - and _"
            )
        if name in {spec.name for spec in specs}:
            raise ConfigError(
                f"two stages are called `{name}` ({origin})", "give one another `name:`"
            )
        taken.add(name)
        specs.append(StageSpec(name, kind, layers, origin))
    return specs


def _free_name(kind: str, taken: set[str]) -> str:
    names = (kind if number == 1 else f"{kind}-{number}" for number in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def _check_kind(kind: str, origin: str) -> None:
    if kind in kinds():
        return
    near = difflib.get_close_matches(kind, kinds(), n=1, cutoff=0.6)
    hint = f"did you mean `{near[0]}`?" if near else f"stages: {', '.join(kinds())}"
    raise ConfigError(f"unknown stage `{kind}` ({origin})", hint)


def make_pipeline(
    specs: Sequence[StageSpec], shared: Sequence[Layer] = (), given: Sequence[Layer] = ()
) -> Pipeline:
    """Resolve all stages. `shared` layers (of files) come before a stage's own, `given` ones
    (variables, command line) after; in both a key `STAGE.setting` is for one stage alone.

    Raises ConfigError for a setting that no stage knows, and one that its stage does not know.
    """
    layers = [*shared, *given]
    _check_keys(specs, layers)
    first = {name: _last_value(layers, name) for name in _OF_THE_PIPELINE}
    stages = tuple(_stage(spec, number, shared, given) for number, spec in enumerate(specs, 1))
    return Pipeline(stages, first["model"], first["output"])


def _stage(spec: StageSpec, number: int, shared: Sequence[Layer], given: Sequence[Layer]) -> Stage:
    cls = settings_class(spec.kind)
    names = spellings(cls)
    own = [_to_one(layer, spec.name) for layer in (*shared, *given)]
    layers = [*(_known(layer, names, spec) for layer in shared), *spec.layers]
    layers += [*(_known(layer, names, spec) for layer in given), *own]
    resolved: Resolved[Any] = resolve(cls, layers)
    if resolved.value.output is not None:
        raise ConfigError(
            f"stage `{spec.name}` has an `output` of its own ({resolved.origins['output']})",
            "stages lie in the folder of their pipeline: give that one --output",
        )
    return Stage(spec.name, spec.kind, number, resolved, own_model=resolved.value.model is not None)


def _known(layer: Layer, names: Mapping[str, str], spec: StageSpec) -> Layer:
    """What a layer for all stages says to this one. A data folder with a part named after the stage
    means that part."""
    values = {
        key: value
        for key, value in layer.values.items()
        if key in names and names[key] not in _OF_THE_PIPELINE
    }
    changed = {key: _own_part(value, spec) for key, value in values.items() if names[key] == "data"}
    return Layer(layer.origin, values | changed)


def _own_part(data: Any, spec: StageSpec) -> Any:
    """`data/dpo.jsonl` or `data/dpo/` for a stage `dpo` when `data` is given and has it."""
    if isinstance(data, list | tuple):
        return type(data)(_own_part(one, spec) for one in data)
    folder = Path(data) if isinstance(data, str) and data not in ("", "-") else None
    if folder is None or not folder.is_dir():
        return data
    names = dict.fromkeys((spec.name, spec.kind))
    found = [
        part
        for name in names
        for part in sorted(folder.glob(f"{name}*"))
        if part.name.split(".")[0] == name
    ]
    return str(found[0]) if found else data


def _to_one(layer: Layer, stage: str) -> Layer:
    """What a layer says to this stage alone."""
    parts = {key: key.partition(".") for key in layer.values}
    return Layer(
        layer.origin,
        {part[2]: layer.values[key] for key, part in parts.items() if part[1] and part[0] == stage},
    )


def _check_keys(specs: Sequence[StageSpec], layers: Sequence[Layer]) -> None:
    known = {name for spec in specs for name in spellings(settings_class(spec.kind))}
    stages = {spec.name: spec for spec in specs}
    for layer in layers:
        for key in layer.values:
            stage, dot, name = key.partition(".")
            if not dot and key not in known:
                raise _unknown_to_all(key, sorted(known), layer.origin)
            if dot and stage not in stages:
                raise ConfigError(
                    f"`{key}` ({layer.origin}) is for a stage `{stage}`, which there is not",
                    f"stages: {', '.join(stages)}",
                )
            if dot and name not in (names := spellings(settings_class(stages[stage].kind))):
                raise unknown_name(name, list(names), f"{layer.origin} for stage `{stage}`")


def _unknown_to_all(key: str, known: Sequence[str], origin: str) -> ConfigError:
    error = unknown_name(key, known, origin)
    return ConfigError(f"{error.message}: no stage has it", error.hint)


def _last_value(layers: Sequence[Layer], name: str) -> str | None:
    """The last value for all stages of a setting that a pipeline has once."""
    aliases = {
        alias
        for kind in RECIPES
        for alias, own in spellings(config_class(kind)).items()
        if own == name
    }
    values = [value for layer in layers for key, value in layer.values.items() if key in aliases]
    return None if not values or values[-1] is None else str(values[-1])


def with_model(stage: Stage, model: str, origin: str) -> Stage:
    """The stage with the model that it goes on with."""
    settings = stage.settings
    resolved = Resolved(replace(settings.value, model=model), settings.origins | {"model": origin})
    return replace(stage, settings=resolved)


def planned_again(plan: Sequence[Mapping[str, Any]]) -> list[StageSpec]:
    """The stages that a manifest's `plan` holds."""
    return [
        StageSpec(
            stage["name"],
            stage["kind"],
            tuple(
                Layer(stage["origins"][name], {name: value})
                for name, value in stage["settings"].items()
            ),
        )
        for stage in plan
    ]
