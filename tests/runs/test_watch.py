"""`chuk runs watch`: another process's run, followed on disk."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RunChuk, chuk_environment
from tests.runs.conftest import WriteRun, started, step
from tests.training.conftest import toy_rows, write_rows


def start(*args: object, cwd: Path, **streams: object) -> subprocess.Popen[str]:
    """`chuk` in a process of its own."""
    command = [sys.executable, "-m", "chuk_cli", *map(str, args)]
    return subprocess.Popen(command, env=chuk_environment(), cwd=cwd, text=True, **streams)  # type: ignore[call-overload]


@pytest.fixture
def training(tiny_model_dir: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that trains in `runs/live` until it is stopped, and has begun."""
    data = write_rows(tmp_path / "toy.jsonl", toy_rows(16))
    process = start(
        "train",
        "sft",
        "-m",
        tiny_model_dir,
        "-d",
        data,
        "-o",
        "runs/live",
        "--max-steps",
        1_000_000,
        "-q",
        "--set",
        "log_interval=5",
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    log, end = tmp_path / "runs" / "live" / "events.jsonl", time.monotonic() + 60
    while not log.exists() or log.read_text().count("\n") < 3:
        assert time.monotonic() < end
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


def test_watching_ends_with_the_run(training: subprocess.Popen[str], tmp_path: Path) -> None:
    watching = start("runs", "watch", "live", "--json", cwd=tmp_path, stdout=subprocess.PIPE)
    assert watching.stdout is not None
    seen = [json.loads(watching.stdout.readline()) for _ in range(12)]
    assert (seen[0]["kind"], seen[1]["kind"]) == ("started", "step")
    training.send_signal(signal.SIGINT)
    with watching.stdout:  # communicate() would lose what readline() has buffered
        rest = [json.loads(line) for line in watching.stdout]
    watching.wait(timeout=60)
    assert (rest[-1]["kind"], rest[-1]["data"]["reason"], watching.returncode) == (
        "finished",
        "stopped",
        0,
    )
    logged = [
        json.loads(line) for line in (tmp_path / "runs/live/events.jsonl").read_text().splitlines()
    ]
    assert seen + rest == logged


def test_a_kill_is_told_and_fails(training: subprocess.Popen[str], tmp_path: Path) -> None:
    watching = start(
        "runs", "watch", "live", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert watching.stderr is not None
    assert watching.stderr.readline().startswith("sft ")
    training.send_signal(signal.SIGKILL)
    told = watching.communicate(timeout=60)[1]
    assert watching.returncode == 1
    assert "killed" in told
    assert "chuk train resume runs/live" in told


def test_ctrl_c_leaves_the_run_alone(training: subprocess.Popen[str], tmp_path: Path) -> None:
    watching = start("runs", "watch", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert watching.stderr is not None
    watching.stderr.readline()
    watching.send_signal(signal.SIGINT)
    told = watching.communicate(timeout=60)[1]
    assert (watching.returncode, "Traceback" in told) == (130, False)
    assert training.poll() is None


def test_a_terminal_gets_the_live_view(training: subprocess.Popen[str], tmp_path: Path) -> None:
    import pty

    leader, follower = pty.openpty()
    watching = subprocess.Popen(
        [sys.executable, "-m", "chuk_cli", "runs", "watch", "live"],
        stdout=follower,
        stderr=follower,
        cwd=tmp_path,
        env=chuk_environment({"TERM": "xterm-256color", "COLUMNS": "90", "LINES": "30"}),
    )
    os.close(follower)
    text = b""
    while text.count(b"tokens/s") < 2:
        text += os.read(leader, 65536)
    training.send_signal(signal.SIGTERM)
    while chunk := _read(leader):
        text += chunk
    assert watching.wait(timeout=60) == 0
    shown = re.sub(r"\033\[[0-9;?]*[a-zA-Z]", "", text.decode())
    assert "stopped, state saved" in shown
    assert shown.count("chuk train sft") >= 2


def test_a_run_that_has_ended_is_shown_once(runs: Path, run_chuk: RunChuk) -> None:
    done = run_chuk("runs", "watch", "first")
    assert (done.returncode, done.stdout) == (0, "")
    assert "done: 12 steps" in done.stderr
    assert run_chuk("runs", "watch", "first", "-q").stdout == "runs/first\n"


def test_a_run_that_was_killed_before_fails_at_once(write_run: WriteRun, run_chuk: RunChuk) -> None:
    write_run("dead", [started(1), step(1, 2)])
    assert run_chuk("runs", "watch", "dead").returncode == 1


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux tells that the other end of a pseudo-terminal is closed
        return b""
