"""Where words go: the result to stdout, everything said about it to stderr, in three modes.

human: text and tables; json: one JSON object (or JSON lines) and nothing else on stdout; quiet: the
bare value or values, one a line. A command writes its result once, with `result` or `table`, and
gets all three modes. Rich is imported only when something needs more than plain text."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from chuk_cli.streams import follows
from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STYLES = {
    "success": "32",
    "error": "1;31",
    "warning": "33",
    "hint": "36",
    "command": "36",
    "secondary": "2",
}


def has_colour(stream: TextIO) -> bool:
    """Whether colour codes may be written: a terminal, and neither NO_COLOR nor TERM=dumb;
    FORCE_COLOR overrides."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, stream: TextIO) -> str:
    """Text in one of the named styles, or as it is where colour does not belong."""
    return f"\033[{STYLES[style]}m{text}\033[0m" if has_colour(stream) else text


def paint_commands(text: str, stream: TextIO) -> str:
    """Colour what stands in backticks; the backticks stay, so meaning is never by colour alone."""
    parts = text.split("`")
    if len(parts) % 2 == 0 or not has_colour(stream):
        return text
    return "".join(
        paint(f"`{part}`", "command", stream) if i % 2 else part for i, part in enumerate(parts)
    )


def tell(text: str, label: str = "") -> None:
    """One message on stderr, with what stands in backticks coloured; a label (`error`, `hint` …)
    goes before it."""
    before = paint(f"{label}:", label, sys.stderr) + " " if label else ""
    sys.stderr.write(f"{before}{paint_commands(text, sys.stderr)}\n")
    sys.stderr.flush()


def tell_json(record: Mapping[str, Any]) -> None:
    """One JSON object on stderr."""
    sys.stderr.write(to_json(record) + "\n")
    sys.stderr.flush()


def to_json(data: Any) -> str:
    """One line of JSON. Paths become text, dataclasses objects, and numbers JSON cannot hold (nan,
    inf) text."""
    return json.dumps(_plain(data), ensure_ascii=not _is_utf(sys.stdout), default=str)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [
            _plain(inner)
            for inner in (sorted(value) if isinstance(value, set | frozenset) else value)
        ]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


def _is_utf(stream: TextIO) -> bool:
    return "utf" in (stream.encoding or "").lower()


