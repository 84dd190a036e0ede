"""Where in a run a tool is called: who repeats a run finds the same call by it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, copy_context
from threading import Thread

PLACE: ContextVar[str] = ContextVar("place", default="")
"""Step, row and turn of a call, in any spelling that is the same in every run; empty where calls
come one after the other."""


def tool_thread(work: Callable[[], object], name: str) -> Thread:
    """A thread, not started, that knows the `PLACE` it was made at. It does not hold up the exit:
    a tool that hangs cannot be ended."""
    return Thread(target=copy_context().run, args=(work,), name=name, daemon=True)
