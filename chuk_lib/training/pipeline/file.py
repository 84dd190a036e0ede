"""A pipeline as a YAML file: `stages`, and beside it settings for all stages that know them.

    model: ./base                      stages:
    seed: 3                              - kind: sft           # name: unset, it is the kind
    stages: …                              data: talk.jsonl    # settings, flat or under `settings:`

A stage may also be a bare kind (`- eval`) or `- sft: {data: …}`, and `stages` may be a mapping of
names to settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chuk_lib.config.paths import beside
from chuk_lib.config.settings import Layer
from chuk_lib.errors import ConfigError
from chuk_lib.training.pipeline.config import StageSpec, kinds, known_settings, name_stages

_Part = tuple[str, str, tuple[Layer, ...], str]


def read_pipeline(path: Path) -> tuple[list[StageSpec], list[Layer]]:
    """The stages of a file (none when it has only settings), and its settings for all stages.

    A relative path means one beside the file where that exists. Raises ConfigError naming file and
    line."""
    import yaml

    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(
                f"`{path}` holds no settings", "write `stages:` and settings as `name: value` lines"
            )
        return _read(_File(path, loader), root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(
            f"`{path}`{where}: {problem}", "check indentation, quotes and colons there"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"`{path}` is not UTF-8 text", "`--config` takes a YAML file") from None
    except OSError as error:
        raise ConfigError(
            f"cannot read `{path}`: {(error.strerror or str(error)).lower()}", "check `--config`"
        ) from None


class _File:
    """A YAML document whose nodes know their line."""

    def __init__(self, path: Path, loader: Any) -> None:
        self.path = path
        self._loader = loader

    def origin(self, node: Any) -> str:
        """`pipeline.yaml:12`."""
        return f"{self.path.name}:{node.start_mark.line + 1}"

    def value(self, node: Any) -> Any:
        """A node as plain data."""
        return self._loader.construct_object(node, deep=True)

    def entries(self, node: Any) -> Iterator[tuple[str, Any, Any]]:
        """(key, key node, value node) of a mapping. Raises ConfigError for a key that stands
        twice."""
        seen: dict[str, str] = {}
        for key_node, value_node in node.value:
            key, where = str(self.value(key_node)), self.origin(key_node)
            if seen.setdefault(key, where) != where:
                raise ConfigError(f"`{key}` ({where}) is already set in {seen[key]}", "keep one")
            yield key, key_node, value_node

    def setting(self, key: str, key_node: Any, value_node: Any) -> Layer:
        """One setting with its line."""
        if _is_mapping(value_node):
            raise ConfigError(
                f"`{key}` ({self.origin(key_node)}) is a section",
                "settings of a stage belong into its entry of stages",
            )
        value, item = self.value(value_node), known_settings().get(key)
        return Layer(
            self.origin(key_node), {key: value if item is None else beside(self.path, item, value)}
        )


def _read(file: _File, root: Any) -> tuple[list[StageSpec], list[Layer]]:
    parts: list[_Part] = []
    shared: list[Layer] = []
    for key, key_node, value_node in file.entries(root):
        if key != "stages":
            shared.append(file.setting(key, key_node, value_node))
        elif _is_mapping(value_node):
            parts += [_named(file, *entry) for entry in file.entries(value_node)]
        elif _is_sequence(value_node):
            parts += [_item(file, node) for node in value_node.value]
        else:
            texts = str(file.value(value_node) or "").split(",")
            parts += [
                ("", text.strip(), (), file.origin(key_node)) for text in texts if text.strip()
            ]
        if key == "stages" and not parts:
            raise ConfigError(
                f"`stages` ({file.origin(key_node)}) is empty", f"kinds: {', '.join(kinds())}"
            )
    return name_stages(parts), shared


def _item(file: _File, node: Any) -> _Part:
    """An entry of a list of stages."""
    if not _is_mapping(node):
        return "", str(file.value(node)), (), file.origin(node)
    entries = list(file.entries(node))
    keys = [key for key, *_ in entries]
    if len(entries) == 1 and keys[0] not in ("kind", "name"):
        return _named(file, *entries[0])
    return _stage(file, "", entries, file.origin(node))


def _named(file: _File, name: str, key_node: Any, value_node: Any) -> _Part:
    """A stage whose name is a key: its kind is in it, or the name says it."""
    entries = list(file.entries(value_node)) if _is_mapping(value_node) else []
    if not entries and file.value(value_node) is not None:
        raise ConfigError(
            f"stage `{name}` ({file.origin(key_node)}) should hold settings",
            "write `name: value` lines",
        )
    return _stage(file, name, entries, file.origin(key_node))


def _stage(file: _File, name: str, entries: list[tuple[str, Any, Any]], origin: str) -> _Part:
    about = {key: str(file.value(value)) for key, _, value in entries if key in ("kind", "name")}
    name = about.get("name", name)
    kind = about.get("kind", name)
    if not kind:
        raise ConfigError(f"a stage ({origin}) has no `kind`", f"one of: {', '.join(kinds())}")
    layers: list[Layer] = []
    for key, key_node, value_node in entries:
        if key == "settings" and _is_mapping(value_node):
            layers += [file.setting(*inner) for inner in file.entries(value_node)]
        elif key not in ("kind", "name"):
            layers.append(file.setting(key, key_node, value_node))
    is_kind = name == kind
    return "" if is_kind and "name" not in about else name, kind, tuple(layers), origin


def _is_mapping(node: Any) -> bool:
    return getattr(node, "id", "") == "mapping"


def _is_sequence(node: Any) -> bool:
    return getattr(node, "id", "") == "sequence"
