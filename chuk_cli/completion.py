"""What the shell's Tab key offers for the values of options. Nothing heavy is imported before it is
pressed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

Complete = Callable[[str], list[str]]


def words(*known: str) -> Complete:
    """Offer these words."""
    return lambda incomplete: begun(known, incomplete)


def begun(known: Iterable[str], incomplete: str) -> list[str]:
    """Those of the words that begin with what is typed."""
    return [word for word in known if word.startswith(incomplete)]


def formats(incomplete: str) -> list[str]:
    """The formats of rows."""
    from chuk_lib.data import formats as known

    return begun(known.formats(), incomplete)


def rewards(incomplete: str) -> list[str]:
    """The rewards that come with chuk."""
    from chuk_lib.rewards.builtin import BUILT_IN

    return begun(BUILT_IN, incomplete)


def run_paths(incomplete: str) -> list[str]:
    """Paths of runs under `runs/`."""
    from chuk_lib.runs.find import RUNS, list_runs

    return begun(map(str, list_runs(RUNS)) if RUNS.is_dir() else (), incomplete)


def settings_files(incomplete: str) -> list[str]:
    """The settings files that come with chuk, and those that lie here."""
    from chuk_lib.config.files import shipped

    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    here = [str(path) for path in folder.glob("*.y*ml")] if folder.is_dir() else []
    return begun([*sorted(here), *(item.name for item in shipped())], incomplete)


def commands_or_files(incomplete: str) -> list[str]:
    """What `chuk config show` takes."""
    from chuk_lib.training.recipes import RECIPES

    return [*begun(RECIPES, incomplete), *settings_files(incomplete)]


def setting_of(cls: type) -> Complete:
    """Offer `name=` for each setting, and its choices behind it."""

    def complete(incomplete: str) -> list[str]:
        from chuk_lib.config.settings import settings_of

        known = settings_of(cls)
        name, equals, _ = incomplete.partition("=")
        choices = known[name].choices if equals and name in known else ()
        return begun(
            [f"{name}={choice}" for choice in choices] or [f"{name}=" for name in known], incomplete
        )

    return complete
