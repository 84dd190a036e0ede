"""Signals through the real executable: the first one saves, the second one quits, and going on is
exact."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chuk_lib.training import resume
from tests.faults.conftest import Start, assert_like, wait_for
from tests.training.conftest import toy_rows, write_rows

Command = Callable[..., list[str]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_resuming_is_exact(
    start: Start, command: Command, tmp_path: Path, whole: Path, number: signal.Signals
) -> None:
    process = start(command())
    wait_for(tmp_path / "run", 10, process)
    process.send_signal(number)
    out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "run\n"), told
    assert "stopping: the step is finished and saved first" in told
    assert told.splitlines()[-1] == "resume: `chuk train resume run`"
    assert "Traceback" not in told
    assert resume(tmp_path / "run").reason == "done"
    assert_like(tmp_path / "run", whole)


def test_the_second_signal_quits_at_once(start: Start, command: Command, tmp_path: Path) -> None:
    """One step takes many seconds; SIGHUP does not count as a second signal."""
    data = write_rows(tmp_path / "many.jsonl", toy_rows(8000))
    process = start(command(data=data, batch_size=8000))
    assert process.stderr is not None
    while not process.stderr.readline().startswith("run directory"):
        assert process.poll() is None
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    while not process.stderr.readline().startswith("stopping"):
        assert process.poll() is None
    time.sleep(0.3)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < 2


def test_nohup_keeps_a_run_going(
    start: Start, command: Command, tmp_path: Path, whole: Path
) -> None:
    process = start(["nohup", *command()])
    wait_for(tmp_path / "run", 10, process)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert_like(tmp_path / "run", whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step_leaves_nothing(
    start: Start, command: Command, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "temporary").mkdir()
    process = start(command(), env={"TMPDIR": str(tmp_path / "temporary")})
    assert process.stderr is not None
    ready = process.stderr.readline()
    process.send_signal(number)
    out, told = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + number, "")
    assert told in ("", ready)  # a signal in the middle of writing writes the line again
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]
