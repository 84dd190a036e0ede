"""Checkpoints and settings that were damaged or half copied, and data that is gone or another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import STEPS, Chuk, assert_like
from tests.training.conftest import toy_rows, write_rows

Damage = Callable[[Path], object]


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A finished run with checkpoints at 80, 90 and 100 to damage."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def _newest(run: Path) -> Path:
    return run / "checkpoints" / f"step_{STEPS:06d}"


def _half_copied(run: Path) -> None:
    """What an interrupted `cp -r` leaves: some files, the last of them cut."""
    files = sorted(_newest(run).iterdir())
    for path in files[len(files) // 2 + 1 :]:
        path.unlink()
    cut = files[len(files) // 2]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Damage] = {
    "half copied": _half_copied,
    "weights flipped": lambda run: _flip(_newest(run) / "model.safetensors"),
    "moments flipped": lambda run: _flip(_newest(run) / "optimizer.safetensors"),
    "state emptied": lambda run: (_newest(run) / "state.json").write_text(""),
    "state is binary": lambda run: (_newest(run) / "state.json").write_bytes(b"\xff\xfe\0"),
    "a file instead": lambda run: (shutil.rmtree(_newest(run)), _newest(run).write_text("x")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_said(
    chuk: Chuk, run: Path, whole: Path, name: str
) -> None:
    DAMAGE[name](run)
    code, _, told = chuk("train", "resume", "run")
    assert code == 0, told
    assert f"warning: checkpoint `{_newest(run)}` is damaged" in told
    assert f"goes on from step {STEPS - 10}" in told
    assert_like(run, whole)


def test_marks_that_lead_nowhere_are_not_needed(chuk: Chuk, run: Path, whole: Path) -> None:
    (run / "latest").write_text("step_999999\n")
    (run / "best").write_bytes(b"\xff")
    shutil.rmtree(_newest(run))
    assert chuk("train", "resume", "run", "-q") == (0, "run\n", "")
    assert_like(run, whole)
    assert chuk("infer", "-m", "run", "-p", "red", "-n", "2", "-q")[0] == 0


def test_without_any_whole_checkpoint_the_run_is_left_alone(chuk: Chuk, run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        _flip(folder / "model.safetensors")
    before = sorted(str(path) for path in run.rglob("*"))
    error = (
        f"error: `{run}` has no valid checkpoint to resume from\nhint: start the run again with"
        " --overwrite\n"
    )
    assert chuk("train", "resume", "run", "-q") == (1, "", error)
    assert sorted(str(path) for path in run.rglob("*")) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    chuk: Chuk, run: Path, whole: Path
) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    (run / "latest").unlink()
    assert chuk("train", "resume", "run", "-q") == (0, "run\n", "")
    assert_like(run, whole)


def test_what_a_run_leaves_that_was_killed_while_it_made_its_folder_is_no_obstacle(
    chuk: Chuk, tiny_model_dir: Path, toy_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".origins.json.partial").write_text("{")
    args = [
        "train",
        "sft",
        "-m",
        tiny_model_dir,
        "-d",
        toy_file,
        "-o",
        "run",
        "--max-steps",
        1,
        "-q",
    ]
    assert chuk(*args) == (0, "run\n", "")


@pytest.mark.parametrize(
    "content", [b"", b"model: [", b"\xff\xfe", b"- a\n"], ids=["empty", "cut", "binary", "list"]
)
def test_settings_that_cannot_be_read(chuk: Chuk, run: Path, content: bytes) -> None:
    (run / "config.yaml").write_bytes(content)
    code, out, told = chuk("train", "resume", "run", "-q")
    assert (code, out) == (1, "")
    assert told.startswith(f"error: `{run}/config.yaml` ")
    assert told.endswith("hint: put the file back as the run wrote it\n")


def test_a_log_that_is_cut_or_binary_does_not_stop_a_run(
    chuk: Chuk, run: Path, whole: Path
) -> None:
    shutil.rmtree(_newest(run))
    (run / "events.jsonl").write_bytes(b'{"v": 1, "t": 17\xff\n\0\0\0{"v"')
    assert chuk("train", "resume", "run", "-q")[0] == 0
    assert_like(run, whole)


def test_data_that_is_gone_or_another_is_said_and_the_run_is_left_alone(
    chuk: Chuk, tiny_model_dir: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "train.jsonl", toy_rows(9))
    args = [
        "-m",
        tiny_model_dir,
        "-d",
        data,
        "-o",
        "run",
        "--max-steps",
        4,
        "--lr-scheduler-type",
        "constant",
        "-q",
    ]
    assert chuk("train", "sft", *args)[0] == 0
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()
    }
    more = ["train", "resume", "run", "--max-steps", 6, "-q"]

    write_rows(data, toy_rows(9, offset=1))
    code, out, told = chuk(*more)
    assert (code, out) == (1, "")
    assert "error: the training data is not what" in told
    assert "hint: put the old data back, or go on with --allow-changed-data" in told

    data.unlink()
    code, out, told = chuk(*more)
    assert (code, out) == (1, "")
    assert f"error: `{data}` does not exist" in told
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()
    } == before

    write_rows(data, toy_rows(9, offset=1))
    assert chuk(*more, "--allow-changed-data")[0] == 0


def test_a_mark_that_a_kill_kept_from_being_written_is_written_later(
    chuk: Chuk, tiny_model_dir: Path, toy_file: Path, tmp_path: Path
) -> None:
    args = [
        "-m",
        tiny_model_dir,
        "-d",
        toy_file,
        "--eval-data",
        toy_file,
        "-o",
        "run",
        "--set",
        "eval_steps=2",
        "-q",
    ]
    assert chuk("train", "sft", *args, "--max-steps", 4, "--lr-scheduler-type", "constant")[0] == 0
    (tmp_path / "run" / "best").write_text("step_000002\n")
    assert chuk("train", "resume", "run", "--max-steps", 5, "-q")[0] == 0
    state = json.loads(
        (tmp_path / "run" / "checkpoints" / "step_000005" / "state.json").read_text()
    )
    assert (
        (tmp_path / "run" / "best").read_text()
        == f"step_{state['best']['step']:06d}\n"
        != "step_000002\n"
    )
