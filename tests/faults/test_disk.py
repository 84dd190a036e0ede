"""A disk that is full, a limit on file sizes, a folder without permission: the run stops and loses
nothing."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chuk_lib.training import resume
from chuk_lib.training.checkpoints import list_checkpoints, verify_checkpoint
from tests.faults.conftest import STEPS, Start, assert_like, resume_command, wait_for

KEPT = [STEPS - 20, STEPS - 10]
Command = Callable[..., list[str]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(kilobytes)`: a file system of that size. Skips where none can be mounted."""
    if sys.platform != "linux":
        pytest.skip("mounts a tmpfs, which is Linux")
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "chuk", str(folder)]
        done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def checkpoint_bytes(whole: Path) -> int:
    """What one checkpoint takes on disk, in whole pages."""
    return sum(
        -(-path.stat().st_size // 4096) * 4096 for path in list_checkpoints(whole)[-1].iterdir()
    )


def test_a_full_disk_stops_a_run_and_loses_nothing(
    start: Start, command: Command, small_disk: Callable[[int], Path], tmp_path: Path, whole: Path
) -> None:
    disk = small_disk(int(2.5 * checkpoint_bytes(whole) / 1024))
    process = start(command(str(disk / "run"), keep_checkpoints=5))
    out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, ""), told
    assert f"error: cannot write checkpoint `{disk}/run/checkpoints/step_000030`" in told
    assert f"hint: make room or mend the disk, then `chuk train resume {disk}/run`" in told
    assert "Traceback" not in told
    assert [verify_checkpoint(folder).step for folder in list_checkpoints(disk / "run")] == [10, 20]
    assert sorted(path.name for path in (disk / "run" / "checkpoints").iterdir()) == [
        "step_000010",
        "step_000020",
    ]
    again = start(resume_command(run=str(disk / "run")))
    _, told = again.communicate(timeout=60)
    assert (again.returncode, "cannot write checkpoint" in told) == (1, True), told
    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
    assert resume(disk / "run").reason == "done"
    assert_like(disk / "run", whole)


def test_a_disk_that_is_full_from_the_start_is_left_as_it_was(
    start: Start, command: Command, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(8)
    (disk / "filler").write_bytes(b"\0" * 4096)
    process = start(command(str(disk / "run")))
    out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "no space left on device" in told
    assert "hint: free some space" in told
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_limit_on_file_sizes_stops_a_run_and_loses_nothing(
    start: Start, unfinished: Path, whole: Path
) -> None:
    limited = start(
        resume_command(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    _, told = limited.communicate(timeout=60)
    assert limited.returncode == 1
    assert "error: cannot write checkpoint" in told
    assert "Traceback" not in told
    assert [verify_checkpoint(folder).step for folder in list_checkpoints(unfinished)] == KEPT
    assert resume(unfinished).reason == "done"
    assert_like(unfinished, whole)


def _without_privileges() -> None:
    """Take from root what lets it write where its own permissions say no (Linux:
    CAP_DAC_OVERRIDE)."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(24, 1)


def test_a_folder_without_permission_is_told_before_the_model_is_loaded(
    start: Start, command: Command, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    probe = start(["touch", str(closed / "probe")], preexec_fn=_without_privileges)
    if probe.wait(timeout=10) == 0:
        pytest.skip("the rights of root cannot be taken away here")
    process = start(command(str(closed / "run")), preexec_fn=_without_privileges)
    out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert f"no permission to write in `{closed}`" in told
    assert "hint: choose another --output" in told


def test_a_folder_that_loses_its_permission_stops_the_run(start: Start, unfinished: Path) -> None:
    checkpoints = unfinished / "checkpoints"
    checkpoints.chmod(0o500)
    try:
        process = start(resume_command(), preexec_fn=_without_privileges)
        _, told = process.communicate(timeout=60)
    finally:
        checkpoints.chmod(0o700)
    if process.returncode == 0:
        pytest.skip("the rights of root cannot be taken away here")
    assert process.returncode == 1
    assert "cannot write checkpoint" in told
    assert "Permission denied" in told
    assert [verify_checkpoint(folder).step for folder in list_checkpoints(unfinished)] == KEPT


def test_a_run_directory_that_is_removed_stops_the_run(
    start: Start, command: Command, tmp_path: Path
) -> None:
    process = start(command(max_steps=100_000))
    wait_for(tmp_path / "run", 10, process)
    (tmp_path / "run").rename(tmp_path / "moved")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cannot write checkpoint" in told
    assert not (tmp_path / "run").exists()
