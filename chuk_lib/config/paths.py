"""Settings that name files: which they are says their `kind`, and here is all that is done with
them.

`path` is a file or folder, `data` one or several of them, `model` one too (or a hub id, or
`stage:NAME` in a pipeline), `rewards` a list of rewards that may stand in files. A relative path in
a settings file means one beside that file where it exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from chuk_lib.config.data_parts import with_parts
from chuk_lib.config.settings import Setting, settings_of
from chuk_lib.errors import ConfigError

Config = TypeVar("Config")
Move = Callable[[str], str]


def names_of(cls: type, *kinds: str) -> tuple[str, ...]:
    """The settings of a dataclass that are of these kinds, in order of definition."""
    return tuple(name for name, item in settings_of(cls).items() if item.kind in kinds)


def beside(file: Path, item: Setting, value: Any) -> Any:
    """A value of a settings file with its relative paths as seen from here, where what they mean
    stands beside it."""
    return moved(item, value, lambda text: _beside(file, text))


def absolute(config: Config) -> Config:
    """Settings with local paths made absolute, so that they hold from any folder. What does not
    exist stays."""
    return with_paths(config, absolute_path, "path", "data", "model", "rewards")


def with_paths(config: Config, move: Move, *kinds: str) -> Config:
    """Settings with `move` done to every path in those of these kinds."""
    known: Any = settings_of(type(config))
    names = names_of(type(config), *kinds)
    changed = {name: moved(known[name], getattr(config, name), move) for name in names}
    made: Config = replace(config, **changed)  # type: ignore[type-var]
    return made


def moved(item: Setting, value: Any, move: Move) -> Any:
    """A setting's value (as given, or converted) with `move` done to every path in it."""
    if item.kind in ("value", "json"):
        return value
    if isinstance(value, list | tuple):
        return type(value)(moved(item, part, move) for part in value)
    if not isinstance(value, str) or not value:
        return value
    if item.kind == "data":
        return with_parts(value, move)
    return _in_rewards(value, move) if item.kind == "rewards" else move(value)


def reward_paths(specs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(file, or model of a `reward_model`; which of the two: `file` or `model`) of rewards that
    stand in one."""
    from chuk_lib.config.reward_spec import parse_spec

    for spec in specs:
        parsed = parse_spec(spec)
        if parsed.file is not None:
            yield parsed.file, "file"
        elif parsed.name == "reward_model" and "path" in parsed.arguments:
            yield parsed.arguments["path"], "model"


def _in_rewards(text: str, move: Move) -> str:
    """Rewards as text: one, or several with commas between."""
    parts = []
    for part in text.split(","):
        with suppress(ConfigError):  # the middle of a reward whose arguments have commas
            for path, _ in reward_paths([part.strip()]):
                part = part.replace(path, move(path), 1)
        parts.append(part)
    return ",".join(parts)


def _beside(file: Path, text: str) -> str:
    if text in ("", "-") or text.startswith("stage:") or Path(text).is_absolute():
        return text
    here = file.parent / text
    return str(here) if here.exists() else text


def absolute_path(text: str) -> str:
    """A path that exists made absolute; a hub id, stdin, `~/…` and what does not exist stay."""
    return str(Path(text).resolve()) if text not in ("", "-") and Path(text).exists() else text
