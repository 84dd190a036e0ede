"""What a model wrote while it was trained, on the terminal: `chuk runs show --completions`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chuk_cli.dashboard.board import printable
from chuk_cli.humanize import number
from chuk_lib.errors import ModelError
from chuk_lib.events import as_number

if TYPE_CHECKING:
    from rich.console import Group

    from chuk_cli.out import Out

_FILE = "completions.jsonl"


def show_completions(out: Out, run: Path, step: int | None, limit: int) -> None:
    """Print the completions of a step, the best rewards first; as JSON a list of them as they are
    kept.

    Raises ModelError when the run kept none, or none of that step.
    """
    rows = _of_step(run, step)
    rows.sort(key=lambda row: -(as_number(row.get("reward")) or 0.0))
    shown = rows[:limit]
    out.result(
        shown,
        human=_drawn(shown) if out.human else None,
        quiet="\n".join(_one_line(row) for row in shown),
    )
    if len(rows) > limit:
        out.say(f"and {len(rows) - limit} more: --limit {len(rows)}, or {run / _FILE}")


def _of_step(run: Path, step: int | None) -> list[dict[str, Any]]:
    from chuk_lib.training.completions_log import read_completions

    path = run / _FILE
    if not path.exists():
        raise ModelError(
            f"`{run}` kept no completions",
            "GRPO and PPO keep them; `chuk runs show` shows other runs",
        )
    found: list[dict[str, Any]] = []
    first = last = None
    for row in read_completions(path):
        number_of_step = row.get("step")
        first = number_of_step if first is None else first
        if step is None and number_of_step != last:
            found = []
        last = number_of_step
        if step in (None, number_of_step):
            found.append(row)
    if not found:
        raise ModelError(
            f"`{run}` has no completions of step {step}", f"it has steps {first} to {last}"
        )
    return found


def _drawn(rows: list[dict[str, Any]]) -> Group:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[Any] = []
    for row in rows:
        scores = row.get("rewards") if isinstance(row.get("rewards"), dict) else {}
        detail = (
            [f"{name} {_figure(value)}" for name, value in (scores or {}).items()]
            if len(scores or {}) > 1
            else []
        )
        detail += [f"advantage {_figure(row['advantage'])}"] if "advantage" in row else []
        detail += [f"{row.get('tokens')} tokens, {row.get('finish_reason')}"]
        head = Text.assemble(
            (f"reward {_figure(row.get('reward'))}", "bold"), ("  " + ", ".join(detail), "dim")
        )
        prompt, written = (printable(row.get(key)).strip() for key in ("prompt", "completion"))
        wanted = printable(row.get("wanted")).strip()
        told = [Text(prompt, style="dim"), Text(written)]
        told += [Text(f"wanted: {wanted}", style="dim")] if wanted else []
        parts += [head, *(Padding(text, (0, 0, 0, 2), expand=False) for text in told), Text()]
    step = Text(f"step {rows[0].get('step')}, {len(rows)} completions\n", style="dim")
    return Group(step, *parts)


def _one_line(row: dict[str, Any]) -> str:
    return f"{_figure(row.get('reward'))}\t{' '.join(printable(row.get('completion')).split())}"


def _figure(value: Any) -> str:
    known = as_number(value)
    return "-" if known is None else number(known)
