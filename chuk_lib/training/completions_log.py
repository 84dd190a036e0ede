"""All that a model writes while it is trained: `completions.jsonl` of a run, a line a
completion."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from chuk_lib.utils.paths import replace_file


class CompletionsLog:
    """Appends completions; made when there is a first one. A resumed run begins with the lines of
    the steps that its checkpoint knows: later ones are written again."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._stream: TextIO | None = None
        if path.exists():
            _keep_up_to(path, step)

    def add(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append the completions of a finished step."""
        if self._stream is None:
            self._stream = self._path.open("a", encoding="utf-8")
        for row in rows:
            self._stream.write(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()


def read_completions(path: Path) -> Iterator[dict[str, Any]]:
    """The completions of a run in their order; a line that a killed process left half-written is
    passed over."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _keep_up_to(path: Path, step: int) -> None:
    with replace_file(path) as partial, partial.open("w", encoding="utf-8") as out:
        for row in read_completions(path):
            if isinstance(row.get("step"), int) and row["step"] <= step:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
