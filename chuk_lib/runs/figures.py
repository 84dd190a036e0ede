"""Which curves belong into which picture, and the numbers on its axes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from chuk_lib.errors import ConfigError
from chuk_lib.runs.record import RunRecord

USUAL = ("reward", "eval_reward", "loss", "eval_loss")


@dataclass(frozen=True)
class Line:
    """One curve of a picture: (step, value) points in order; `sparse` for an evaluation, whose
    points are marked."""

    label: str
    points: list[tuple[int, float]]
    sparse: bool = False


@dataclass(frozen=True)
class Picture:
    """Curves that share axes."""

    title: str
    lines: list[Line]


def pictures(runs: Sequence[RunRecord], metrics: str | None = None) -> list[Picture]:
    """The pictures of some metrics (a list with commas; rewards and losses when None), in the order
    asked for.

    Of one run a metric and its evaluation share a picture. Of several runs each metric has its own,
    with one line a run in the order of `runs`, empty where a run does not have it. Raises
    ConfigError for a metric that no run has."""
    names = (
        [name.strip() for name in metrics.split(",") if name.strip()] if metrics else list(USUAL)
    )
    if metrics:
        for name in names:
            _check(name, runs)
    if len(runs) > 1:
        found = [
            Picture(name, [_line(run, name, run.summary.name) for run in runs])
            for name in dict.fromkeys(names)
        ]
    else:
        families = dict.fromkeys(_family(name) for name in names)
        members = {
            family: [name for name in names if _family(name) == family] for family in families
        }
        found = [
            Picture(family, [_line(runs[0], name, name) for name in members[family]])
            for family in families
        ]
    return [picture for picture in found if any(line.points for line in picture.lines)]


def _family(name: str) -> str:
    return name.removeprefix("eval_")


def _line(run: RunRecord, name: str, label: str) -> Line:
    curve = run.curves.get(name)
    points = [point for point in curve.points if math.isfinite(point[1])] if curve else []
    return Line(label, points, name.startswith("eval_"))


def _check(name: str, runs: Sequence[RunRecord]) -> None:
    known = list(dict.fromkeys(metric for run in runs for metric in run.curves))
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"metrics: {', '.join(known) or 'none yet'}"
    raise ConfigError(f"`--metric {name}`: no run here has it", hint)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between two values, about `count` of them: steps of 1, 2 or 5 times a power of
    ten."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    rough = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def bounds(lines: Sequence[Line]) -> tuple[int, int, float, float]:
    """First and last step, lowest and highest value, with a margin; the highest 2 % of a long curve
    may be cut."""
    steps = [step for line in lines for step, _ in line.points] or [0]
    values = [sorted(value for _, value in line.points) for line in lines if line.points] or [[0.0]]
    low = min(column[0] for column in values)
    high = max(column[int((len(column) - 1) * 0.98)] for column in values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return min(steps), max(max(steps), min(steps) + 1), low - margin, high + margin
