"""Places that cannot be written: told before any work, and what lies there stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bad_input.conftest import Fails

WRITERS = {
    "train": "train sft -m good -d good.jsonl -o {}",
    "create": "model create --preset nano -o {}",
    "generate": "data generate-math -n 20 -o {}",
}


@pytest.mark.parametrize("command", WRITERS.values(), ids=WRITERS)
def test_outputs_that_cannot_be_folders(fails: Fails, bench: Path, command: str) -> None:
    fails(command.format("good.jsonl"), 2, "`good.jsonl` is a file", "choose another --output")
    fails(command.format("good.jsonl/below"), 2, "good.jsonl` is a file", "choose another --output")
    fails(
        command.format("x" * 300),
        2,
        "cannot be a folder: file name too long",
        "choose another --output",
    )
    fails(command.format("/proc/chuk"), 2, "cannot make `/proc/", "choose another --output")


@pytest.mark.parametrize("command", WRITERS.values(), ids=WRITERS)
def test_links_that_run_in_a_circle(fails: Fails, bench: Path, command: str) -> None:
    (bench / "circle").symlink_to("circle")
    try:
        fails(
            command.format("circle"),
            2,
            "`circle` cannot be a folder: its links run in a circle",
            "another --output",
        )
    finally:
        (bench / "circle").unlink()


def test_training_does_not_write_into_a_folder_with_anything_in_it(fails: Fails) -> None:
    train = WRITERS["train"]
    fails(
        train.format("full"),
        2,
        "--output `full` is not empty",
        "--overwrite to replace it, or another folder",
    )
    fails(
        train.format("full --overwrite"),
        2,
        "--overwrite removes only runs",
        "choose another folder",
    )
    fails(
        train.format("good --overwrite"),
        2,
        "not empty and not a run directory",
        "choose another folder",
    )


def test_creating_replaces_only_models(fails: Fails) -> None:
    create = WRITERS["create"]
    fails(create.format("full"), 2, "`full` is not empty", "replace it with --overwrite")
    fails(
        create.format("full --overwrite"),
        2,
        "`full` holds files that are no model",
        "replaces models only",
    )


def test_generating_replaces_only_when_told(fails: Fails, bench: Path) -> None:
    (bench / "full" / "valid.jsonl").write_text("mine")
    try:
        fails(WRITERS["generate"].format("full"), 2, "`full/valid.jsonl` exists", "--overwrite")
    finally:
        (bench / "full" / "valid.jsonl").unlink()


@pytest.mark.parametrize("command", WRITERS.values(), ids=WRITERS)
@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write everywhere; tests/faults takes that right away"
)
def test_folders_without_permission(fails: Fails, tmp_path: Path, command: str) -> None:
    tmp_path.joinpath("closed").mkdir(mode=0o500)
    fails(
        command.format(tmp_path / "closed" / "out"),
        2,
        "no permission to write",
        "choose another --output",
    )


def test_folders_that_are_no_runs(fails: Fails) -> None:
    fails(
        "train resume good",
        1,
        "is not a run directory: it has no config.yaml",
        "name the folder of a training run",
    )
    fails("train resume zzzz", 1, "is not a run directory", "name the folder of a training run")
    fails("doctor --parity zzzz", 1, "`zzzz` is not a folder", "parity fixtures")
