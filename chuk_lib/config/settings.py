"""One definition per setting. A dataclass field made with `setting()` is the YAML key, the flag,
the default, the help line, the bounds and the origin that `--dry-run` shows.

`resolve` merges layers (defaults < files < environment < --set < flags), converts by declared type
(YAML reads `1e-5` as text; the type says it is a number), refuses unknown names with a suggestion,
and remembers where each value came from."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from chuk_lib.config.foreign import instead_of
from chuk_lib.errors import ConfigError

T = TypeVar("T")
_META = "chuk"


@dataclass(frozen=True)
class Setting:
    """What is known about one setting, read off a dataclass field."""

    name: str
    type: Any
    default: Any
    help: str
    panel: str = "Training"
    flag: str | None = None  # "--learning-rate"; None: only through --config and --set
    short: str | None = None
    aliases: tuple[str, ...] = ()  # names of other tools that mean the same
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    whole_from: float | None = None  # from here on whole numbers only
    # Other tools' values, and ours.
    synonyms: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: str = "value"  # path, data, model, rewards: see `paths`; json: an object

    @property
    def base_type(self) -> Any:
        """The type without `| None`; `int | float` for a number that may be whole."""
        return without_none(self.type)

    @property
    def optional(self) -> bool:
        """Whether None is a value."""
        return _is_union(self.type) and type(None) in typing.get_args(self.type)


def setting(
    default: Any,
    help: str,
    *,
    panel: str = "Training",
    flag: str | bool = False,
    short: str | None = None,
    aliases: Sequence[str] = (),
    choices: Sequence[str] = (),
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    whole_from: float | None = None,
    synonyms: Mapping[str, Any] | None = None,
    kind: str = "value",
) -> Any:
    """A dataclass field that is a setting. `flag=True` makes `--field-name`; bounds: minimum <=
    value <= maximum, value > above, and whole numbers from `whole_from` on. `synonyms`: other
    tools' values (in lower case) for ours. `kind` is path, data, model or rewards for one that
    names files."""
    if kind not in ("value", "path", "data", "model", "rewards", "json"):
        raise AssertionError(f"a setting of kind {kind}")
    meta = {
        "help": help,
        "panel": panel,
        "flag": flag,
        "short": short,
        "aliases": tuple(aliases),
        "choices": tuple(choices),
        "minimum": minimum,
        "above": above,
        "maximum": maximum,
        "whole_from": whole_from,
        "synonyms": synonyms or {},
        "kind": kind,
    }
    return dataclasses.field(default=default, metadata={_META: meta})


def settings_of(cls: type) -> dict[str, Setting]:
    """All settings of a dataclass by name, in order of definition."""
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        meta = field.metadata.get(_META)
        if meta is None:
            continue
        flag = "--" + field.name.replace("_", "-") if meta["flag"] is True else meta["flag"] or None
        found[field.name] = Setting(
            field.name,
            hints[field.name],
            field.default,
            **{k: v for k, v in meta.items() if k != "flag"},
            flag=flag,
        )
    return found


@dataclass(frozen=True)
class Layer:
    """Values from one place. `origin` is shown to the user: a file name, `--set`, or `CHUK_` +
    name, or the flag. `weak` ones, another tool's defaults, give way to whatever is given, also
    before them."""

    origin: str
    values: Mapping[str, Any]
    weak: bool = False


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """A settings object and, for every value, where it came from ("default" when nobody gave
    it)."""

    value: T
    origins: dict[str, str]


def spellings(cls: type) -> dict[str, str]:
    """Every accepted name of a setting, those of other tools included, to its own name."""
    return {
        name: item.name for item in settings_of(cls).values() for name in (*item.aliases, item.name)
    }


def resolve(cls: type[T], layers: Sequence[Layer]) -> Resolved[T]:
    """Merge layers, later ones win. Raises ConfigError that names the layer, the setting and the
    way out."""
    known = settings_of(cls)
    names = spellings(cls)
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, "default")
    for layer in sorted(layers, key=lambda layer: not layer.weak):
        for key, raw in layer.values.items():
            if key not in names:
                raise unknown_name(key, list(names), layer.origin)
            item = known[names[key]]
            values[item.name] = convert(item, raw, layer.origin)
            origins[item.name] = layer.origin
    return Resolved(cls(**values), origins)


def unknown_name(name: str, known: Sequence[str], origin: str) -> ConfigError:
    """The error for a name that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    listed = (
        ", ".join(sorted(known))
        if len(known) <= 12
        else "`chuk config show sft` lists them (dpo, grpo … alike)"
    )
    hint = instead_of(name) or (
        f"did you mean `{near[0]}`?" if near else f"known settings: {listed}"
    )
    return ConfigError(f"unknown setting `{name}` in {origin}", hint)


