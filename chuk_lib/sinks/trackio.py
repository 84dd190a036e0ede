"""Trackio: metrics in a local database (`trackio show --project chuk`); TRACKIO_SPACE_ID sends them
to a Space.

Trackio prints to stdout; that is caught, since stdout is the result of a command.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

from chuk_lib.events import Event
from chuk_lib.sinks.scalars import run_name, scalars, setting_of

PROJECT = "chuk"


class TrackioSink:
    """Metrics by step, settings as the run's config. A resumed run goes on under its name."""

    def __init__(self) -> None:
        self.__name__ = "trackio"
        self._run: Any = None

    def __call__(self, event: Event) -> None:
        if event.kind == "started":
            self._start(event)
        elif numbers := scalars(event):
            self._run.log(numbers, step=event.step)
        elif event.kind == "finished" and self._run is not None:
            with redirect_stdout(io.StringIO()):
                import trackio

                trackio.finish()

    def _start(self, event: Event) -> None:
        with redirect_stdout(io.StringIO()):
            import trackio

            self._run = trackio.init(
                setting_of(event, "project") or PROJECT,
                name=run_name(event),
                config=dict(event.data.get("config") or {}),
                resume="allow" if event.step else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
