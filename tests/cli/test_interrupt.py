"""Ctrl-C and SIGTERM while training: the first asks, the second quits."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import chuk_environment

LOOP = """
import signal, sys, time
from chuk_cli.interrupt import Stop
{before}
with Stop(on_first=lambda: print("asked\\n", end="", flush=True)) as stop:
    stop.arm()
    stop.arm()
    print("up", flush=True)
    while not stop():
        {step}
    print("saved", flush=True)
    {after}
sys.exit(stop.exit_code)
"""


def start(
    step: str = "time.sleep(0.05)", after: str = "pass", before: str = "pass"
) -> subprocess.Popen[str]:
    code = LOOP.format(step=step, after=after, before=before)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=chuk_environment(),
    )
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_lets_the_step_finish(number: signal.Signals, code: int) -> None:
    process = start()
    process.send_signal(number)
    out, errors = process.communicate(timeout=20)
    assert (out, errors, process.returncode) == ("asked\nsaved\n", "", code)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_quits_at_once(number: signal.Signals, code: int) -> None:
    process = start(after="time.sleep(60)")
    process.send_signal(signal.SIGINT)
    assert process.stdout
    assert process.stdout.readline() == "asked\n"
    began = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == code
    assert time.monotonic() - began < 5


def test_the_answer_does_not_wait_for_the_step() -> None:
    """A step that holds the interpreter's signal handling, as one long MLX call does, cannot delay
    the answer."""
    long_call = (  # seconds; no signal ends it
        "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 8_000_000)"
    )
    process = start(step=long_call)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.stdout
    began = time.monotonic()
    assert process.stdout.readline() == "asked\n"
    assert time.monotonic() - began < 2
    process.kill()
    process.communicate(timeout=20)


def test_after_the_block_signals_are_as_before() -> None:
    code = LOOP.format(
        step="signal.raise_signal(signal.SIGINT); time.sleep(1)", after="pass", before="pass"
    )
    code = code.replace("sys.exit(stop.exit_code)", "signal.raise_signal(signal.SIGINT)")
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, env=chuk_environment(), check=False
    )
    assert "KeyboardInterrupt" in done.stderr


def test_a_signal_that_the_shell_ignores_stays_ignored() -> None:
    process = start(before="signal.signal(signal.SIGINT, signal.SIG_IGN)")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("asked\nsaved\n", 143)
