"""TensorBoard, Weights & Biases and Trackio: real runs, read back with the real packages."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.errors import ConfigError
from chuk_lib.events import Event, fan_out
from chuk_lib.sinks import make_sinks
from chuk_lib.sinks.scalars import scalars
from tests.conftest import RunChuk, chuk_environment
from tests.training.conftest import toy_rows, write_rows

needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
    for name in ("tensorboard", "wandb", "trackio")
}


@pytest.fixture
def private(tmp_path: Path) -> dict[str, str]:
    """Variables that keep every package out of the developer's own folders, and W&B off the network."""
    own = {"TRACKIO_DIR": "trackio", "WANDB_CONFIG_DIR": "wc", "WANDB_CACHE_DIR": "wx", "WANDB_DATA_DIR": "wd"}
    own |= {"HOME": "home"}
    return {name: str(tmp_path / folder) for name, folder in own.items()} | {"WANDB_MODE": "offline"}


@pytest.fixture
def arguments(tiny_model_dir: Path, tmp_path: Path) -> list[Any]:
    """A run of six steps with two evaluations."""
    (tmp_path / "toy").mkdir()
    write_rows(tmp_path / "toy" / "train.jsonl", toy_rows(16))
    write_rows(tmp_path / "toy" / "valid.jsonl", toy_rows(5, offset=50))
    settings = ["log_interval=1", "eval_steps=3", "checkpoint_interval=3"]
    sets = [part for setting in settings for part in ("--set", setting)]
    return ["train", "sft", "-m", tiny_model_dir, "-d", "toy", "-o", "runs/first", "--max-steps", 6, *sets]


def logged(run: Path, kind: str, metric: str) -> list[tuple[int, float]]:
    """What the run's own log says."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [(event["step"], event["data"][metric]) for event in events if event["kind"] == kind]


def read_back(script: str, environment: Mapping[str, str], *args: object) -> Any:
    """What a script prints as JSON, in a process of its own (these packages start threads and warn)."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)], env=chuk_environment(environment), capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
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


@needs["tensorboard"]
def test_tensorboard(arguments: list[Any], run_chuk: RunChuk, private: dict[str, str], tmp_path: Path) -> None:
    done = run_chuk(*arguments, "--report-to", "tensorboard", "-q")
    assert (done.returncode, done.stdout) == (0, "runs/first\n"), done.stderr
    run = tmp_path / "runs" / "first"
    numbers, texts = read_back(TENSORBOARD, private, run / "tensorboard")
    for tag, kind, metric in (("train/loss", "step", "loss"), ("eval/loss", "eval", "eval_loss")):
        expected = logged(run, kind, metric)
        assert [step for step, _ in numbers[tag]] == [step for step, _ in expected]
        assert [value for _, value in numbers[tag]] == pytest.approx([value for _, value in expected], rel=1e-6)
    assert '"batch_size": 8' in texts["settings/text_summary"][0]
    assert "prompt" in texts["sample/text_summary"][0]


@needs["tensorboard"]
def test_tensorboard_shows_a_resumed_step_once(
    arguments: list[Any], run_chuk: RunChuk, private: dict[str, str], tmp_path: Path
) -> None:
    assert run_chuk(*arguments, "--report-to", "tensorboard", "-q").returncode == 0
    run = tmp_path / "runs" / "first"
    shutil.rmtree(run / "checkpoints" / "step_000006")  # as if it had been killed after step 6, before the checkpoint
    assert run_chuk("train", "resume", "runs/first", "-q").returncode == 0
    assert len(list((run / "tensorboard").iterdir())) == 2
    numbers, _ = read_back(TENSORBOARD, private, run / "tensorboard")
    assert [step for step, _ in numbers["train/loss"]] == [1, 2, 3, 4, 5, 6]


# A .wandb file is a LevelDB log: seven bytes of head, then blocks of 32 KiB with records of checksum, length and type.
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
        name = [record.run.project, record.run.display_name, record.run.run_id]
print(json.dumps([rows, config, name]))
"""


@needs["wandb"]
def test_wandb_offline(arguments: list[Any], run_chuk: RunChuk, private: dict[str, str], tmp_path: Path) -> None:
    done = run_chuk(*arguments, "--report-to", "wandb", "--json", env=private)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert all(json.loads(line)["kind"] != "warning" for line in done.stdout.splitlines())
    run = tmp_path / "runs" / "first"
    (path,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    rows, config, (project, name, identity) = read_back(WANDB, private, path)
    losses = [(row["train/global_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(step, pytest.approx(value)) for step, value in logged(run, "step", "loss")]
    assert [row["train/global_step"] for row in rows if "eval/loss" in row] == [3, 6]
    assert [row["sample/target"] for row in rows if "sample/target" in row]
    assert (config["batch_size"], config["algorithm"], project, name) == (8, "sft", "chuk", "first")

    shutil.rmtree(run / "checkpoints" / "step_000006")
    assert run_chuk("train", "resume", "runs/first", "-q", env=private).returncode == 0
    names = {path.name for path in (run / "wandb").glob("offline-run-*/run-*.wandb")}
    assert names == {f"run-{identity}.wandb"}


@needs["wandb"]
def test_wandb_without_a_login_is_told_before_anything_is_written(
    arguments: list[Any], run_chuk: RunChuk, private: dict[str, str], tmp_path: Path
) -> None:
    done = run_chuk(*arguments, "--report-to", "wandb", env=private | {"WANDB_MODE": "online", "NETRC": "/nowhere"})
    assert (done.returncode, "wandb login" in done.stderr, (tmp_path / "runs").exists()) == (2, True, False)


TRACKIO = """
import json
from trackio.sqlite_storage import SQLiteStorage
names = SQLiteStorage.get_runs("chuk")
print(json.dumps([names, SQLiteStorage.get_logs("chuk", "first")]))
"""


@needs["trackio"]
def test_trackio(arguments: list[Any], run_chuk: RunChuk, private: dict[str, str], tmp_path: Path) -> None:
    done = run_chuk(*arguments, "--report-to", "trackio", "--json", env=private)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()][-1]["kind"] == "finished"
    names, rows = read_back(TRACKIO, private)
    run = tmp_path / "runs" / "first"
    assert names == ["first"]
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(step, pytest.approx(value)) for step, value in logged(run, "step", "loss")]
    assert [row["step"] for row in rows if "eval/loss" in row] == [3, 6]


def test_unknown_sinks_are_refused_before_anything_is_written(
    arguments: list[Any], run_chuk: RunChuk, tmp_path: Path
) -> None:
    done = run_chuk(*arguments, "--report-to", "tensorbord")
    assert (done.returncode, "did you mean `tensorboard`" in done.stderr) == (2, True)
    assert not (tmp_path / "runs").exists()


def test_a_package_that_is_missing_is_named_with_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import chuk_lib.sinks.make as make

    monkeypatch.setitem(make.SINKS, "no_such_package", "nowhere:Nothing")
    with pytest.raises(ConfigError) as error:
        make_sinks(["no_such_package"])
    assert error.value.hint == "`pip install no_such_package`"


def test_none_means_no_sink() -> None:
    assert make_sinks([]) == make_sinks(["none"]) == []


@needs["tensorboard"]
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
    assert scalars(Event("step", 1, {"loss": 1.5, "best": True, "text": "x"})) == {"train/loss": 1.5}
    assert scalars(Event("eval", 1, {"eval_loss": 2, "seconds": 0.5})) == {"eval/loss": 2.0, "eval/seconds": 0.5}
    assert scalars(Event("saved", 1, {"bytes": 3})) == {}
