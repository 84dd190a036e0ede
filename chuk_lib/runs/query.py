"""Choosing and ordering runs: `status=done`, `best<1.5`, `model=*qwen*`, and a key to sort by."""

from __future__ import annotations

import difflib
import fnmatch
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

from chuk_lib.errors import ConfigError
from chuk_lib.events import as_number
from chuk_lib.runs.summary import Summary

_CONDITION = re.compile(r"\s*([\w.-]+?)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*")
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ALSO = {
    "eval": "eval_loss",
    "duration": "seconds",
    "best_eval": "best",
    "started": "began",
    "bytes": "size",
}
_OWN = [item.name for item in fields(Summary) if item.name not in ("metrics", "settings")] + ["age"]


def select(
    runs: Sequence[Summary],
    conditions: Iterable[str],
    spellings: Mapping[str, str] = MappingProxyType({}),
) -> list[Summary]:
    """The runs that meet all conditions. Keys are columns, settings and metrics; text may hold `*`.
    `spellings`: the settings that there are, each by its name and its other names.

    A run without the key meets only `!=`. Raises ConfigError for what is no condition, or a key
    that no run has."""
    kept = list(runs)
    for text in conditions:
        key, relation, wanted = _parse(text)
        name = _known(key, runs, spellings, f"--filter {text}")
        if relation in _ORDER and _number(wanted) is None:
            raise ConfigError(
                f"`--filter {text}`: `{wanted}` is not a number", f"use `{key}=…` to compare text"
            )
        kept = [run for run in kept if _meets(value_of(run, name), relation, wanted)]
    return kept


def arrange(
    runs: Sequence[Summary], key: str, spellings: Mapping[str, str] = MappingProxyType({})
) -> list[Summary]:
    """The runs sorted by a key, `-key` for the other way round; runs without it come last.
    `spellings` as in `select`."""
    name = _known(key.lstrip("-"), runs, spellings, f"--sort {key}")
    known = [run for run in runs if _rank(value_of(run, name)) is not None]
    rest = [run for run in runs if _rank(value_of(run, name)) is None]
    return (
        sorted(
            known, key=lambda run: _rank(value_of(run, name)) or (0, 0), reverse=key.startswith("-")
        )
        + rest
    )


def value_of(run: Summary, name: str) -> Any:
    """A column, else a metric, else a setting of a run."""
    if name in _OWN:
        return getattr(run, name)
    return run.metrics.get(name, run.settings.get(name))


def _parse(text: str) -> tuple[str, str, str]:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"`--filter {text}` is no condition", "for example `--filter status=done` or `best<1.5`"
        )
    return match[1], "=" if match[2] == "==" else match[2], match[3]


def _known(key: str, runs: Sequence[Summary], spellings: Mapping[str, str], where: str) -> str:
    name = key.replace("-", "_").lower()
    settings = {item for run in runs for item in run.settings} | set(spellings.values())
    known = {*_OWN, *settings, *(item for run in runs for item in run.metrics)}
    name = name if name in known else _ALSO.get(name, spellings.get(name, name))
    if name in known:
        return name
    near = difflib.get_close_matches(name, sorted(known | set(_ALSO)), n=1)
    hint = (
        f"did you mean `{near[0]}`?"
        if near
        else f"columns: {', '.join(_OWN)}; settings and metrics work too"
    )
    raise ConfigError(f"`{where}`: no run has `{key}`", hint)


def _meets(value: Any, relation: str, wanted: str) -> bool:
    if relation in _ORDER:
        number, limit = as_number(value), _number(wanted)
        return number is not None and limit is not None and _ORDER[relation](number, limit)
    return _equals(value, wanted) == (relation == "=")


def _equals(value: Any, wanted: str) -> bool:
    if value is None:
        return wanted.lower() in ("none", "null", "-")
    if isinstance(value, bool):
        return wanted.lower() in (
            ("true", "yes", "on", "1") if value else ("false", "no", "off", "0")
        )
    number, limit = as_number(value), _number(wanted)
    if number is not None and limit is not None:
        return math.isclose(number, limit, rel_tol=1e-9)
    texts = [str(value), PurePath(str(value)).name]
    return any(fnmatch.fnmatchcase(text.lower(), wanted.lower()) for text in texts)


def _number(text: str) -> float | None:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        return None


def _rank(value: Any) -> tuple[int, Any] | None:
    """Numbers before text, so that any two values can be ordered; None for what has no place."""
    number = as_number(value)
    if number is not None:
        return None if math.isnan(number) else (0, number)
    return None if value is None else (1, str(value))
