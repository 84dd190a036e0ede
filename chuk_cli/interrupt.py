"""Ctrl-C as a request: the first one lets the step finish and be saved, the second one quits at
once.

SIGTERM is the same request. So is SIGHUP, what a process gets when its terminal is closed; it comes
in twos and along with SIGTERM, so it never counts as the second. Under `nohup` it is ignored and
the run goes on.

A signal handler in Python waits until the running MLX call returns. A thread at the wake-up pipe
does not, so the answer comes at once however long a step takes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Whether someone asked to stop, and with which signal. Signals are taken from `arm()` to the
    end of the block.

    Before `arm()` they end the process as they always do: while a model is loading there is nothing
    to save. `on_first` and `on_second` are called in another thread."""

    def __init__(
        self, on_first: Callable[[], None], on_second: Callable[[], None] = lambda: None
    ) -> None:
        self.signal: int | None = None
        self._on_first, self._on_second = on_first, on_second
        self._undo = ExitStack()
        self._armed = False

    def __call__(self) -> bool:
        """True once a signal came: what the engine asks between steps."""
        return self.signal is not None

    def __enter__(self) -> Stop:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP; 0 when
        none came."""
        return 0 if self.signal is None else 128 + self.signal

    def arm(self) -> None:
        """Take the signals from here on, but for those that the caller's shell ignores. Main thread
        only."""
        if self._armed:
            return
        self._armed = True
        import socket

        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        former = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        listener = threading.Thread(target=self._listen, args=(receiver,), daemon=True)
        listener.start()
        for last in (
            receiver.close,
            lambda: listener.join(1),
            sender.close,
            lambda: signal.set_wakeup_fd(former),
        ):
            self._undo.callback(last)
        for name in SIGNALS:
            if signal.getsignal(name) is not signal.SIG_IGN:
                self._undo.callback(signal.signal, name, signal.signal(name, _leave_to_thread))

    def _listen(self, receiver: socket.socket) -> None:
        while received := receiver.recv(1):
            if received[0] in SIGNALS:
                self._notice(received[0])

    def _notice(self, signum: int) -> None:
        if self.signal is None:
            self.signal = signum
            self._on_first()
            return
        if signum == signal.SIGHUP:
            return
        self._on_second()
        sys.stderr.flush()
        os._exit(128 + signum)


def _leave_to_thread(signum: int, frame: FrameType | None) -> None:
    """Do nothing: that a handler exists is what makes Python write to the wake-up pipe."""
