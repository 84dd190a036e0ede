"""The live view: a sink that keeps a picture of the run on the terminal, redrawn at most four times
a second.

Drawing happens in its own thread and takes less than a hundredth of one core, so that it never
slows training."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from chuk_cli.dashboard.board import Board
from chuk_cli.dashboard.draw import draw
from chuk_lib.events import Event, now

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

REDRAW_SECONDS = 0.25
_MOST_OF_A_CORE = 0.009


class LiveView:
    """Use as a context manager around the run, and as a sink within it. The last frame stays on the
    screen."""

    def __init__(self, console: Console, ascii: bool = False) -> None:
        self.board = Board(began=now())
        self._console, self._ascii = console, ascii
        self._lock, self._over = threading.Lock(), threading.Event()
        self._width = console.width
        self._thread = threading.Thread(target=self._redraw, daemon=True)
        self._live: Live | None = None

    def __call__(self, event: Event) -> None:
        with self._lock:
            self.board.see(event)

    def __enter__(self) -> LiveView:
        from rich.live import Live

        self._live = Live(
            self._moving_frame(),
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=2)
        if self._live is not None:
            self._live.transient = not self.board.about  # a run that never started leaves no frame
            self._live.update(self._frame(), refresh=True)
            self._live.stop()

    def _redraw(self) -> None:
        pause = REDRAW_SECONDS
        while not self._over.wait(pause):
            began = time.thread_time()
            self._clear_after_resize()
            if self._live is not None:
                self._live.update(self._moving_frame(), refresh=True)
            pause = max(REDRAW_SECONDS, (time.thread_time() - began) / _MOST_OF_A_CORE)

    def _frame(self) -> RenderableType:
        with self._lock:
            return draw(self.board, self._console.width, self._console.height, self._ascii, now())

    def _moving_frame(self) -> RenderableType:
        """The frame and an empty line for the cursor: what is typed there (`^C`) cannot push the
        frame up."""
        from rich.console import Group
        from rich.text import Text

        return Group(self._frame(), Text())

    def _clear_after_resize(self) -> None:
        """A narrower terminal wraps the lines of the old frame: nothing but a clean screen removes
        them."""
        from rich.control import Control

        if self._console.width != self._width:
            self._width = self._console.width
            self._console.control(Control.clear(), Control.home())
