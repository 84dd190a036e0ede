"""Runs as a table that fits the terminal: the least needed columns give way first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from chuk_cli import humanize
from chuk_cli.dashboard.board import last_part, printable

if TYPE_CHECKING:
    from chuk_lib.runs.summary import Summary

STATUS_STYLES = {
    "running": "bold cyan",
    "done": "green",
    "stopped": "yellow",
    "failed": "bold red",
    "killed": "red",
}
_GAP = 2


def _number(value: float | None) -> str:
    return "-" if value is None else humanize.number(value)


def _steps(run: Summary) -> str:
    return f"{run.step:,}/{run.steps:,}" if run.steps else f"{run.step:,}"


# title -> (what it says of a run, whether it is a number); in the order of the table
_COLUMNS: dict[str, tuple[Callable[[Summary], str], bool]] = {
    "run": (lambda run: printable(run.name), False),
    "status": (lambda run: run.status, False),
    "steps": (_steps, True),
    "loss": (lambda run: _number(run.loss), True),
    "reward": (lambda run: _number(run.reward), True),
    "best eval": (lambda run: _number(run.best), True),
    "took": (lambda run: humanize.duration(run.seconds), True),
    "age": (lambda run: "-" if run.age is None else age(run.age), True),
    "size": (lambda run: humanize.size(run.size), True),
    "how": (lambda run: printable(run.algorithm) or "-", False),
    "model": (lambda run: last_part(run.model) or "-", False),
}
_LEAST_NEEDED = ("how", "size", "took", "model", "age", "best eval")


def age(seconds: float) -> str:
    """A rough time span: `40 s`, `5 m`, `3 h`, `12 d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def table(runs: Sequence[Summary], width: int) -> tuple[Table, list[str]]:
    """The table, and the columns that did not fit."""
    cells = {title: [show(run) for run in runs] for title, (show, _) in _COLUMNS.items()}
    if all(run.reward is None for run in runs):
        del cells["reward"]
    hidden: list[str] = []
    for title in _LEAST_NEEDED:
        if _width(cells) <= width:
            break
        hidden.append(title)
        del cells[title]
    grid = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for title in cells:
        numeric = _COLUMNS[title][1]
        grid.add_column(
            Text(title), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold"
        )
    for row, run in enumerate(runs):
        grid.add_row(*(_cell(title, column[row], run) for title, column in cells.items()))
    return grid, hidden


def _cell(title: str, text: str, run: Summary) -> Text:
    return Text(text, style=STATUS_STYLES.get(run.status, "") if title == "status" else "")


def _width(cells: dict[str, list[str]]) -> int:
    longest = [
        max(Text(text).cell_len for text in [title, *column]) for title, column in cells.items()
    ]
    return sum(longest) + _GAP * (len(longest) - 1)
