"""TensorBoard, Weights & Biases and Trackio: real runs, read back with the real packages."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.errors import ConfigError
from chuk_lib.events import Event, fan_out, read_events
from chuk_lib.sinks import make_sinks
from chuk_lib.sinks.scalars import run_name, scalars
from tests.conftest import chuk_environment
from tests.training.conftest import toy_rows, write_rows

SINKS = ("tensorboard", "wandb", "trackio")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in SINKS), reason="needs the extra `sinks`"
)


@dataclass
class Reported:
    """A run that went to all three, and what `chuk train --json` wrote."""

    run: Path
    environment: dict[str, str]
    stdout: str
    stderr: str


def private(folder: Path) -> dict[str, str]:
    """Variables that keep every package out of the developer's own folders, and W&B off the
    network."""
    own = {
        "TRACKIO_DIR": "trackio",
        "WANDB_CONFIG_DIR": "wc",
        "WANDB_CACHE_DIR": "wx",
        "WANDB_DATA_DIR": "wd",
    }
    own |= {"HOME": "home"}
    return {name: str(folder / place) for name, place in own.items()} | {"WANDB_MODE": "offline"}


def chuk(
    *args: object, folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """The real executable."""
    return subprocess.run(
        [sys.executable, "-m", "chuk_cli", *map(str, args)],
        cwd=folder,
        env=chuk_environment(environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def reported(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """Six steps with two evaluations, the last checkpoint lost, and a resume from step 3."""
    folder = tmp_path_factory.mktemp("reported")
    (folder / "toy").mkdir()
    write_rows(folder / "toy" / "train.jsonl", toy_rows(16))
    write_rows(folder / "toy" / "valid.jsonl", toy_rows(5, offset=50))
    settings = ["log_interval=1", "eval_steps=3", "checkpoint_interval=3"]
    sets = [part for setting in settings for part in ("--set", setting)]
    args = [
        "train",
        "sft",
        "-m",
        tiny_model_dir,
        "-d",
        "toy",
        "-o",
        "runs/first",
        "--max-steps",
        6,
        *sets,
        *("--run-name", "sums", "--project", "tries", "--tags", "a,b"),
    ]
    environment = private(folder)
    done = chuk(
        *args, "--report-to", ",".join(SINKS), "--json", folder=folder, environment=environment
    )
    assert done.returncode == 0, done.stderr
    # As if killed after step 6, before the checkpoint.
    shutil.rmtree(folder / "runs/first/checkpoints/step_000006")
    again = chuk("train", "resume", "runs/first", "-q", folder=folder, environment=environment)
    assert again.returncode == 0, again.stderr
    return Reported(folder / "runs" / "first", environment, done.stdout, done.stderr)


def logged(run: Path, kind: str, metric: str) -> list[tuple[int, float]]:
    """What the run's own log says, without the steps that were taken again."""
    return [
        (event.step, event.data[metric])
        for event in read_events(run / "events.jsonl")
        if event.kind == kind
    ]


def read_back(script: str, environment: Mapping[str, str], *args: object) -> Any:
    """What a script prints as JSON, in a process of its own (these packages start threads and
    warn)."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        env=chuk_environment(environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


TENSORBOARD = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1])
found.Reload()
tags = found.Tags()
scalars = {tag: [(point.step, point.value) for point in found.Scalars(tag)] for tag in tags["scalars"]}
texts = {tag: [found.Tensors(tag)[0].tensor_proto.string_val[0].decode()] for tag in tags["tensors"]}
print(json.dumps([scalars, texts]))
"""


def test_nothing_but_events_is_printed(reported: Reported) -> None:
    events = [json.loads(line) for line in reported.stdout.splitlines()]
    assert (events[0]["kind"], events[-1]["kind"], reported.stderr) == ("started", "finished", "")
    assert not [event for event in events if event["kind"] == "warning"]


def test_tensorboard_has_each_step_once(reported: Reported) -> None:
    folder = reported.run / "tensorboard"
    assert len(list(folder.iterdir())) == 2
    numbers, texts = read_back(TENSORBOARD, reported.environment, folder)
    for tag, kind, metric in (("train/loss", "step", "loss"), ("eval/loss", "eval", "eval_loss")):
        expected = logged(reported.run, kind, metric)
        assert [step for step, _ in numbers[tag]] == [step for step, _ in expected]
        assert [value for _, value in numbers[tag]] == pytest.approx(
            [value for _, value in expected], rel=1e-6
        )
    assert '"batch_size": 8' in texts["settings/text_summary"][0]
    assert "prompt" in texts["sample/text_summary"][0]


