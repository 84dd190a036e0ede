"""Modules under their old names: a finder that stands last in `sys.meta_path`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from chuk.moved import MOVED, ROOTS, Moved


class OldModule(ModuleType):
    """A module that has nothing but the names of another; each warns when it is first taken."""

    def __init__(self, name: str, moved: Moved | None) -> None:
        super().__init__(name, moved.words(name) if moved else None)
        self._moved = moved

    def __getattr__(self, name: str) -> Any:
        moved = self.__dict__.get("_moved")
        old = f"`{self.__name__}.{name}`"
        if moved is None or name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name in moved.gone:
            raise ImportError(f"{old} is gone: {moved.gone[name]}", name=self.__name__)
        home, _, target = moved.target(name).rpartition(":")
        try:
            value = getattr(import_module(home), target)
        except AttributeError:
            words = f"there is no {old}; {moved.words(self.__name__)}"
            raise ImportError(words, name=self.__name__) from None
        note = f" ({moved.note})" if moved.note else ""
        now = f"{old} is now: from {home} import {target}{note}"
        warnings.warn(now, DeprecationWarning, stacklevel=2)
        self.__dict__[name] = value
        return value


class OldLoader(Loader):
    """Makes the module of an old name, unless it has no successor."""

    def __init__(self, moved: Moved | None) -> None:
        self.moved = moved

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module, still empty."""
        return OldModule(spec.name, self.moved)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing, for names are looked up when used. Raises ImportError without a successor."""
        if self.moved is not None and not self.moved.home:
            raise ImportError(self.moved.words(module.__name__), name=module.__name__)


class OldNames(MetaPathFinder):
    """Finds the predecessor's modules. A package of the same name that is not ours is left be."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """How an old module is made; None for every other name."""
        root, _, rest = fullname.partition(".")
        if root not in ROOTS:
            return None
        parent = sys.modules.get(fullname.rpartition(".")[0])
        if rest and root != "chuk" and not isinstance(parent, OldModule):
            return None
        moved = MOVED.get(fullname) or _same_place(fullname)
        inner = any(name.startswith(fullname + ".") for name in MOVED)
        if moved is None and not inner:
            return None
        return ModuleSpec(fullname, OldLoader(moved), is_package=inner or root == "chuk")


def _same_place(fullname: str) -> Moved | None:
    """`chuk.X` where `chuk_lib.X` is."""
    root, _, rest = fullname.partition(".")
    if root != "chuk":
        return None
    home = f"chuk_lib.{rest}"
    try:
        return Moved(home) if find_spec(home) else None
    except ModuleNotFoundError:
        return None


def install() -> None:
    """Let the old names be found, after everything else."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.append(OldNames())
