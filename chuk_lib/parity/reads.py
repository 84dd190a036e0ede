"""What of a parity folder was read: numbers that no check looked at are named instead of passing
for checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_ROOMS = ("expected", "inputs")


class Seen(Mapping[str, Any]):
    """A mapping of a fixture that remembers which keys were asked for. What it holds is wrapped
    too."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = {key: watched(value) for key, value in values.items()}
        self._asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._asked.add(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other}

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**other, **self}

    def unread(self) -> Iterator[str]:
        """The keys that nobody asked for, the outermost only: `steps` stands for all that is in it.
        Words are notes."""
        for key, value in self._values.items():
            if key in self._asked:
                yield from _inside(value)
            elif not isinstance(value, str) and not (isinstance(value, Seen) and not len(value)):
                yield key


def watched(value: Any) -> Any:
    """Plain data with `Seen` in place of its dictionaries."""
    if isinstance(value, dict):
        return Seen(value)
    return [watched(item) for item in value] if isinstance(value, list) else value


def _inside(value: Any) -> Iterator[str]:
    if isinstance(value, Seen):
        yield from value.unread()
    elif isinstance(value, list):
        for item in value:
            yield from _inside(item)


class ReadingList:
    """The files of a folder that suites opened. A file that several opened was read where any of
    them looked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: dict[str, Seen] = {}

    def once(self, path: str, values: dict[str, Any]) -> Seen:
        """The file's values, watched; the same object for every suite that opens it."""
        return self._opened.setdefault(path, Seen(values))

    def known(self, path: str) -> Seen | None:
        """The values of a file that was opened before."""
        return self._opened.get(path)

    def unread(self) -> tuple[str, ...]:
        """A line for each file of numbers that was not opened, or of which some keys were not asked
        for."""
        return tuple(line for path in self._files() if (line := self._line(path)))

    def _files(self) -> list[str]:
        found = [
            file for room in _ROOMS for file in (self._folder / room).rglob("*") if file.is_file()
        ]
        return sorted(file.relative_to(self._folder).as_posix() for file in found)

    def _line(self, path: str) -> str:
        values = self._opened.get(path)
        if values is None:
            return path
        times = Counter(values.unread())
        parts = [f"{name} ({count} times)" if count > 1 else name for name, count in times.items()]
        return f"{path}: {', '.join(parts)}" if parts else ""
