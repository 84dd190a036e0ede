"""Curves in characters: a train line in braille (eight dots a cell), evaluations as marks on top.

Without braille each column gets one `*`. Marks differ from the line in shape, so colour is never
needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

Point = tuple[int, float]
BLANK, LINE, MARK = "blank", "line", "mark"
# Bit of each dot, by column and row of a cell.
_DOTS = (
    (0x01, 0x02, 0x04, 0x40),
    (0x08, 0x10, 0x20, 0x80),
)


class Plot(NamedTuple):
    """`cells` are rows of (character, kind); the axis ends are what the edges of the plot mean."""

    cells: list[list[tuple[str, str]]]
    low: float
    high: float
    first: int
    last: int


def plot(
    line: Sequence[Point], marks: Sequence[Point], width: int, height: int, ascii: bool = False
) -> Plot | None:
    """Draw points (step, value) into `width` x `height` cells; None when there is nothing finite to
    draw.

    The highest tenth of the first steps may be cut: a curve that starts at ten and ends at one
    still shows its end."""
    line = [point for point in line if math.isfinite(point[1])]
    marks = [point for point in marks if math.isfinite(point[1])]
    both = [*line, *marks]
    if not both or width < 2 or height < 1:
        return None
    first, last = min(step for step, _ in both), max(step for step, _ in both)
    low, high = _range([value for _, value in line], [value for _, value in marks])
    across, down = (1, 1) if ascii else (2, 4)
    columns = _columns(line, first, last, width * across)
    levels = [
        None if value is None else _level(value, low, high, height * down) for value in columns
    ]
    cells = _ascii_cells(levels, width, height) if ascii else _braille_cells(levels, width, height)
    for step, value in marks:
        column = round((step - first) / max(1, last - first) * (width - 1))
        cells[_level(value, low, high, height)][column] = ("o" if ascii else "●", MARK)
    return Plot(cells, low, high, first, last)


def _range(line: list[float], marks: list[float]) -> tuple[float, float]:
    ordered = sorted(line)
    top = [ordered[min(len(ordered) - 1, int(len(ordered) * 0.97))]] if ordered else []
    low, high = min(ordered[:1] + marks), max(top + marks)
    if high - low < 1e-9 * max(1.0, abs(high)):
        margin = abs(high) * 0.1 or 1.0
        return low - margin, high + margin
    return low, high


def _columns(points: Sequence[Point], first: int, last: int, n_columns: int) -> list[float | None]:
    """The mean of the points that fall into each column; gaps are filled on a straight line."""
    sums, counts = [0.0] * n_columns, [0] * n_columns
    for step, value in points:
        column = round((step - first) / max(1, last - first) * (n_columns - 1))
        sums[column] += value
        counts[column] += 1
    means = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
    known = [index for index, mean in enumerate(means) if mean is not None]
    for left, right in pairwise(known):
        start, end = sums[left] / counts[left], sums[right] / counts[right]
        for index in range(left + 1, right):
            means[index] = start + (end - start) * (index - left) / (right - left)
    return means


def _level(value: float, low: float, high: float, n_levels: int) -> int:
    """Row from the top, clamped into the plot."""
    share = (min(max(value, low), high) - low) / (high - low)
    return round((1 - share) * (n_levels - 1))


def _braille_cells(
    levels: list[int | None], width: int, height: int
) -> list[list[tuple[str, str]]]:
    bits = [[0] * width for _ in range(height)]
    before: int | None = None
    for column, level in enumerate(levels):
        if level is not None:
            start = level if before is None else before + (level > before) - (level < before)
            for row in range(min(start, level), max(start, level) + 1):
                bits[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
        before = level
    return [[(chr(0x2800 + cell), LINE) if cell else (" ", BLANK) for cell in row] for row in bits]


def _ascii_cells(levels: list[int | None], width: int, height: int) -> list[list[tuple[str, str]]]:
    cells = [[(" ", BLANK)] * width for _ in range(height)]
    for column, level in enumerate(levels):
        if level is not None:
            cells[level][column] = ("*", LINE)
    return cells
