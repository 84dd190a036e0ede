"""YAML settings files as entries that know their line. Safe loading only; a key that stands twice
is an error."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chuk_lib.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """A value and the keys that lead to it (`("optimizer", "eps")`), with the line of the last
    key."""

    keys: tuple[Any, ...]
    value: Any
    line: int

    @property
    def name(self) -> str:
        """The keys with dots between."""
        return ".".join(map(str, self.keys))


def read_entries(path: Path, sections: Collection[str] = ()) -> list[Entry]:
    """The entries of a YAML mapping. Mappings whose dotted name is among `sections` give their own
    entries in their place (an empty one counts as None). Raises ConfigError naming file and line.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"`{path}` holds no settings", "write them as `name: value` lines")
        return list(_entries(loader, root, (), path, sections))
    except yaml.YAMLError as error:
        raise _yaml_error(path, error) from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"`{path}` is not UTF-8 text", "`--config` takes a YAML file of settings"
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot read `{path}`: {reason}", "check `--config`") from None


def _entries(
    loader: Any, node: Any, above: tuple[Any, ...], path: Path, sections: Collection[str]
) -> Iterator[Entry]:
    import yaml

    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = loader.construct_object(key_node, deep=True)
        if seen.setdefault(str(key), line) != line:
            raise ConfigError(
                f"`{path}` line {line}: `{key}` is already set in line {seen[str(key)]}", "keep one"
            )
        name = ".".join(map(str, (*above, key)))
        if name in sections and isinstance(value_node, yaml.MappingNode):
            yield from _entries(loader, value_node, (*above, key), path, sections)
            if not value_node.value:
                yield Entry((*above, key), None, line)
        else:
            yield Entry((*above, key), loader.construct_object(value_node, deep=True), line)


def _yaml_error(path: Path, error: Any) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = f" line {mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not valid YAML"
    return ConfigError(f"`{path}`{where}: {problem}", "check indentation, quotes and colons there")
