"""Who knows whom: the packages of the project and what they import, directly and through each
other.

An import counts wherever it stands: at the top, inside a function, under TYPE_CHECKING, and as a
module that is named in a text (`"chuk_lib.x:y"`, `import_module(f"chuk_lib.x.{name}")`)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

NAMED = re.compile(r"chuk_(?:lib|cli)(?:\.\w+)*(?::[\w.]+)?")
OWN_ROOMS = ("chuk_lib.data.tokenizers",)
"""Packages inside a room that are rooms of their own: data and models both stand on tokenizers."""

Edges = Mapping[str, Mapping[str, str]]
"""Room to the rooms that it imports, each with a place that does: `module imports module`."""


def room_of(module: str) -> str:
    """`chuk_lib.data.turns` is in `data`; all of `chuk_cli` is one room."""
    own = next((name for name in OWN_ROOMS if f"{module}.".startswith(f"{name}.")), None)
    if own is not None:
        return own.removeprefix("chuk_lib.")
    first, _, rest = module.partition(".")
    return rest.split(".")[0] if first == "chuk_lib" and rest else first


def rooms(root: Path) -> Edges:
    """The rooms of the project under `root`, with what each imports."""
    tops = (root / "chuk_lib", root / "chuk_cli")
    files = {_module(path.relative_to(root)): path for top in tops for path in top.rglob("*.py")}
    known = {name for module in files for name in _with_packages(module)}
    found: dict[str, dict[str, str]] = {}
    for module, path in sorted(files.items()):
        here = found.setdefault(room_of(module), {})
        for name in _named(ast.parse(path.read_text(encoding="utf-8"))):
            other = _known(name, known)
            if other not in ("", "chuk_lib") and room_of(other) != room_of(module):
                here.setdefault(room_of(other), f"{module} imports {other}")
    return found


def reached(edges: Edges, room: str) -> dict[str, list[str]]:
    """Every room that one knows, through others too, with the imports that lead there; itself if it
    is in a cycle."""
    ways: dict[str, list[str]] = {}
    waiting: list[tuple[str, list[str]]] = [(room, [])]
    while waiting:
        at, way = waiting.pop(0)
        for other, place in edges.get(at, {}).items():
            if other not in ways:
                ways[other] = [*way, place]
                waiting.append((other, ways[other]))
    return ways


def cycles(edges: Edges) -> dict[str, list[str]]:
    """The rooms that know themselves through others, with the imports that close the circle."""
    return {room: ways[room] for room in edges if room in (ways := reached(edges, room))}


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _with_packages(module: str) -> Iterator[str]:
    while module:
        yield module
        module = module.rpartition(".")[0]


def _known(name: str, known: Set[str]) -> str:
    """The module or package that a dotted name is, or that it is in; "" for another project's."""
    return next((part for part in _with_packages(name) if part in known), "")


def _named(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that a file imports or names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value.rstrip(".")  # the beginning of an f-string ends with a dot
            if NAMED.fullmatch(text):
                yield text.partition(":")[0]
