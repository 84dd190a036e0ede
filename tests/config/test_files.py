"""The settings files that come with chuk: every one is read, and does what its folder says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from chuk_cli.settings import resolve_settings
from chuk_lib.config import files
from chuk_lib.errors import ConfigError
from chuk_lib.training.config import refuse_idle_settings
from chuk_lib.training.pipeline.config import make_pipeline
from chuk_lib.training.pipeline.file import read_pipeline
from chuk_lib.training.recipes import config_class
from tests.conftest import ROOT, RunChuk

NAMES = [item.name for item in files.shipped()]


def test_all_files_are_found() -> None:
    assert len(NAMES) >= 12
    assert sorted(NAMES) == sorted(
        path.relative_to(ROOT / "training_config").as_posix()
        for path in (ROOT / "training_config").rglob("*.y*ml")
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_right(name: str) -> None:
    item = next(item for item in files.shipped() if item.name == name)
    told: list[str] = []
    algorithm = files.algorithm_of(item.path)
    if algorithm == "pipeline":
        assert make_pipeline(*read_pipeline(item.path)).stages
        return
    settings = resolve_settings(config_class(algorithm), [item.path], warn=told.append)
    refuse_idle_settings(settings.value)
    assert len(told) == name.startswith("legacy/")
    assert len(item.about) > 30
    assert len([origin for origin in settings.origins.values() if origin != "default"]) >= 4
    text = item.path.read_text(encoding="utf-8")
    assert text.isascii() or "×" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("tiny/")])
def test_tiny_files_train_in_seconds(
    name: str, run_chuk: RunChuk, tiny_model_dir: Path, tmp_path: Path
) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text(
        "".join(f'{{"prompt": "{n}+1=", "completion": "{n + 1}"}}\n' for n in range(200))
    )
    args = [
        "--config",
        ROOT / "training_config" / name,
        "-m",
        tiny_model_dir,
        "-d",
        data,
        "-o",
        "run",
        "-q",
    ]
    done = run_chuk("train", "sft", *args)
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    assert (tmp_path / "run" / "latest").read_text() == "step_000020\n"


def test_the_wheel_takes_every_file_along() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]
    folder = ROOT / "training_config"
    patterns = [
        text.removeprefix("config/shipped/") for text in settings["package-data"]["chuk_lib"]
    ]
    taken = {
        path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)
    }
    assert taken == {item.name for item in files.shipped()}
    assert files.FOLDER.resolve() == folder
    assert not any(
        name.startswith("training_config") for name in settings["packages"]["find"]["include"]
    )


def test_a_name_is_a_file_or_one_that_comes_with_chuk(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("seed: 1\n")
    assert files.find(str(mine)) == mine
    assert files.find("sft-lora") == files.find("sft-lora.yaml")
    with pytest.raises(ConfigError) as caught:
        files.find("sft-lor")
    assert "`sft-lora`" in caught.value.hint


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    path = files.write(tmp_path / "new" / "a.yaml", "seed: 1\n")
    with pytest.raises(ConfigError):
        files.write(path, "seed: 2\n")
    assert path.read_text() == "seed: 1\n"
    assert files.write(path, "seed: 2\n", overwrite=True).read_text() == "seed: 2\n"
    with pytest.raises(ConfigError, match="cannot write"):
        files.write(path / "below.yaml", "seed: 1\n")
    assert [entry.name for entry in path.parent.iterdir()] == ["a.yaml"]
