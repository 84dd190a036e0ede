"""What `chuk runs plot` writes: charts for a terminal, or the last values alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chuk_cli.out import Out
from chuk_cli.runs.options import is_ascii, width_of

if TYPE_CHECKING:
    from chuk_lib.runs.figures import Picture


def last_values(charts: Sequence[Picture]) -> list[str]:
    """What each line ends at: its metric, its run where a chart has several, and the value, with
    tabs between."""
    lines = [(chart.title, line) for chart in charts for line in chart.lines if line.points]
    return [
        "\t".join(dict.fromkeys((title, line.label))) + f"\t{line.points[-1][1]:.6g}"
        for title, line in lines
    ]


def terminal(out: Out, charts: Sequence[Picture], log: bool) -> Any:
    """The charts for a terminal, one below the other."""
    from rich.console import Group
    from rich.text import Text

    from chuk_cli.runs.chart import Series, chart

    parts: list[Any] = []
    for picture in charts:
        series = [Series(line.label, line.points) for line in picture.lines]
        drawn = chart(series, width_of(out), 16, is_ascii(), log)
        parts += [Text(("\n" if parts else "") + picture.title, style="bold"), *drawn]
    return Group(*parts) if parts else "nothing to draw yet"
