"""What a merge is told: method, models, numbers. From options, or from a YAML file as mergekit has
them.

A number may depend on the tensor: `[{filter: mlp, value: 1}, {value: 0.5}]` takes the first entry
whose filter is in the tensor's name, and a list of numbers runs over the layers, straight lines
between its entries; tensors outside the layers have its first. What stands at a model wins over its
slice, that over the whole."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chuk_lib.errors import ConfigError
from chuk_lib.models.merging.formulas import METHODS, RESCALES, Method

Settings = Mapping[str, Any]
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_OF_MODELS = ("weight", "density", "epsilon", "gamma", "scale")
_LEGAL: dict[str, tuple[float, float]] = {
    "density": (0, 1),
    "epsilon": (0, 1),
    "gamma": (0, 1),
    "t": (0, 1),
}
_SWITCHES = ("normalize", "rescale", "int8_mask")
_IDLE = ("int8_mask",)  # how mergekit keeps its masks in memory: the result is the same
_TOP = (
    "merge_method",
    "base_model",
    "models",
    "slices",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
)


@dataclass(frozen=True)
class MergeSource:
    """A model in a merge, all of it or some layers (first, end)."""

    model: str
    layers: tuple[int, int] | None = None
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Layers of the result that are made of the same layers' worth of each source."""

    sources: tuple[MergeSource, ...]
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class MergeRecipe:
    """A merge: `slices` one after the other; `base` is W₀, and what a merge without one takes its
    config from is the first source. `dtype` is that of the result, a key of `DTYPES`; unset: as the
    models'."""

    method: str
    slices: tuple[Slice, ...]
    base: str | None = None
    settings: Settings = field(default_factory=dict)
    dtype: str | None = None
    seed: int = 0

    @property
    def rule(self) -> Method:
        """The method's row in the table."""
        return METHODS[self.method]

    def says(self, name: str) -> bool:
        """Whether a setting is given at any level."""
        return any(name in settings for settings, _ in _levels(self))

    def number(
        self, name: str, tensor: str, at: float, place: Slice, source: MergeSource | None = None
    ) -> Any:
        """A setting for a tensor at a place among its slice's layers (0 to 1); None when nobody
        says it."""
        levels = (*([source.settings] if source is not None else []), place.settings, self.settings)
        found = (_value(level[name], tensor, at) for level in levels if name in level)
        return next((value for value in found if value is not None), None)


def _value(given: Any, tensor: str, at: float) -> Any:
    if not isinstance(given, list):
        return given
    if given and isinstance(given[0], dict):
        for entry in given:
            if entry.get("filter", "*") == "*" or entry["filter"] in tensor:
                return _value(entry["value"], tensor, at)
        return None
    position = at * (len(given) - 1)
    left = min(int(position), len(given) - 2) if len(given) > 1 else 0
    rest = position - left
    return given[left] if not rest else (1 - rest) * given[left] + rest * given[left + 1]


def recipe_of(
    method: str,
    models: Sequence[str],
    base: str | None,
    settings: Settings,
    dtype: str | None = None,
    seed: int = 0,
) -> MergeRecipe:
    """A recipe of options: `models` are `MODEL` or `MODEL=WEIGHT`. Raises ConfigError for what does
    not go together."""
    _check_method(method)
    reads = METHODS[method].reads
    sources = []
    for text in models:
        name, weight = weighted(text)
        if "weight" in reads:
            sources.append(
                MergeSource(name, settings={"weight": 1.0 if weight is None else weight})
            )
        elif weight is not None:
            raise ConfigError(f"{method} reads no weights", f"name the model alone: `{name}`")
        else:
            sources.append(MergeSource(name))
    recipe = MergeRecipe(method, (Slice(tuple(sources)),), base, settings, dtype, seed)
    return check(recipe)


def weighted(text: str) -> tuple[str, float | None]:
    """`MODEL` or `MODEL=WEIGHT`, told apart; a path with such a name is a model."""
    name, sign, weight = text.rpartition("=")
    if not sign or Path(text).exists():
        return text, None
    try:
        return name, float(weight)
    except ValueError:
        return text, None


