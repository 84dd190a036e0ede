"""Several curves in one braille chart. Each has a colour, and a letter at its end so that colour is
never needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from rich.text import Text

from chuk_cli import humanize

COLOURS = ("cyan", "yellow", "magenta", "green", "bright_blue", "red")
# Bit of each dot, by column and row of a cell.
_DOTS = (
    (0x01, 0x02, 0x04, 0x40),
    (0x08, 0x10, 0x20, 0x80),
)
_LABEL = 8
Cell = tuple[str, str]  # character, style


@dataclass(frozen=True)
class Series:
    """One curve: finite (step, value) points count, others are gaps."""

    label: str
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class _Frame:
    """What the edges of the plot mean, and how large it is in cells."""

    first: int
    last: int
    low: float
    high: float
    width: int
    rows: int

    def column(self, step: int, across: int) -> int:
        return round(
            (step - self.first) / max(1, self.last - self.first) * (self.width * across - 1)
        )

    def level(self, value: float, down: int) -> int:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round((1 - share) * (self.rows * down - 1))


def chart(
    series: Sequence[Series], width: int, rows: int, ascii: bool = False, log: bool = False
) -> list[Text]:
    """Plot, axis and legend, `width` columns wide; empty when no curve has a finite point. `log`
    leaves out what is not above 0."""
    curves = [[(step, _scaled(value, log)) for step, value in item.points] for item in series]
    curves = [[(step, value) for step, value in curve if math.isfinite(value)] for curve in curves]
    if not any(curves):
        return []
    frame = _frame(curves, width - _LABEL - len(series) - 1, rows)
    cells = _cells(curves, frame, ascii)
    for index, curve in enumerate(curves):
        if curve:
            _name_end(cells[frame.level(curve[-1][1], 1)], frame.column(curve[-1][0], 1), index)
    lines = [_line(index, row, frame, ascii, log) for index, row in enumerate(cells)]
    return [
        *lines,
        _axis(frame, ascii),
        *(_legend(index, item) for index, item in enumerate(series)),
    ]


def letter(index: int) -> str:
    """What marks curve `index`: a, b, c …"""
    return chr(ord("a") + index % 26)


def colour(index: int) -> str:
    """The colour of curve `index`; they repeat."""
    return COLOURS[index % len(COLOURS)]


def _scaled(value: float, log: bool) -> float:
    if not log:
        return value
    return math.log10(value) if value > 0 else math.nan


def _frame(curves: Sequence[Sequence[tuple[int, float]]], width: int, rows: int) -> _Frame:
    """The highest points may be cut: curves that start at ten and end at one still show their
    ends."""
    steps = [step for curve in curves for step, _ in curve]
    low = min(value for curve in curves for _, value in curve)
    high = max(
        sorted(value for _, value in curve)[int((len(curve) - 1) * 0.97)]
        for curve in curves
        if curve
    )
    if high - low < 1e-9 * max(1.0, abs(high)):
        margin = abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    return _Frame(min(steps), max(steps), low, high, max(2, width), rows)


def _cells(
    curves: Sequence[Sequence[tuple[int, float]]], frame: _Frame, ascii: bool
) -> list[list[Cell]]:
    """Later curves lie on top where two meet in one cell."""
    grid: list[list[Cell]] = [[(" ", "")] * (frame.width + len(curves)) for _ in range(frame.rows)]
    across, down = (1, 1) if ascii else (2, 4)
    for index, curve in enumerate(curves):
        bits: dict[tuple[int, int], int] = {}
        for column, level in _dots(curve, frame, across, down):
            cell = (level // down, column // across)
            bits[cell] = bits.get(cell, 0) | (0 if ascii else _DOTS[column % 2][level % 4])
        for (row, column), mask in bits.items():
            grid[row][column] = (letter(index) if ascii else chr(0x2800 + mask), colour(index))
    return grid


def _name_end(row: list[Cell], column: int, index: int) -> None:
    """Write the letter of a curve into the first free cell right of its end."""
    free = [place for place in range(column + 1, len(row)) if row[place][0] == " "]
    if free:
        row[free[0]] = (letter(index), f"bold {colour(index)}")


def _dots(
    curve: Sequence[tuple[int, float]], frame: _Frame, across: int, down: int
) -> list[tuple[int, int]]:
    """(column, level) of every dot: the mean of the points in a column, and lines between
    columns."""
    sums: dict[int, tuple[float, int]] = {}
    for step, value in curve:
        column = frame.column(step, across)
        total, count = sums.get(column, (0.0, 0))
        sums[column] = (total + value, count + 1)
    levels = [
        (column, frame.level(total / count, down))
        for column, (total, count) in sorted(sums.items())
    ]
    dots = levels[:1]
    for (left, start), (right, end) in pairwise(levels):
        length = max(right - left, abs(end - start))
        for part in range(1, length + 1):
            dots.append(
                (
                    left + round((right - left) * part / length),
                    start + round((end - start) * part / length),
                )
            )
    return dots


def _line(index: int, row: list[Cell], frame: _Frame, ascii: bool, log: bool) -> Text:
    shown = {0: frame.high, frame.rows - 1: frame.low}
    if frame.rows >= 7:
        shown[frame.rows // 2] = frame.high - (frame.high - frame.low) * (frame.rows // 2) / (
            frame.rows - 1
        )
    value = shown.get(index)
    text = "" if value is None else _short(10**value if log else value)
    edge = "|" if ascii else "│" if value is None else "┤"
    line = Text.assemble((f"{text:>{_LABEL - 2}} {edge}", "dim"))
    for style, group in groupby(row, key=lambda cell: cell[1]):
        line.append("".join(character for character, _ in group), style=style)
    return line


def _axis(frame: _Frame, ascii: bool) -> Text:
    corner, bar = ("+", "-") if ascii else ("╰", "─")
    first, last = f" {frame.first:,} ", f" step {frame.last:,} "
    middle = bar * max(0, frame.width - len(first) - len(last) - 2)
    return Text(f"{'':>{_LABEL - 2}} {corner}{bar}{first}{middle}{last}{bar}", style="dim")


def _legend(index: int, item: Series) -> Text:
    line = Text.assemble(
        (" " * _LABEL, ""), (letter(index), f"bold {colour(index)}"), f"  {item.label}"
    )
    if item.points:
        line.append(f"  {humanize.number(item.points[-1][1])}", style="dim")
    return line


def _short(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2f}"
    if abs(value) < 0.01:
        return f"{value:.0e}"
    return humanize.count(value).replace(" ", "") if abs(value) >= 1e5 else f"{value:.0f}"
