"""Running, done, stopped, failed, killed: each caused for real, and what `rm` makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chuk_lib.errors import ModelError, TrainingError
from chuk_lib.runs.files import OWN, is_locked, remove_run
from chuk_lib.runs.summary import summarize
from tests.conftest import RunChuk, chuk_environment
from tests.runs.conftest import WriteRun, as_json, finished, started, step
from tests.training.conftest import toy_rows, write_rows


@pytest.fixture
def training(tiny_model_dir: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that trains endlessly in `runs/live` and has logged a step."""
    data = write_rows(tmp_path / "toy.jsonl", toy_rows(16))
    args = [
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
    ]
    more = ["--set", "log_interval=1", "--set", "checkpoint_interval=20", "--keep-checkpoints", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "chuk_cli", *map(str, args), *more],
        env=chuk_environment(),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    until(lambda: summarize(tmp_path / "runs/live").step >= 25)
    yield process
    process.kill()
    process.wait()


def until(condition: object, seconds: float = 60) -> None:
    """Wait until a callable says yes."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("done", "done"),
        ("early_stopping", "done"),
        ("stopped", "stopped"),
        ("failed", "failed"),
        (None, "killed"),
    ],
)
def test_the_last_event_says_how_it_ended(
    write_run: WriteRun, ending: str | None, status: str
) -> None:
    events = [started(0), step(1, 1)] + ([finished(2, ending)] if ending else [])
    assert summarize(write_run("run", events)).status == status


def test_a_resumed_run_that_was_killed_is_killed_though_it_was_stopped_before(
    write_run: WriteRun,
) -> None:
    run = write_run(
        "run", [started(0), step(5, 1), finished(2, "stopped"), started(9, step=5), step(6, 10)]
    )
    assert summarize(run).status == "killed"


def test_a_run_is_running_until_it_is_killed(
    training: subprocess.Popen[bytes], run_chuk: RunChuk, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "live"
    assert is_locked(run)
    (listed,) = as_json(run_chuk("runs", "ls", "--json").stdout)
    assert (listed["status"], listed["steps"], listed["algorithm"]) == ("running", 1_000_000, "sft")
    refused = run_chuk("runs", "rm", "live", "--yes")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "training in" in refused.stderr
    with pytest.raises(TrainingError, match="training in"):
        remove_run(run)

    os.kill(training.pid, signal.SIGKILL)
    training.wait()
    assert (is_locked(run), summarize(run).status) == (False, "killed")
    shown = run_chuk("runs", "show", "live")
    assert "killed after" in shown.stdout
    assert "chuk train resume runs/live" in shown.stderr
    assert json.loads(run_chuk("runs", "show", "live", "--json").stdout)["status"] == "killed"

    done = run_chuk("runs", "rm", "live", "--yes")
    assert (done.returncode, run.exists()) == (0, False), done.stderr


def test_reading_does_not_keep_a_run_from_going_on(runs: Path) -> None:
    from chuk_lib.training.run_dir import RunDir

    assert not is_locked(runs / "first")
    directory = RunDir.open(runs / "first")
    assert is_locked(runs / "first")
    directory.close()
    assert not is_locked(runs / "first")


def test_what_is_not_chuk_s_stays(runs: Path) -> None:
    (runs / "first" / "notes.txt").write_text("mine")
    assert remove_run(runs / "first") == ["notes.txt"]
    assert [entry.name for entry in (runs / "first").iterdir()] == ["notes.txt"]
    assert remove_run(runs / "second") == []
    assert not (runs / "second").exists()


def test_a_folder_that_is_no_run_is_never_removed(tmp_path: Path, run_chuk: RunChuk) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "config.yaml").write_text("a: 1")
    with pytest.raises(ModelError, match="not a run directory"):
        remove_run(tmp_path / "photos")
    done = run_chuk("runs", "rm", "photos", "--yes")
    assert (done.returncode, (tmp_path / "photos" / "config.yaml").exists()) == (1, True)


def test_a_link_to_a_run_is_not_followed(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(runs / "first")
    with pytest.raises(ModelError, match="not a run directory"):
        remove_run(tmp_path / "link")
    assert (runs / "first" / "config.yaml").exists()


def test_removing_knows_every_file_of_a_run_directory(runs: Path) -> None:
    assert {entry.name for entry in (runs / "first").iterdir()} <= set(OWN)