# A .wandb file is a LevelDB log: seven bytes of head, then blocks of 32 KiB with records of
# checksum, length and type.
WANDB = """
import json, struct, sys
from wandb.proto import wandb_internal_pb2 as messages

def records(data):
    place, part = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield part
            part = b""

rows, config, name = [], {}, []
for data in records(open(sys.argv[1], "rb").read()):
    record = messages.Record()
    record.ParseFromString(data)
    if record.WhichOneof("record_type") == "history":
        items = record.history.item
        rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    if record.WhichOneof("record_type") == "run":
        config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        name = [record.run.project, record.run.display_name, *record.run.tags, record.run.run_id]
print(json.dumps([rows, config, name]))
"""


def test_wandb_offline_has_one_run_in_two_parts(reported: Reported) -> None:
    parts = sorted(
        (reported.run / "wandb").glob("offline-run-*/run-*.wandb"),
        key=lambda path: path.stat().st_mtime,
    )
    (rows, config, name), (more, _, same) = [
        read_back(WANDB, reported.environment, path) for path in parts
    ]
    losses = {
        row["train/global_step"]: row["train/loss"] for row in rows + more if "train/loss" in row
    }
    assert losses == pytest.approx(dict(logged(reported.run, "step", "loss")))
    assert [row["train/global_step"] for row in rows if "eval/loss" in row] == [3, 6]
    assert [row["sample/target"] for row in rows if "sample/target" in row]
    assert (config["batch_size"], config["algorithm"], name[:4], name) == (
        8,
        "sft",
        ["tries", "sums", "a", "b"],
        same,
    )


def test_wandb_without_a_login_is_told_before_anything_is_written(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "toy.jsonl", toy_rows(8))
    args = [
        "train",
        "sft",
        "-m",
        tiny_model_dir,
        "-d",
        data,
        "-o",
        "runs/first",
        "--report-to",
        "wandb",
    ]
    environment = private(tmp_path) | {"WANDB_MODE": "online", "NETRC": "/nowhere"}
    done = chuk(*args, folder=tmp_path, environment=environment)
    assert (done.returncode, "wandb login" in done.stderr, (tmp_path / "runs").exists()) == (
        2,
        True,
        False,
    )


TRACKIO = """
import json
from trackio.sqlite_storage import SQLiteStorage
names = SQLiteStorage.get_runs("tries")
print(json.dumps([names, SQLiteStorage.get_logs("tries", "sums")]))
"""


def test_trackio_goes_on_under_one_name(reported: Reported) -> None:
    names, rows = read_back(TRACKIO, reported.environment)
    assert names == ["sums"]
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert losses == pytest.approx(dict(logged(reported.run, "step", "loss")))
    assert {row["step"] for row in rows if "eval/loss" in row} == {3, 6}


def test_without_a_name_a_run_is_called_by_its_folder() -> None:
    assert run_name(Event("started", 0, {"run_dir": "runs/first", "config": {}})) == "first"


def test_unknown_sinks_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as error:
        make_sinks(["tensorbord"])
    assert error.value.hint == "did you mean `tensorboard`?"


def test_a_package_that_is_missing_is_named_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import chuk_lib.sinks.make as make

    monkeypatch.setitem(make.SINKS, "no_such_package", "nowhere:Nothing")
    with pytest.raises(ConfigError) as error:
        make_sinks(["no_such_package"])
    assert error.value.hint == "`pip install no_such_package`"


def test_none_means_no_sink() -> None:
    assert make_sinks([]) == make_sinks(["none"]) == []


def test_a_sink_that_fails_is_dropped_by_name_and_the_rest_goes_on(tmp_path: Path) -> None:
    seen: list[Event] = []
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    emit = fan_out([*make_sinks(["tensorboard"]), seen.append])
    emit(Event("started", 0, {"run_dir": str(tmp_path)}))
    emit(Event("step", 1, {"loss": 1.0}))
    assert [event.kind for event in seen].count("warning") == 1
    warning = next(event for event in seen if event.kind == "warning")
    assert "`tensorboard` failed and was dropped" in warning.data["text"]
    assert seen[-1].kind == "step"


def test_names_are_those_of_hugging_face() -> None:
    assert scalars(Event("step", 1, {"loss": 1.5, "best": True, "text": "x"})) == {
        "train/loss": 1.5
    }
    assert scalars(Event("eval", 1, {"eval_loss": 2, "seconds": 0.5})) == {
        "eval/loss": 2.0,
        "eval/seconds": 0.5,
    }
    assert scalars(Event("saved", 1, {"bytes": 3})) == {}