def convert(item: Setting, raw: Any, origin: str) -> Any:
    """A raw value (YAML, environment, command line) as the declared type, inside the declared
    bounds."""
    if item.kind == "data" and isinstance(raw, list | tuple):
        raw = ",".join(map(str, raw))
    if item.kind == "json" and isinstance(raw, Mapping):
        raw = json.dumps(dict(raw))
    word = str(raw).strip().lower()
    raw = item.synonyms.get(word, raw) if isinstance(raw, str | int | float) else raw
    if raw is None or (item.optional and isinstance(raw, str) and raw.lower() in ("none", "null")):
        if item.optional:
            return None
        raise ConfigError(f"`{item.name}` ({origin}) needs a value", f"{item.name}: {item.help}")
    try:
        value = to_type(item.base_type, raw)
    except (TypeError, ValueError, OverflowError):
        raise _wrong(item, raw, origin, f"should be {type_name(item.base_type)}") from None
    _check_bounds(item, value, origin)
    return value


def _check_bounds(item: Setting, value: Any, origin: str) -> None:
    if item.choices and value not in item.choices:
        near = difflib.get_close_matches(str(value), item.choices, n=1)
        raise _wrong(
            item,
            value,
            origin,
            f"should be one of {', '.join(item.choices)}",
            near[0] if near else None,
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value):
        raise _wrong(item, value, origin, "should be a finite number")
    if item.minimum is not None and value < item.minimum:
        raise _wrong(item, value, origin, f"should be at least {item.minimum:.12g}")
    if item.above is not None and value <= item.above:
        raise _wrong(item, value, origin, f"should be above {item.above:.12g}")
    if item.maximum is not None and value > item.maximum:
        raise _wrong(item, value, origin, f"should be at most {item.maximum:.12g}")
    if item.whole_from is not None and value >= item.whole_from and value != int(value):
        raise _wrong(item, value, origin, f"should be a whole number from {item.whole_from:g} on")


def _wrong(item: Setting, raw: Any, origin: str, what: str, near: str | None = None) -> ConfigError:
    hint = f"did you mean `{near}`?" if near else f"{item.name}: {item.help}"
    return ConfigError(f"`{item.name}` ({origin}) {what}, not `{raw}`", hint)


def without_none(declared: Any) -> Any:
    """A declared type without `| None`."""
    options = [option for option in typing.get_args(declared) if option is not type(None)]
    return functools.reduce(operator.or_, options) if _is_union(declared) else declared


def _is_union(declared: Any) -> bool:
    return typing.get_origin(declared) in (typing.Union, types.UnionType)


def type_name(declared: Any) -> str:
    """A declared type in the words of messages: a whole number, true or false, a list."""
    names = {
        int: "a whole number",
        float: "a number",
        int | float: "a number",
        bool: "true or false",
        str: "text",
    }
    return names.get(declared, "a list")


def to_type(declared: Any, raw: Any) -> Any:
    """A raw value or text as a declared type: bool, int, float, str or a tuple of one of them.
    Raises TypeError, ValueError or OverflowError for what cannot be one."""
    if typing.get_origin(declared) in (tuple, list):
        inner = typing.get_args(declared)[0]
        parts = (
            [part.strip() for part in raw.split(",") if part.strip()]
            if isinstance(raw, str)
            else list(raw)
        )
        return tuple(to_type(inner, part) for part in parts)
    if declared is bool:
        return _to_bool(raw)
    if declared is int:
        return _to_int(raw)
    if declared is float:
        if isinstance(raw, bool):
            raise ValueError(raw)
        return float(raw)
    if declared == int | float:
        number = to_type(float, raw)
        return int(number) if math.isfinite(number) and number == int(number) else number
    if isinstance(raw, dict | list | tuple):
        raise ValueError(raw)
    return str(raw)


def _to_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    words = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }
    return words[str(raw).lower()] if str(raw).lower() in words else _refuse(raw)


def _to_int(raw: Any) -> int:
    if isinstance(raw, bool):
        raise ValueError(raw)
    number = float(raw.replace("_", "")) if isinstance(raw, str) else raw
    return int(number) if number == int(number) else _refuse(raw)


def _refuse(raw: Any) -> Any:
    raise ValueError(raw)


def as_dict(config: Any) -> dict[str, Any]:
    """The settings of an object by name: what `config.yaml` holds and `resolve` reads back."""
    values = {name: getattr(config, name) for name in settings_of(type(config))}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def validate(config: T) -> T:
    """Check an object that was made in code as `resolve` checks files and flags. Raises
    ConfigError."""
    known = settings_of(type(config))
    values = {
        name: convert(item, getattr(config, name), "given in code") for name, item in known.items()
    }
    return cast(T, dataclasses.replace(cast(Any, config), **values))
