"""Another process's run, live: its events are followed on disk and shown as `chuk train` shows its
own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from chuk_cli.dashboard.board import Board
from chuk_cli.out import Out, glyph
from chuk_lib.events import Event, JsonLines

if TYPE_CHECKING:
    from chuk_lib.events import Sink

POLL_SECONDS = 0.3


def watch(run: Path, out: Out) -> Board:
    """Show the run until its process ends; returns its last state. Ctrl-C leaves the run alone."""
    from chuk_lib.runs.files import is_locked
    from chuk_lib.runs.log import Follower

    board, follow = Board(), Follower(run / "events.jsonl")
    history, _ = follow()
    with ExitStack() as stack:
        show = _display(history, out, stack)
        for event in history:
            board.see(event)
        for event in _events(follow, lambda: is_locked(run)):
            board.see(event)
            show(event)
        if out.human and board.about and board.finished is None:
            show(Event("finished", board.step, {"reason": "killed"}))
    return board


def _events(
    follow: Callable[[], tuple[list[Event], bool]], is_running: Callable[[], bool]
) -> Iterator[Event]:
    """New events until the process is gone. The lock is asked before the file is read: the end is
    not missed."""
    while True:
        running = is_running()
        found, _ = follow()
        yield from found
        if not running:
            return
        if not found:
            time.sleep(POLL_SECONDS)


def _display(history: list[Event], out: Out, stack: ExitStack) -> Sink:
    """The live view, plain lines, JSON lines or nothing, with what has happened so far."""
    if out.quiet:
        return lambda event: None
    if out.human and sys.stderr.isatty() and not out.err_console.is_dumb_terminal:
        from chuk_cli.dashboard.live import LiveView

        view = LiveView(out.err_console, ascii=not glyph("━⠿╭", ""))
        for event in history:
            view(event)
        return stack.enter_context(view)
    from chuk_cli.dashboard.lines import Lines

    sink: Sink = JsonLines(sys.stdout) if out.json else Lines(sys.stderr)
    for event in history:
        sink(event)
    return sink
