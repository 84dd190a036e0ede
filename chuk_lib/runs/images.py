"""Curves as files: SVG written here, without any package; PNG through matplotlib, when it is
installed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chuk_lib.errors import ConfigError
from chuk_lib.runs.figures import Line, Picture, bounds, ticks
from chuk_lib.utils.paths import replace_file

FORMATS = (".svg", ".png")
COLOURS = ("#2f6fde", "#d9760b", "#7a4fd0", "#12936b", "#c93a4b", "#7d8794")
_WIDTH, _HEIGHT = 860, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 24, 44, 44
_STYLE = """
text { font: 12px ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif }
text { fill: #5c6672 } .paper { fill: #ffffff } .grid { stroke: #e6e9ee }
.title { font-size: 15px; font-weight: 600; fill: #1b222b }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
@media (prefers-color-scheme: dark) {
  text { fill: #9aa5b1 } .paper { fill: #14181d } .grid { stroke: #29303a } .title { fill: #e8ecf1 }
}
"""


def save_pictures(pictures: Sequence[Picture], output: Path) -> None:
    """Write the pictures, one above the other, as `output`'s ending says.

    Raises ConfigError for another ending, for nothing to draw, or for PNG without matplotlib.
    """
    ending = output.suffix.lower()
    if ending not in FORMATS:
        raise ConfigError(
            f"`--output {output}` does not end in {' or '.join(FORMATS)}",
            "the ending chooses the format",
        )
    if not pictures:
        raise ConfigError(
            "there is nothing to draw: no run has logged a loss yet", "choose others with --metric"
        )
    if ending == ".png" and find_spec("matplotlib") is None:
        raise ConfigError(
            "PNG needs matplotlib, which is not installed",
            "`pip install matplotlib`, or write .svg",
        )
    with replace_file(output) as partial:
        if ending == ".svg":
            partial.write_text(to_svg(pictures), encoding="utf-8")
        else:
            _write_png(pictures, partial)


def to_svg(pictures: Sequence[Picture]) -> str:
    """A standalone SVG document for light and dark pages."""
    height = _HEIGHT * len(pictures)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}"'
        f' height="{height}">'
    )
    parts = [
        head,
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{_WIDTH}" height="{height}"/>',
    ]
    for index, picture in enumerate(pictures):
        parts += [f'<g transform="translate(0 {index * _HEIGHT})">', *_panel(picture), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(picture: Picture) -> list[str]:
    first, last, low, high = bounds(picture.lines)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(step: float) -> float:
        return _LEFT + (step - first) / (last - first) * width

    def down(value: float) -> float:
        return _TOP + (high - min(value, high)) / (high - low) * height

    parts = [f'<text class="title" x="{_LEFT}" y="24">{escape(picture.title)}</text>']
    for value in ticks(low, high, 5):
        y = down(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for step in ticks(first, last, 7):
        y = _HEIGHT - _BOTTOM + 18
        parts.append(f'<text x="{across(step):.1f}" y="{y}" text-anchor="middle">{step:g}</text>')
    for index, line in enumerate(picture.lines):
        parts += _curve(line, COLOURS[index % len(COLOURS)], across, down)
    return [*parts, *_legend(picture.lines)]


def _curve(line: Line, colour: str, across: Any, down: Any) -> list[str]:
    points = [(across(step), down(value)) for step, value in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [f'<polyline class="curve" stroke="{colour}" points="{path}"/>']
    if line.sparse:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    return parts


def _legend(lines: Sequence[Line]) -> list[str]:
    parts, right = [], float(_WIDTH - _RIGHT)
    for index, line in reversed(list(enumerate(lines))):
        right -= 7.0 * len(line.label)
        parts.append(f'<text x="{right:.0f}" y="24">{escape(line.label)}</text>')
        right -= 16
        parts.append(
            f'<circle cx="{right + 6:.0f}" cy="20" r="4" fill="{COLOURS[index % len(COLOURS)]}"/>'
        )
        right -= 14
    return parts


def _write_png(pictures: Sequence[Picture], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.8 * len(pictures)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    for index, picture in enumerate(pictures):
        axes = figure.add_subplot(len(pictures), 1, index + 1)
        for number, line in enumerate(picture.lines):
            steps, values = zip(*line.points, strict=True) if line.points else ((), ())
            mark = "o" if line.sparse else None
            axes.plot(
                steps,
                values,
                marker=mark,
                ms=4,
                label=line.label,
                color=COLOURS[number % len(COLOURS)],
            )
        axes.set_title(picture.title, loc="left", fontweight="bold")
        axes.set_ylim(*bounds(picture.lines)[2:])
        axes.grid(axis="y", color="#e6e9ee")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, format="png")