def glyph(fancy: str, plain: str, stream: TextIO | None = None) -> str:
    """`fancy` where the stream (stderr when not given) can encode it, else `plain`."""
    try:
        fancy.encode((stream or sys.stderr).encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return plain
    return fancy


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> RenderableType:
    """A table without boxes: bold header, numbers to the right, text to the left. For
    `result(human=…)`."""
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    table.padding = (0, 2, 0, 0)
    for index, column in enumerate(columns):
        numeric = any(row[index] is not None for row in cells) and all(
            _is_number(row[index]) for row in cells
        )
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(_cell(value)) for value in row))
    return table


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return (value[:1].isdigit() and " " in value) or value.replace(",", "").replace(
            ".", "", 1
        ).isdigit()
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass
class Out:
    """The two streams of a command in one of three modes: `human`, `json` or `quiet`."""

    mode: str = "human"
    _console: Console | None = None
    _err_console: Console | None = None

    @classmethod
    def of(cls, json: bool = False, quiet: bool = False) -> Out:
        """From the flags of a command. Both at once is a ConfigError."""
        if json and quiet:
            raise ConfigError("`--json` and `--quiet` exclude each other", "give one of them")
        return cls("json" if json else "quiet" if quiet or follows() else "human")

    @property
    def json(self) -> bool:
        """Whether stdout holds JSON only."""
        return self.mode == "json"

    @property
    def quiet(self) -> bool:
        """Whether stdout holds the bare value only."""
        return self.mode == "quiet"

    @property
    def human(self) -> bool:
        """Whether a person reads along."""
        return self.mode == "human"

    @property
    def console(self) -> Console:
        """Rich on stdout: no markup, no emoji, no highlighting; off a terminal never wrapped."""
        self._console = self._console or make_console(sys.stdout)
        return self._console

    @property
    def err_console(self) -> Console:
        """Rich on stderr, as `console`."""
        self._err_console = self._err_console or make_console(sys.stderr)
        return self._err_console

    def result(
        self,
        data: Mapping[str, Any] | Sequence[Any],
        human: str | RenderableType | None = None,
        quiet: str | Iterable[str] | None = None,
    ) -> None:
        """Write the result: `data` as one JSON value, or `quiet` (text, or values one a line), or
        `human`.

        Without `human` a person gets `data` as `key  value` lines; without
        `quiet` nothing is written in quiet mode.
        """
        if self.json:
            self._write(to_json(data))
        elif self.quiet:
            for line in [quiet] if isinstance(quiet, str) else quiet or []:
                self._write(line)
        elif human is None:
            self._write(_as_lines(data))
        elif isinstance(human, str):
            self._write(human)
        else:
            self.console.print(human)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table as the whole result: JSON gets a list of objects keyed by column, quiet the first
        column.

        For other JSON keys or quiet values use `result(data, human=make_table(…), quiet=…)`.
        """
        cells = [list(row) for row in rows]
        if self.json:
            self._write(to_json([dict(zip(columns, row, strict=True)) for row in cells]))
        elif self.quiet:
            for row in cells:
                self._write(str(row[0]))
        else:
            self.console.print(make_table(title, columns, cells))

    def line(self, record: Mapping[str, Any]) -> None:
        """One JSON line, flushed, in JSON mode; nothing in the others."""
        if self.json:
            self._write(to_json(record))
            sys.stdout.flush()

    def say(self, text: str = "") -> None:
        """Tell a person something about the work, on stderr. Silent in JSON and quiet mode."""
        if self.human:
            tell(text)

    def note(self, text: str) -> None:
        """Something that is as it should be and good to know, on stderr; silent in quiet mode."""
        if self.json:
            tell_json({"note": text})
        elif self.human:
            tell(f"note: {text}")

    def warn(self, text: str, hint: str = "") -> None:
        """Something that may be wrong, on stderr: text, or a JSON line in JSON mode. Silent in
        quiet mode."""
        if self.json:
            tell_json({"warning": {"message": text, "hint": hint}})
        elif self.human:
            tell(text, "warning")
            if hint:
                tell(hint, "hint")

    def warn_of_idle(self, names: Sequence[str]) -> None:
        """Name options of sampling that are given and change nothing, because the likeliest token
        is taken."""
        if names:
            flags = ", ".join(f"`--{name.replace('_', '-')}`" for name in names)
            self.warn(
                f"without chance {flags} changes nothing: the temperature is 0",
                "raise --temperature",
            )

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Say what is being waited for: a spinner on a terminal, one line elsewhere, nothing in
        other modes."""
        if self.human and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            spinner = "dots" if glyph("⠋", "") else "line"
            with self.err_console.status(text, spinner=spinner):
                yield
            return
        self.say(text)
        yield

    def confirm(self, question: str, yes: bool) -> None:
        """Go on only if the person agrees; `yes` is the value of `--yes`. Refuses where nobody can
        be asked."""
        if yes:
            return
        if not self.human or not sys.stdin.isatty() or not sys.stderr.isatty():
            raise ConfigError(f"{question} Nobody can be asked here", "add `--yes` to go ahead")
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise ConfigError("not confirmed; nothing was done", "add `--yes` to skip the question")

    def _write(self, text: str) -> None:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")


def make_console(stream: TextIO) -> Console:
    """A Rich console that prints text as it is: `[brackets]` stay, numbers are not coloured."""
    from rich.console import Console

    wide = None if stream.isatty() or os.environ.get("COLUMNS") else 1000
    return Console(file=stream, width=wide, markup=False, highlight=False, emoji=False)


def _as_lines(data: Mapping[str, Any] | Sequence[Any]) -> str:
    if not isinstance(data, Mapping):
        return "\n".join(str(item) for item in data)
    width = max((len(str(key)) for key in data), default=0)
    return "\n".join(
        f"{str(key).replace('_', ' '):<{width}}  {_cell(value)}" for key, value in data.items()
    )
