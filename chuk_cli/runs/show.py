"""One run on the terminal: its last frame, then what made it: settings, samples, environment,
checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from chuk_cli import humanize
from chuk_cli.dashboard.board import Board, printable
from chuk_cli.dashboard.draw import draw
from chuk_cli.out import make_table
from chuk_lib.events import Event

if TYPE_CHECKING:
    from chuk_lib.runs.record import RunRecord
    from chuk_lib.runs.settings import ChosenSetting

_FRAME_ROWS = 32
_SAMPLES, _WARNINGS = 3, 5


def board_of(run: RunRecord) -> Board:
    """The dashboard's state at the end of the log. A run that was killed is shown as ended."""
    board = Board()
    for event in run.log.events:
        board.see(event)
    if run.summary.status == "killed" and run.log.events:
        board.see(
            Event("finished", run.summary.step, {"reason": "killed"}, run.log.events[-1].time)
        )
    if board.finished is not None:
        board.finished["seconds"] = run.summary.seconds
    return board


def page(run: RunRecord, width: int, ascii: bool) -> Group:
    """Everything a person wants to know, from top to bottom."""
    parts: list[RenderableType] = []
    if run.log.events:
        parts.append(draw(board_of(run), width, _FRAME_ROWS, ascii))
    for title, body in (
        ("Settings that were chosen", _settings(run)),
        ("Samples", _samples(run)),
        ("Notes", Text("\n".join(printable(note) for note in run.notes)) if run.notes else None),
        ("Environment", _facts(environment(run.environment))),
        ("Checkpoints", _checkpoints(run)),
        ("Warnings", _warnings(run)),
    ):
        if body is not None:
            parts += [Text(f"\n{title}", style="bold"), Padding(body, (0, 0, 0, 2), expand=False)]
    return Group(*parts)


def value_text(value: Any) -> str:
    """A setting as one would write it in YAML: `true`, `none`, `a, b`."""
    if isinstance(value, list | tuple):
        return ", ".join(value_text(part) for part in value) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return printable(value if isinstance(value, str) else json.dumps(value, default=str))


def environment(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run says of its machine, in the order of interest; unknown parts are left out."""
    device, dtype, blas = (_part(found, name) for name in ("device", "dtype", "blas"))
    versions = _part(found, "versions")
    memory = found.get("memory_bytes")
    facts = [
        ("device", " ".join(str(device[key]) for key in ("backend", "name") if device.get(key))),
        ("memory", humanize.size(memory) if isinstance(memory, int | float) else ""),
        (
            "dtype",
            f"{dtype.get('trained')} ({dtype.get('reason')})" if dtype.get("trained") else "",
        ),
        ("blas", " ".join(str(blas[key]) for key in ("name", "version", "core") if blas.get(key))),
        ("platform", str(found.get("platform") or "")),
        ("python", str(found.get("python") or "")),
        ("git commit", str(found.get("git_commit") or found.get("commit") or "")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [(name, printable(text)) for name, text in facts if text]


def _part(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = found.get(name)
    return part if isinstance(part, Mapping) else {}


def chosen(run: RunRecord) -> list[ChosenSetting]:
    """The settings of a run that are not as its algorithm's come."""
    from chuk_lib.config.settings import settings_of
    from chuk_lib.experts.config import NAME, ExpertPPOConfig
    from chuk_lib.training.recipes import defaults_of

    if run.summary.algorithm == NAME:
        return run.chosen(
            {name: item.default for name, item in settings_of(ExpertPPOConfig).items()}
        )
    return run.chosen(defaults_of(run.summary.algorithm))


def _settings(run: RunRecord) -> RenderableType | None:
    rows = [
        [item.name, value_text(item.value), value_text(item.default), item.origin]
        for item in chosen(run)
    ]
    return _grid(["setting", "value", "default", "from"], rows) if rows else None


def _samples(run: RunRecord) -> RenderableType | None:
    newest = run.samples[-_SAMPLES:]
    if not newest:
        return None
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for sample in newest:
        words = (("prompt", "prompt"), ("target", "wanted"), ("completion", "written"))
        for index, (key, label) in enumerate(words):
            where = f"step {sample['step']:,}" if index == 0 else ""
            grid.add_row(f"{where:<12}{label:>8}", Text(printable(sample[key]).strip()))
    hidden = len(run.samples) - len(newest)
    return Group(grid, Text(f"and {hidden} earlier, see `--json`", style="dim")) if hidden else grid


def _checkpoints(run: RunRecord) -> RenderableType | None:
    if not run.checkpoints:
        return None
    rows = [
        [item.name, humanize.size(item.bytes), ", ".join(item.marks)] for item in run.checkpoints
    ]
    return _grid(["checkpoint", "size", ""], rows)


def _warnings(run: RunRecord) -> RenderableType | None:
    lines = [
        f"step {item['step']:,}: {printable(item['text'])}" for item in run.warnings[-_WARNINGS:]
    ]
    if run.log.damaged:
        lines.append(f"{run.log.damaged} damaged lines of events.jsonl were skipped")
    return Text("\n".join(lines)) if lines else None


def _facts(facts: list[tuple[str, str]]) -> RenderableType | None:
    if not facts:
        return None
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in facts:
        grid.add_row(name, Text(text))
    return grid


def _grid(columns: list[str], rows: list[list[str]]) -> RenderableType:
    return make_table("", columns, rows)
