"""Two processes on one run directory: the second is told, the first does not notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.faults.conftest import Start, assert_like, resume_command, wait_for

Command = Callable[..., list[str]]


def test_a_second_process_is_kept_out_and_the_first_goes_on(
    start: Start, command: Command, tmp_path: Path
) -> None:
    first = start(command(max_steps=100_000))
    wait_for(tmp_path / "run", 10, first)
    for second in (start(resume_command("-q")), start(command("run", "--overwrite", "-q"))):
        out, told = second.communicate(timeout=60)
        assert (second.returncode, out) == (1, "")
        assert told.startswith(
            f"error: another process is training in `{tmp_path / 'run'}`\nhint: wait for it"
        )
    assert first.poll() is None
    first.terminate()
    first.communicate(timeout=60)
    assert first.returncode == 143


def test_two_processes_that_start_at_once_do_not_mix(
    start: Start, command: Command, tmp_path: Path, whole: Path
) -> None:
    racers = [start(command("run", "-q")) for _ in range(2)]
    told = [process.communicate(timeout=120)[1] for process in racers]
    codes = sorted(process.returncode for process in racers)
    # Kept out by the lock, or by the folder that is no longer empty.
    assert codes in ([0, 1], [0, 2]), told
    assert_like(tmp_path / "run", whole)