def read_recipe(path: Path, seed: int = 0) -> MergeRecipe:
    """A mergekit YAML file. Raises ConfigError for what is no such file or asks for what chuk does
    not do."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read `{path}`: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` is not YAML: {' '.join(str(error).split())[:200]}") from None
    try:
        return check(_from_yaml(content, seed, path.parent))
    except ConfigError as error:
        raise ConfigError(f"`{path}`: {error.message}", error.hint) from None


def _from_yaml(content: Any, seed: int, folder: Path) -> MergeRecipe:
    top = _mapping(_found(content, folder), "a merge", _TOP)
    method = _text(top.get("merge_method"), "merge_method")
    _check_method(method)
    base = None if top.get("base_model") is None else _text(top["base_model"], "base_model")
    if ("models" in top) == ("slices" in top):
        raise ConfigError("a merge has `models` or `slices`, one of the two")
    if "models" in top:
        slices: tuple[Slice, ...] = (
            Slice(tuple(_source(one, False) for one in _list(top["models"], "models"))),
        )
    else:
        slices = tuple(map(_slice, _list(top["slices"], "slices")))
    _check_tokenizer(top, base)
    dtype = top.get("out_dtype") or top.get("dtype")
    settings = _settings(top.get("parameters"))
    if method.startswith(("dare", "della")):
        settings = {"rescale": True, **settings}
    return MergeRecipe(method, slices, base, settings, dtype, seed)


def _found(content: Any, folder: Path) -> Any:
    """The content with models that lie beside the file, and not where the command runs, as
    paths."""
    if isinstance(content, list):
        return [_found(one, folder) for one in content]
    if not isinstance(content, dict):
        return content
    named = {
        key: content[key] for key in ("model", "base_model") if isinstance(content.get(key), str)
    }
    moved = {
        key: str(folder / name)
        for key, name in named.items()
        if (folder / name).exists() and not Path(name).exists()
    }
    return {key: moved.get(key, _found(value, folder)) for key, value in content.items()}


def _slice(given: Any) -> Slice:
    found = _mapping(given, "a slice", ("sources", "parameters"))
    sources = tuple(_source(one, True) for one in _list(found.get("sources"), "sources"))
    return Slice(sources, _settings(found.get("parameters")))


def _source(given: Any, sliced: bool) -> MergeSource:
    found = _mapping(
        given, "a model", ("model", "parameters", *(["layer_range"] if sliced else []))
    )
    span = found.get("layer_range")
    if sliced and not (
        isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)
    ):
        raise ConfigError(
            f"`layer_range` should be two numbers, not `{span}`", "such as [0, 16]: layers 0 to 15"
        )
    layers = (span[0], span[1]) if span is not None else None
    return MergeSource(
        _text(found.get("model"), "model"), layers, _settings(found.get("parameters"))
    )


def _settings(given: Any) -> Settings:
    found = {} if given is None else _mapping(given, "parameters", None)
    return {name: _plain(value) for name, value in found.items() if name not in _IDLE}


def _plain(value: Any) -> Any:
    """A single `{filter: …, value: …}` is a list of one."""
    return [value] if isinstance(value, dict) else value


def _mapping(given: Any, what: str, known: Sequence[str] | None) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ConfigError(f"{what} should be a mapping, not `{given}`")
    odd = next((name for name in given if known is not None and name not in known), None)
    if odd is not None and known is not None:
        near = difflib.get_close_matches(str(odd), known, n=1)
        raise ConfigError(
            f"{what} has no `{odd}`",
            f"did you mean `{near[0]}`?" if near else f"it has {', '.join(known)}",
        )
    return given


def _list(given: Any, what: str) -> list[Any]:
    if not isinstance(given, list) or not given:
        raise ConfigError(f"`{what}` should be a list of at least one")
    return given


def _text(given: Any, what: str) -> str:
    if isinstance(given, dict) and isinstance(given.get("model"), dict):
        return _text(given["model"].get("path"), what)
    if not isinstance(given, str) or not given:
        raise ConfigError(f"`{what}` should be a name, not `{given}`")
    return given


def _check_tokenizer(top: Mapping[str, Any], base: str | None) -> None:
    asked = top.get("tokenizer_source")
    tokenizer = top.get("tokenizer")
    if asked is None and isinstance(tokenizer, dict):
        asked = tokenizer.get("source")
        if others := ", ".join(sorted(map(str, set(tokenizer) - {"source"}))):
            raise ConfigError(f"`tokenizer` has {others}, which chuk does not do")
    if asked not in (None, "base", base) or top.get("chat_template") not in (None, "auto"):
        raise ConfigError(
            "chuk takes tokenizer and chat template from the base, or the first model without one",
            "merge models of one tokenizer, and leave `tokenizer_source` and `chat_template` out",
        )


def _check_method(method: str) -> None:
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        raise ConfigError(
            f"there is no merge method `{method}`",
            f"did you mean `{near[0]}`?" if near else ", ".join(METHODS),
        )


def check(recipe: MergeRecipe) -> MergeRecipe:
    """The recipe without its base among the models. Raises ConfigError for what a method does not
    read, lacks, or cannot take."""
    rule, method = recipe.rule, recipe.method
    if rule.needs_base and recipe.base is None:
        raise ConfigError(f"{method} needs a base", "give --base MODEL (`base_model` in a file)")
    if recipe.dtype is not None and recipe.dtype not in DTYPES:
        raise ConfigError(f"`dtype` should be one of {', '.join(DTYPES)}, not `{recipe.dtype}`")
    if recipe.seed < 0 or (recipe.seed and "rescale" not in rule.reads):
        raise ConfigError(
            f"`seed` {recipe.seed} does nothing: {method} leaves nothing to chance", "leave it out"
        )
    for settings, of_model in _levels(recipe):
        for name, value in settings.items():
            _check_setting(method, rule, name, value, of_model)
    if (
        method == "slerp"
        and "t" not in recipe.settings
        and any("t" not in one.settings for one in recipe.slices)
    ):
        raise ConfigError("slerp needs `t`", "give --t: 0 is the base, 1 the other model")
    for place in recipe.slices:
        _check_sources(recipe, place)
    return recipe


def _levels(recipe: MergeRecipe) -> list[tuple[Settings, bool]]:
    levels: list[tuple[Settings, bool]] = [(recipe.settings, False)]
    for place in recipe.slices:
        levels.append((place.settings, False))
        levels += [(source.settings, True) for source in place.sources]
    return levels


def _check_sources(recipe: MergeRecipe, place: Slice) -> None:
    rule, method = recipe.rule, recipe.method
    count = (
        sum(source.model != recipe.base for source in place.sources)
        if rule.needs_base
        else len(place.sources)
    )
    if count < rule.least or (rule.most is not None and count > rule.most):
        takes = f"{rule.least}" if rule.least == rule.most else f"{rule.least} or more"
        beside = " beside its base" if rule.needs_base else ""
        raise ConfigError(
            f"{method} takes {takes} model{'s' if takes != '1' else ''}{beside}, not {count}"
        )
    if "weight" in rule.reads:
        for source in place.sources:
            is_base = rule.needs_base and source.model == recipe.base
            if not is_base and not any(
                "weight" in one for one in (source.settings, place.settings, recipe.settings)
            ):
                raise ConfigError(
                    f"`{source.model}` has no weight", f"{method} needs one for each model"
                )


def _check_setting(method: str, rule: Method, name: str, value: Any, of_model: bool) -> None:
    if name not in rule.reads:
        near = difflib.get_close_matches(name, rule.reads, n=1)
        reads = ", ".join(rule.reads) or "nothing"
        raise ConfigError(
            f"{method} reads no `{name}`",
            f"did you mean `{near[0]}`?" if near else f"it reads {reads}",
        )
    if of_model and name not in _OF_MODELS:
        raise ConfigError(
            f"`{name}` is one for all models",
            "write it to the `parameters` of the merge or a slice",
        )
    for one in _leaves(value):
        _check_number(name, one)


def _leaves(value: Any) -> list[Any]:
    if not isinstance(value, list):
        return [value]
    if not value:
        raise ConfigError("a list of numbers is empty")
    found: list[Any] = []
    for entry in value:
        if isinstance(entry, dict):
            _mapping(entry, "an entry of a number", ("filter", "value"))
            if "value" not in entry or not isinstance(entry.get("filter", ""), str):
                raise ConfigError(f"`{entry}` should be a `filter`, which is a text, and a `value`")
            found += _leaves(entry["value"])
        elif any(isinstance(other, dict) for other in value):
            raise ConfigError("numbers and filters do not go into one list")
        else:
            found.append(entry)
    return found


def _check_number(name: str, value: Any) -> None:
    if name in _SWITCHES:
        if not isinstance(value, bool) and not (name == "rescale" and value in RESCALES):
            known = f", {', '.join(RESCALES)}" if name == "rescale" else ""
            raise ConfigError(f"`{name}` should be one of true, false{known}, not `{value}`")
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value != value
        or abs(value) == float("inf")
    ):
        raise ConfigError(f"`{name}` should be a number, not `{value}`")
    low, high = _LEGAL.get(name, (-float("inf"), float("inf")))
    if not low <= value <= high or (name == "density" and value == 0):
        raise ConfigError(f"`{name}` should be from {low:g} to {high:g}, not {value:g}")
