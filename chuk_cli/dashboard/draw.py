"""The picture of a board: a pure function of what is known, the size of the terminal and whether it
knows Unicode.

Parts give way when the terminal is low: first the sample, then the plot, never the progress line.
Labels are dim and states are words, so that nothing is said by colour alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, zip_longest

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from chuk_cli import humanize
from chuk_cli.dashboard.board import Board, data_name, last_part, printable
from chuk_cli.dashboard.facts import Fact, facts, figure
from chuk_cli.dashboard.plot import LINE, MARK, Plot, plot
from chuk_lib.events import as_number

WIDE, WIDEST = 110, 220
_AXIS = 9  # cells of an axis label
_STYLES = {LINE: "cyan", MARK: "bold yellow"}
_ENDINGS = {
    "done": ("done", "bold green"),
    "stopped": ("stopped, state saved", "bold yellow"),
    "early_stopping": ("stopped early: no more improvement", "bold green"),
    "failed": ("failed", "bold red"),
}


def draw(
    board: Board, width: int, height: int, ascii: bool = False, now: float | None = None
) -> RenderableType:
    """The frame for a terminal of this size. `now` (seconds since the epoch) moves the clocks
    between events."""
    width = max(40, min(width, WIDEST))
    inner = width - 4
    top: list[RenderableType] = [_header(board, inner), _progress(board, inner, ascii, now)]
    bottom = _told(board, inner, ascii)
    room = max(0, height - 3 - len(top) - len(bottom))
    sample = _written(board, inner, room, ascii) if room >= 14 else []
    middle = _middle(board, inner, room - len(sample), ascii)
    return Panel(
        Group(*top, *middle, *sample, *bottom),
        box=box.ASCII if ascii else box.ROUNDED,
        title=Text(_title(board), style="bold"),
        title_align="left",
        subtitle=_subtitle(board, inner, ascii),
        subtitle_align="left",
        border_style="dim",
        width=width,
        padding=(0, 1),
    )


def _title(board: Board) -> str:
    """The command, and which stage of a pipeline this is."""
    algorithm = printable(board.about.get("algorithm"))
    command = "chuk eval" if algorithm == "eval" else f"chuk train {algorithm}".rstrip()
    return ", ".join(filter(None, [command, board.stage]))


def _header(board: Board, width: int) -> Text:
    about = board.about
    if not about:
        return Text("getting ready: libraries, model, data")
    left = Text.assemble((last_part(about.get("model")) or "a model", "bold"))
    if about.get("data"):
        left.append(" on ", style="dim").append(data_name(about["data"]))
    machine = [device_name(about.get("device")), str(about.get("dtype") or "")]
    choices = [[parameters(board), *machine], machine]
    return _justified(left, [", ".join(filter(None, parts)) for parts in choices], width)


def parameters(board: Board) -> str:
    """How much is trained: `1.08 M of 494 M parameters`, or empty when nobody said."""
    total, trained = (
        as_number(board.about.get("parameters")),
        as_number(board.about.get("trainable_parameters")),
    )
    if not total:
        return ""
    share = "" if trained is None or trained == total else f"{humanize.count(trained)} of "
    return f"{share}{humanize.count(total)} parameters"


def device_name(device: object) -> str:
    """MLX's `Device(gpu, 0)` as `gpu`."""
    return str(device or "").removeprefix("Device(").split(",")[0].rstrip(")")


def _progress(board: Board, width: int, ascii: bool, now: float | None) -> Text:
    elapsed, left = board.elapsed(now), board.remaining(now)
    words = Text()
    if board.finished is not None:
        reason = str(board.finished.get("reason", "done"))
        words.append(*_ENDINGS.get(reason, (reason, "bold")))
        if elapsed is not None:
            words.append(f" after {humanize.duration(elapsed)}", style="dim")
    elif elapsed is not None:
        words.append(humanize.duration(elapsed), style="dim")
        if board.doing:
            words.append(f", {board.doing}", style="bold")
        elif left is not None:
            words.append(f", {humanize.duration(left)} left")
    if not board.steps:
        return words
    count = Text.assemble((f"  {board.step:,}/{board.steps:,}  {board.share:4.0%}  ", "bold"))
    epoch = board.latest.get("epoch")
    if epoch is not None and board.finished is None and width > 90:
        total = f"/{board.epochs}" if board.epochs else ""
        count.append(f"epoch {epoch:.2f}{total}  ", style="dim")
    line = Text.assemble(
        _bar(board.share, max(8, width - len(count) - len(words)), ascii), count, words
    )
    line.truncate(width)
    return line


def _bar(share: float, width: int, ascii: bool) -> Text:
    filled = int(share * width)
    full, tip, rest = ("#", "", "-") if ascii else ("━", "╸", "─")
    tip = tip if 0 < filled < width else ""
    done = full * (filled - len(tip)) + tip
    return Text.assemble(
        (done, "green" if share >= 1 else "cyan"), (rest * (width - len(done)), "dim")
    )


