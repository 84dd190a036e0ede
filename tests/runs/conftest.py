"""Two real runs of a tiny model, copied for each test, and logs written by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.events import Event
from chuk_lib.training import SFTConfig, train_sft
from tests.training.conftest import toy_rows, write_rows

WriteRun = Callable[..., Path]


@pytest.fixture(scope="session")
def two_runs(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `first` (12 steps, evaluated) and `second` (6 steps, another learning
    rate)."""
    folder = tmp_path_factory.mktemp("trained")
    data = folder / "toy"
    data.mkdir()
    write_rows(data / "train.jsonl", toy_rows(37))
    write_rows(data / "valid.jsonl", toy_rows(9, offset=100))
    shared: dict[str, Any] = {
        "model": str(tiny_model_dir),
        "data": str(data),
        "batch_size": 4,
        "log_interval": 1,
    }
    origins = {"learning_rate": "--learning-rate", "seed": "default"}
    for name, changes in (
        (
            "first",
            {"max_steps": 12, "learning_rate": 3e-3, "eval_steps": 4, "checkpoint_interval": 6},
        ),
        ("second", {"max_steps": 6, "learning_rate": 1e-4, "eval_steps": 3}),
    ):
        config = SFTConfig(output=str(folder / "runs" / name), **(shared | changes))
        train_sft(config, origins=origins if name == "first" else None)
    return folder / "runs"


@pytest.fixture
def runs(two_runs: Path, tmp_path: Path) -> Path:
    """A copy of both runs as `runs/` in the test's folder."""
    return Path(shutil.copytree(two_runs, tmp_path / "runs"))


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """`write_run("name", events)`: a run directory with just that log, in `runs/`."""

    def write(name: str, events: Sequence[Event | str]) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        lines = [event if isinstance(event, str) else event.to_json() for event in events]
        (folder / "events.jsonl").write_text(
            "".join(f"{line}\n" for line in lines), encoding="utf-8"
        )
        return folder

    return write


def started(time: float, step: int = 0, **data: Any) -> Event:
    """The first event of a session."""
    return Event(
        "started", step, {"algorithm": "sft", "steps": 10, "start_step": step} | data, time
    )


def step(number: int, time: float, loss: float = 1.0, **data: Any) -> Event:
    """A logged step."""
    return Event("step", number, {"loss": loss} | data, time)


def finished(time: float, reason: str = "done", **data: Any) -> Event:
    """The last event of a session."""
    return Event("finished", 10, {"reason": reason} | data, time)


def as_json(text: str) -> Any:
    """What a command wrote, which must be one line of JSON."""
    assert text.count("\n") == 1
    return json.loads(text)
