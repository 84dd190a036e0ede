"""What is particular to macOS, said on any machine: versions, chips, the drive, the watchdog."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import mac_report
from chuk_lib.errors import TrainingError
from chuk_lib.runtime.gpu_errors import RELAX
from chuk_lib.runtime.macos import is_too_old_for_its_wheel, relax_watchdog, watchdog_words
from chuk_lib.training import SFTConfig, train_sft
from chuk_lib.training.checkpoints import flush_drive
from chuk_lib.training.run import GPU_CHECKPOINT_MINUTES
from chuk_lib.training.run_dir import RunDir
from tests.conftest import ROOT
from tests.training.conftest import toy_rows, write_rows

spec = importlib.util.spec_from_file_location("check_python", ROOT / ".ci" / "check_python.py")
assert spec is not None
assert spec.loader is not None
check_python = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_python)


@pytest.mark.parametrize(
    ("version", "system", "machine", "macos", "words"),
    [
        ((3, 11), "Darwin", "arm64", "14.0", None),
        ((3, 14), "Darwin", "arm64", "26.2", None),
        ((3, 12), "Linux", "x86_64", "", None),
        ((3, 12), "Darwin", "x86_64", "15.5", "runs under Rosetta"),
        ((3, 12), "Darwin", "arm64", "13.6.1", "macOS 14 or newer"),
        ((3, 9), "Darwin", "arm64", "15.5", "Python 3.11 or newer"),
        ((3, 15), "Linux", "x86_64", "", "for Python 3.15 yet"),
    ],
)
def test_what_cannot_be_installed_is_said_before_pip_does(
    version: tuple[int, int], system: str, machine: str, macos: str, words: str | None
) -> None:
    found = check_python.complaint(version, system, machine, macos)
    assert found is None if words is None else words in found


def test_the_bounds_are_those_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest, newest = check_python.OLDEST, check_python.NEWEST
    assert f'requires-python = ">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"' in project


@pytest.mark.parametrize(
    ("chip", "value"), [("Apple M1", "1"), ("Apple M4 Pro", "1"), ("Apple M5", None), ("", None)]
)
def test_the_display_waits_longer_where_that_helps(chip: str, value: str | None) -> None:
    environment: dict[str, str] = {}
    relax_watchdog(environment, chip)
    assert environment.get(RELAX) == value
    assert ("`chuk train` sets" in watchdog_words({}, chip)) is (value is not None)


def test_what_somebody_decided_of_it_stays() -> None:
    environment = {RELAX: "0"}
    relax_watchdog(environment, "Apple M2")
    assert environment == {RELAX: "0"}
    assert watchdog_words(environment, "Apple M2") == f"{RELAX}=0, as you set it"


@pytest.mark.parametrize(
    ("macos", "old"),
    [
        ("26.0", True),
        ("26.1", True),
        ("26.1.1", True),
        ("26.2", False),
        ("26.10", False),
        ("", False),
    ],
)
def test_systems_that_are_older_than_their_wheel(macos: str, old: bool) -> None:
    assert is_too_old_for_its_wheel(macos) is old


def test_a_checkpoint_reaches_the_drive_itself(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[int] = []

    def control(handle: int, command: int) -> int:
        asked.append(command)
        return 0

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    data = write_rows(tmp_path / "rows.jsonl", toy_rows(8))
    train_sft(
        SFTConfig(
            model=str(tiny_model_dir),
            data=str(data),
            output=str(tmp_path / "run"),
            max_steps=4,
            checkpoint_interval=2,
        )
    )
    assert asked == [51, 51]


def test_a_volume_without_that_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(handle: int, command: int) -> int:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    (tmp_path / "file").write_text("")
    flush_drive(tmp_path / "file")


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.EINVAL])
def test_a_volume_without_locks_is_not_another_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(TrainingError, match="cannot be locked") as caught:
        RunDir.create(tmp_path / "run")
    assert "on a disk of this machine" in caught.value.hint


@pytest.mark.parametrize(
    "part",
    [part for part in mac_report.PARTS[:-1] if part.__name__ not in ("start_up", "runs")],
    ids=lambda p: p.__name__,
)
def test_each_part_of_the_report_says_something(part: Callable[[bool], Iterator[str]]) -> None:
    lines = list(part(True))
    assert lines
    assert all(lines)


def test_the_page_of_macs_names_what_it_should() -> None:
    page = (ROOT / "docs" / "mac.md").read_text(encoding="utf-8")
    for name in (
        RELAX,
        "caffeinate -i",
        "checkpoint_minutes",
        "CHUK_DEVICE",
        "make mac-report",
        "pmset displaysleepnow",
    ):
        assert name in page
    assert f"at least every {GPU_CHECKPOINT_MINUTES} minutes" in page
    assert RELAX in (ROOT / "README.md").read_text(encoding="utf-8")
