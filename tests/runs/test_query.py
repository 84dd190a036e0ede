"""Choosing, ordering and finding runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from chuk_lib.config.settings import spellings
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.runs.find import find_run, list_runs, newest_run
from chuk_lib.runs.query import arrange, select
from chuk_lib.runs.summary import summarize
from chuk_lib.training.config import TrainerConfig
from tests.runs.conftest import WriteRun, finished, started, step

NAMES = spellings(TrainerConfig)


@pytest.fixture
def three(write_run: WriteRun) -> list:
    """Three runs: `a` done with loss 1, `b` killed with loss nan, `c` without a step."""
    config = {"learning_rate": 1e-4, "use_lora": True}
    write_run(
        "a",
        [
            started(100, config=config, model="org/Qwen3-0.6B"),
            step(1, 101, 1.0),
            finished(110, seconds=10),
        ],
    )
    write_run(
        "b", [started(200, config={"learning_rate": 2e-5}, model="m"), step(4, 201, float("nan"))]
    )
    folder = write_run("c", [started(300, config=config, model="n")])
    return [summarize(run) for run in list_runs(folder.parent)]


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ("status=done", "a"),
        ("status!=done", "bc"),
        ("loss<2", "a"),
        ("loss>=1", "a"),
        ("step>0", "ab"),
        ("learning_rate=1e-4", "ac"),
        ("lr=0.0001", "ac"),
        ("learning-rate<5e-5", "b"),
        ("use_lora=true", "ac"),
        ("model=*qwen*", "a"),
        ("model=Qwen3-0.6B", "a"),
        ("name=b", "b"),
        ("loss=none", "c"),
        ("duration>5", "a"),
        ("step=4", "b"),
        ("eval_loss<9", ""),
        (" status = killed ", "bc"),
    ],
)
def test_conditions(three: list, condition: str, names: str) -> None:
    assert "".join(run.name for run in select(three, [condition], NAMES)) == names


def test_conditions_add_up(three: list) -> None:
    assert [run.name for run in select(three, ["use_lora=true", "status=killed"], NAMES)] == ["c"]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("status", "is no condition"),
        ("=3", "is no condition"),
        ("stats=done", "no run has"),
        ("loss<low", "number"),
    ],
)
def test_wrong_conditions(three: list, condition: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(three, [condition], NAMES)


def test_a_wrong_key_is_answered_with_the_nearest(three: list) -> None:
    with pytest.raises(ConfigError) as error:
        arrange(three, "los", NAMES)
    assert error.value.hint == "did you mean `loss`?"


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("loss", "abc"),
        ("-step", "abc"),
        ("name", "abc"),
        ("-began", "cba"),
        ("learning_rate", "bac"),
    ],
)
def test_order(three: list, key: str, names: str) -> None:
    assert "".join(run.name for run in arrange(three, key, NAMES)) == names


def test_a_run_is_found_by_path_name_and_beginning(
    write_run: WriteRun, tmp_path: Path, monkeypatch
) -> None:
    for name in ("20260101-sft-tiny-ab12", "20260102-sft-tiny-cd34", "other"):
        write_run(name, [started(1)])
    monkeypatch.chdir(tmp_path)
    assert find_run(str(tmp_path / "runs" / "other")).name == "other"
    assert find_run("runs/other") == find_run("other") == find_run("oth")
    assert find_run("20260102").name == "20260102-sft-tiny-cd34"
    with pytest.raises(ModelError, match="2 runs begin with `2026`"):
        find_run("2026")
    for wrong, hint in (("othr", "`other`"), ("cd34", "cd34`"), ("zzz", "runs in `runs`")):
        with pytest.raises(ModelError, match="there is no run") as error:
            find_run(wrong)
        assert hint in error.value.hint
    with pytest.raises(ModelError, match="not a run directory"):
        find_run(str(tmp_path))
    with pytest.raises(ModelError, match="not a run directory") as error:
        find_run(str(tmp_path / "runs"))
    assert "runs/other`" in error.value.hint


def test_the_newest_run_is_the_one_written_to_last(runs: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (runs / "first" / "events.jsonl").touch()
    assert newest_run().name == "first"
    with pytest.raises(ModelError, match="no runs"):
        newest_run(tmp_path / "nowhere")
