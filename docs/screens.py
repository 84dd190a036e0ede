"""Make the pictures in docs/screens from a real run: `python docs/screens.py [FOLDER OF A RUN]`.

Without a run, one is trained first (a model of 99 thousand parameters learns additions; about a
minute). Terminal pictures are SVG, drawn by the code that draws the live view. The report's are PNG
and need a browser: chromium or chrome on the PATH; without one they stay as they are. By hand:
`chuk runs report RUN`, open RUN/report.html, 1240 wide."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.terminal_theme import TerminalTheme

if TYPE_CHECKING:
    from chuk_lib.runs.record import RunRecord

HERE = Path(__file__).resolve().parent / "screens"
# Fmt: skip.
THEME = TerminalTheme(
    (20, 24, 29),
    (216, 222, 233),
    [
        (20, 24, 29),
        (224, 108, 117),
        (126, 200, 140),
        (229, 192, 123),
        (97, 160, 239),
        (198, 140, 240),
        (86, 190, 200),
        (216, 222, 233),
    ],
    [
        (110, 120, 135),
        (240, 130, 138),
        (150, 220, 165),
        (245, 210, 145),
        (125, 180, 250),
        (215, 165, 250),
        (115, 215, 225),
        (240, 244, 250),
    ],
)
BROWSERS = ("chromium", "google-chrome", "chrome")
# Fmt: skip.
SWITCHES = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "hide-scrollbars",
    "virtual-time-budget=2000",
)


def main() -> None:
    """Draw everything."""
    from chuk_lib.runs.record import read_run

    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else train(Path(scratch))
        run = read_run(path)
        shorten_paths(run, path.resolve().parent.parent)
        for width, height in ((80, 24), (140, 32)):
            save(dashboard(run, 0.6, width, height), width, f"dashboard-{width}")
        save(show(run), 100, "runs-show")
        report(run, Path(scratch))


def shorten_paths(run: RunRecord, folder: Path) -> None:
    """Show paths as seen from the folder in which the run was trained."""
    for name, value in run.settings.items():
        if isinstance(value, str):
            run.settings[name] = value.removeprefix(f"{folder}/")
    for event in run.log.of("started"):
        event.data["run_dir"] = str(event.data["run_dir"]).removeprefix(f"{folder}/")


def train(folder: Path) -> Path:
    """A run worth looking at, in `runs/addition`."""
    chuk("model", "create", "--preset", "micro", "--output", "model", folder=folder)
    made = ("--types", "addition", "--difficulty", "3", "--samples", "60000", "--reverse-answers")
    chuk("data", "generate-math", *made, "--output", "addition", folder=folder)
    settings = (
        "eval_steps=100",
        "checkpoint_interval=500",
        "keep_checkpoints=2",
        "lr_scheduler_type=cosine",
    )
    # Fmt: skip.
    chuk(
        "train",
        "sft",
        "--model",
        "model",
        "--data",
        "addition",
        "--output",
        "runs/addition",
        "--batch-size",
        "64",
        "--learning-rate",
        "5e-3",
        "--warmup-steps",
        "50",
        "--max-steps",
        "1600",
        *(part for setting in settings for part in ("--set", setting)),
        folder=folder,
    )
    return folder / "runs" / "addition"


def chuk(*words: str, folder: Path) -> None:
    """Run one chuk command in a folder."""
    subprocess.run([sys.executable, "-m", "chuk_cli", *words], cwd=folder, check=True)


def dashboard(run: RunRecord, share: float, width: int, height: int) -> RenderableType:
    """The live view when `share` of the run was done."""
    from chuk_cli.dashboard.board import Board
    from chuk_cli.dashboard.draw import draw

    board = Board()
    for event in run.log.events:
        if event.step > share * (run.summary.steps or 0):
            break
        board.see(event)
    return draw(board, width, height, now=board.time)


def show(run: RunRecord) -> RenderableType:
    """What `chuk runs show` prints."""
    from chuk_cli.runs.show import page

    return page(run, 100, ascii=False)


def save(picture: RenderableType, width: int, name: str) -> None:
    """A terminal of this width as SVG, without the web font that Rich would fetch."""
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(picture)
    svg = console.export_svg(title=f"chuk, {width} columns", theme=THEME, unique_id=name)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace(
        "Fira Code", "DejaVu Sans Mono"
    )
    (HERE / f"{name}.svg").write_text(svg, encoding="utf-8")


def report(run: RunRecord, scratch: Path) -> None:
    """The report page in a browser, light and dark."""
    from chuk_cli.runs.report import to_html

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.stderr.write("no browser: the pictures of the report stay as they are\n")
        return
    text = to_html(run)
    for theme in ("light", "dark"):
        page = scratch / f"{theme}.html"
        page.write_text(
            text.replace('<html lang="en">', f'<html lang="en" data-theme="{theme}">'),
            encoding="utf-8",
        )
        switches = [f"--{switch}" for switch in (*SWITCHES, f"user-data-dir={scratch / 'browser'}")]
        picture = f"--screenshot={HERE / f'report-{theme}.png'}"
        command = [browser, *switches, "--window-size=1240,1180", picture, page.as_uri()]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