def _middle(board: Board, width: int, room: int, ascii: bool) -> list[RenderableType]:
    """The curve and the facts: side by side when wide, else one above the other."""
    known = facts(board)
    if room < 2 or not (known or board.line or board.evals):
        return []
    if width + 4 >= WIDE and room >= 8:
        return [Text(), _side_by_side(board, known, width, room, ascii)]
    columns = 2 if width >= 56 else 1
    n_fact_rows = min(math.ceil(len(known) / columns), room - 1)
    curve = _curve(board, width, min(_most_rows(room), room - n_fact_rows - 4), ascii)
    if curve:
        return [Text(), *curve, Text(), _facts_grid(known[: n_fact_rows * columns], columns, width)]
    return [Text(), _facts_grid([*_newest(board), *known][: columns * (room - 1)], columns, width)]


def _most_rows(room: int) -> int:
    """How high a curve may get: two thirds of the room where there is much of it."""
    return max(8, min(24, room * 2 // 3))


def _side_by_side(board: Board, known: Sequence[Fact], width: int, room: int, ascii: bool) -> Table:
    right_width = 42
    left_width = width - right_width - 3
    curve = _curve(board, left_width, min(max(_most_rows(room), len(known) - 2), room - 3), ascii)
    shown = known if curve else [*_newest(board), *known]
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_column(width=left_width)
    grid.add_column(width=right_width)
    grid.add_row(Group(*curve), _facts_grid(shown[: room - 1], 1, right_width))
    return grid


def _newest(board: Board) -> list[Fact]:
    """What is watched as facts, for when no curve shows it."""
    both = ((board.watched, board.line), (f"eval {board.watched}", board.evals))
    return [(label, figure(points[-1][1])) for label, points in both if points]


def _curve(board: Board, width: int, rows: int, ascii: bool) -> list[Text]:
    """Legend, plot and axis; nothing when fewer than two rows are left for it."""
    if rows < 2 or len(board.line) + len(board.evals) < 2:
        return []
    picture = plot(board.line, board.evals, width - _AXIS - 2, rows, ascii)
    if picture is None:
        return []
    return [
        _legend(board, width, ascii),
        *_plot_lines(picture, rows, ascii),
        _axis(picture, width, ascii),
    ]


def _legend(board: Board, width: int, ascii: bool) -> Text:
    legend, name = Text(), board.watched
    if board.line:
        legend.append("*" if ascii else "⠒⠒", style=_STYLES[LINE])
        legend.append(f" {name} ", style="dim").append(figure(board.line[-1][1]), style="bold")
    if board.evals:
        legend.append("    " if board.line else "")
        legend.append("o" if ascii else "●", style=_STYLES[MARK])
        legend.append(f" eval {name} ", style="dim").append(
            figure(board.evals[-1][1]), style="bold"
        )
    if board.best_eval:
        step, value = board.best_eval
        legend.append(f"    best {figure(value)} at step {step:,}", style="dim")
    legend.truncate(width)
    return legend


def _plot_lines(picture: Plot, rows: int, ascii: bool) -> list[Text]:
    edge, plain_edge = ("|", "|") if ascii else ("┤", "│")
    high, low = _ends(picture.high, picture.low)
    lines = []
    for index, cells in enumerate(picture.cells):
        text = high if index == 0 else low if index == rows - 1 else ""
        line = Text.assemble((f"{text:>{_AXIS}} {edge if text else plain_edge}", "dim"))
        for kind, group in groupby(cells, key=lambda cell: cell[1]):
            line.append("".join(character for character, _ in group), style=_STYLES.get(kind, ""))
        lines.append(line)
    return lines


def _axis(picture: Plot, width: int, ascii: bool) -> Text:
    corner, line = ("+", "-") if ascii else ("╰", "─")
    first, last = f" {picture.first:,} ", f" {picture.last:,} "
    middle = line * max(0, width - _AXIS - 3 - len(first) - len(last))
    return Text(f"{'':>{_AXIS}} {corner}{line}{first}{middle}{last}"[:width], style="dim")


def _facts_grid(facts: Sequence[Fact], columns: int, width: int) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(columns):
        grid.add_column(width=14, style="dim", no_wrap=True)
        grid.add_column(
            width=max(8, (width - 18 * columns + 2) // columns), no_wrap=True, overflow="ellipsis"
        )
    for start in range(0, len(facts), columns):
        grid.add_row(*(cell for fact in facts[start : start + columns] for cell in fact))
    return grid


def _written(board: Board, width: int, room: int, ascii: bool) -> list[Text]:
    """What the model writes: completions with their rewards, the best first, else the last
    sample."""
    rows = [row for row in board.completions if isinstance(row.get("completion"), str)]
    if not rows:
        return _sample(board, width, ascii)
    rows.sort(key=lambda row: -(as_number(row.get("reward")) or 0.0))
    most = max(2, min(len(rows), room - 17))
    shown = (
        rows if len(rows) <= most else [*rows[: (most + 1) // 2], *rows[len(rows) - most // 2 :]]
    )
    wide = 14 if width > 90 and any(row.get("wanted") for row in rows) else 0
    left = min(34, (width - 9 - wide) // 2)
    right = width - 9 - left - wide
    head = f"{'reward':>7}  {'prompt':<{left}}{'wanted':<{wide}}completion" if wide else ""
    head = head or f"{'reward':>7}  {'prompt':<{left}}completion"
    lines = [Text(), Text(head[:width], style="dim")]
    for row in shown:
        reward = as_number(row.get("reward"))
        prompt = _ending_of(" ".join(printable(row.get("prompt")).split()), left - 2, ascii)
        text = _cut(" ".join(printable(row["completion"]).split()), right, ascii)
        value = "-" if reward is None else f"{reward:.2f}"
        wanted = (
            _cut(" ".join(printable(row.get("wanted")).split()), wide - 2, ascii) if wide else ""
        )
        before = Text(_padded(prompt, left) + _padded(wanted, wide), style="dim")
        lines.append(Text.assemble(f"{value:>7}  ", before, text))
    return lines


def _padded(text: str, width: int) -> str:
    return text + " " * max(1 if width else 0, width - Text(text).cell_len)


def _ending_of(text: str, width: int, ascii: bool) -> str:
    """The end of a text: a prompt's question stands there."""
    if Text(text).cell_len <= width:
        return text
    mark = "..." if ascii else "…"
    while text and Text(text).cell_len > width - len(mark):
        text = text[max(1, (Text(text).cell_len - width) // 2) :]
    return mark + text


def _sample(board: Board, width: int, ascii: bool) -> list[Text]:
    """The last sample: what was asked, then what was wanted beside what was written."""
    if board.sample is None:
        return []
    half = (width - 3) // 2
    sample = {key: " ".join(text.split()) for key, text in board.sample.items()}
    left, right = (
        _folded(sample["target"], half, 2, ascii),
        _folded(sample["completion"], half, 2, ascii),
    )
    beside = [_beside(Text("wanted", style="dim"), Text("written", style="dim"), half)]
    beside += [
        _beside(Text(one), Text(other), half)
        for one, other in zip_longest(left, right, fillvalue="")
    ]
    prompt = Text.assemble(("prompt  ", "dim"), _cut(sample["prompt"], width - 8, ascii))
    return [Text(), prompt, *beside]


def _beside(left: Text, right: Text, half: int) -> Text:
    return Text.assemble(left, " " * (half + 3 - left.cell_len), right)


def _told(board: Board, width: int, ascii: bool) -> list[RenderableType]:
    """The newest warnings; without any, the newest note."""
    lines: list[RenderableType] = []
    for text, hint in board.warnings[-2:]:
        whole = f"{text} ({hint})" if hint else text
        lines.append(
            Text.assemble(("warning: ", "yellow"), _cut(" ".join(whole.split()), width - 9, ascii))
        )
    hidden = len(board.warnings) - 2
    if hidden > 0:
        lines.append(Text(f"and {hidden} earlier, all in the run's events.jsonl", style="dim"))
    if not lines and board.notes:
        lines.append(
            Text("note: " + _cut(" ".join(board.notes[-1].split()), width - 6, ascii), style="dim")
        )
    return [Text(), *lines] if lines else []


def _subtitle(board: Board, width: int, ascii: bool) -> Text | None:
    path = str(board.about.get("run_dir") or "")
    if len(path) > width - 4:
        path = ("..." if ascii else "…") + path[-(width - 8) :]
    return Text(path, style="dim") if path else None


def _justified(left: Text, rights: Sequence[str], width: int) -> Text:
    """`left`, and at the right edge the first text that fits beside it."""
    for right in rights:
        gap = width - left.cell_len - len(right)
        if gap >= 3:
            return Text.assemble(left, " " * gap, (right, "dim"))
    left.truncate(width)
    return left


def _ends(high: float, low: float) -> tuple[str, str]:
    """The ends of an axis in as many digits as tell them apart."""
    short = _short(high), _short(low)
    if short[0] != short[1]:
        return short
    wide = [(f"{high:.{digits}g}", f"{low:.{digits}g}") for digits in range(3, 8)]
    return next(
        (pair for pair in wide if pair[0] != pair[1] and max(map(len, pair)) <= _AXIS), wide[-1]
    )


def _short(value: float) -> str:
    return (
        f"{value:.2f}"
        if 0.01 <= abs(value) < 1000
        else f"{value:.1g}"
        if abs(value) < 0.01
        else f"{value:.0e}"
    )


def _cut(text: str, width: int, ascii: bool) -> str:
    end = "..." if ascii else "…"
    cut = Text(text)
    if cut.cell_len <= width:
        return text
    cut.truncate(max(1, width - len(end)))
    return cut.plain.rstrip() + end


def _folded(text: str, width: int, rows: int, ascii: bool) -> list[str]:
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and Text(f"{line} {word}").cell_len > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    lines.append(line)
    if len(lines) > rows:
        lines = [*lines[: rows - 1], " ".join(lines[rows - 1 :])]
    return [_cut(part, width, ascii) for part in lines]
