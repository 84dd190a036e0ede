"""Ctrl-C from the first line to the last: the process ends with 130 and says nothing.

Before a command has begun, and after it has ended, at once: nothing is open, and a half-finished
import would have something to say about it. In between by an exception that unwinds, so that
half-written files are removed. `interrupt.py` takes over while a run trains."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_caught: list[int] = []


def begin() -> None:
    """Let Ctrl-C end the process without unwinding, unless the shell that started it has it
    ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def unwind() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, in a process that called `begin`."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, _unwind)
        sys.unraisablehook = _unraisable


def end() -> None:
    """As after `begin`: the command is over."""
    if signal.getsignal(signal.SIGINT) is _unwind:
        signal.signal(signal.SIGINT, _leave)


def was_pressed() -> bool:
    """Whether Ctrl-C came while a command ran, whatever became of the exception: an extension
    module that is being imported turns it into an ImportError of its own."""
    return bool(_caught)


def _leave(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)


def _unwind(signum: int, frame: FrameType | None) -> None:
    _caught.append(signum)
    raise KeyboardInterrupt


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    """Python prints an exception that it cannot raise (in a callback, a finalizer) and goes on:
    this one ends it."""
    if isinstance(found.exc_value, KeyboardInterrupt):
        os._exit(130)
    sys.__unraisablehook__(found)
