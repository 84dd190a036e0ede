"""Whoever reads along may leave: a closed terminal saves and stops, a closed pipe changes
nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chuk_lib.training import resume
from tests.conftest import chuk_environment
from tests.faults.conftest import Start, assert_like, wait_for

Command = Callable[..., list[str]]

IN_A_SESSION = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_terminal_that_is_closed_saves_and_stops(
    command: Command, tmp_path: Path, whole: Path
) -> None:
    import pty

    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_SESSION, *command()],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=chuk_environment({"TERM": "xterm-256color"}),
        cwd=tmp_path,
        text=True,
    )
    os.close(follower)
    try:
        drain = subprocess.Popen(["cat"], stdin=leader, stdout=subprocess.DEVNULL)
        wait_for(tmp_path / "run", 10, process)
        drain.kill()
        drain.wait()
        os.close(leader)
        assert process.wait(timeout=60) == 128 + signal.SIGHUP
    finally:
        process.kill()
        process.wait()
    assert resume(tmp_path / "run").reason == "done"
    assert_like(tmp_path / "run", whole)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_that_is_closed_does_not_end_a_run(
    start: Start, command: Command, tmp_path: Path, whole: Path, stream: str
) -> None:
    process = start(command("run", "--json") if stream == "stdout" else command())
    pipe = getattr(process, stream)
    pipe.readline()
    pipe.close()
    setattr(process, stream, None)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert_like(tmp_path / "run", whole)


@pytest.mark.parametrize("redirection", ["2>&-", ">&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_run_needs_no_standard_streams(
    start: Start, command: Command, tmp_path: Path, redirection: str
) -> None:
    if "/dev/full" in redirection and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    process = start(["sh", "-c", f'exec "$@" {redirection}', "sh", *command(max_steps=3)])
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "run" / "latest").read_text() == "step_000003\n"
