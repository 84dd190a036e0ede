"""`chuk model ls` and `rm`: what is here, what it takes, and never removing anything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.experts.config import ExpertConfig
from chuk_lib.experts.registry import create_expert
from chuk_lib.models.store import list_models, plan_removal, remove
from tests.conftest import RunChuk
from tests.models.parity_models import LLAMA, PEFT_ADAPTER


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model, an adapter, a run, and letters."""
    folder = tmp_path / "place"
    shutil.copytree(LLAMA, folder / "model", copy_function=shutil.copyfile)
    shutil.copytree(PEFT_ADAPTER, folder / "adapter", copy_function=shutil.copyfile)
    shutil.copytree(
        LLAMA, folder / "run" / "checkpoints" / "step_000001", copy_function=shutil.copyfile
    )
    (folder / "letters").mkdir()
    (folder / "letters" / "one.txt").write_text("dear")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one model in two revisions, which share all but a config."""
    folder = tmp_path / "hub"
    repository = folder / "models--owner--tiny"
    (repository / "blobs").mkdir(parents=True)
    for commit, ref in (("aaa", "main"), ("bbb", "old")):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for path in LLAMA.iterdir():
            own = f"{commit}-{path.name}" if path.name == "config.json" else path.name
            blob = repository / "blobs" / own
            shutil.copyfile(path, blob)
            (snapshot / path.name).symlink_to(blob)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return repository


def test_experts_are_named(tmp_path: Path, run_chuk: RunChuk) -> None:
    expert = create_expert("gru", ExpertConfig(name="small", obs_dim=4, action_dim=2), seed=0)
    step = tmp_path / "run" / "checkpoints" / "step_000001"
    step.mkdir(parents=True)
    expert.save(step)
    (tmp_path / "run" / "latest").write_text(step.name)
    shutil.copytree(step, tmp_path / "alone")
    found = list_models([tmp_path])
    assert [(one.kind, one.parameters, one.note) for one in found] == [
        ("expert", sum(one.size for one in expert.weights.values()), "")
    ] * 2
    told = run_chuk("model", "info", "run")
    assert (told.returncode, "is an expert, no language model" in told.stderr) == (1, True)
    assert "chuk experts show" in told.stderr


def test_models_adapters_and_runs_are_listed_with_their_sizes(place: Path, cache: Path) -> None:
    found = {one.kind: one for one in list_models([place], cache=True)}
    assert found.keys() == {"model", "adapter", "run", "cache"}
    assert found["model"].n_bytes == sum(path.stat().st_size for path in LLAMA.iterdir())
    assert found["model"].parameters == found["cache"].parameters == 115008
    assert found["cache"].name == "owner/tiny"
    assert found["cache"].n_bytes == found["model"].n_bytes + (LLAMA / "config.json").stat().st_size
    sizes = [one.n_bytes for one in list_models([place], sort="size")]
    assert sizes == sorted(sizes, reverse=True)
    (place / "model" / "model.safetensors").write_bytes(b"cut")
    assert "not a safetensors file" in next(
        one.note for one in list_models([place]) if one.kind == "model"
    )
    with pytest.raises(ConfigError, match="cannot sort by"):
        list_models([place], sort="weight")
    with pytest.raises(ConfigError, match="no folder at"):
        list_models([place / "gone"])


def test_a_revision_takes_only_what_no_other_needs(cache: Path) -> None:
    found = plan_removal("owner/tiny", "old")
    assert found.n_bytes == (LLAMA / "config.json").stat().st_size
    remove(found)
    assert not (cache / "snapshots" / "bbb").exists()
    assert not (cache / "refs" / "old").exists()
    assert not (cache / "blobs" / "bbb-config.json").exists()
    assert all(path.exists() for path in (cache / "snapshots" / "aaa").iterdir())
    remove(plan_removal("owner/tiny", "main"))
    assert not cache.exists()
    with pytest.raises(ModelError, match="neither a folder nor in the hub's cache"):
        plan_removal("owner/tiny")


def test_whole_models_go_and_nothing_else_does(
    place: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    refused = {
        "letters": "is no model",
        "run": "is no model",
        "run/checkpoints": "is no model",
        ".": "is no model",
        "../hub/models--owner--tiny/snapshots/aaa": "inside the hub's cache",
        "../../../etc": "neither a folder",
        "owner/other": "neither a folder",
        "..": "is no model",
    }
    (place / "model" / "notes").mkdir()
    refused["model"] = "the folder `notes` in it"
    (place / "link").symlink_to(place / "adapter")
    refused["link"] = "is a link"
    for name, message in refused.items():
        with pytest.raises(ModelError, match=message):
            plan_removal(name)
    monkeypatch.chdir(place / "adapter")
    with pytest.raises(ModelError, match="more than a model"):
        plan_removal(".")
    monkeypatch.chdir(place)
    (place / "model" / "notes").rmdir()
    for name in ("model", "adapter", "owner/tiny"):
        remove(plan_removal(name))
    assert sorted(path.name for path in place.iterdir()) == ["letters", "link", "run"]
    assert not cache.exists()


def test_commands_list_ask_and_remove(place: Path, run_chuk: RunChuk, tmp_path: Path) -> None:
    done = run_chuk("model", "ls", place, "-q")
    assert sorted(Path(line).name for line in done.stdout.split()) == ["adapter", "model", "run"]
    assert {one["kind"] for one in json.loads(run_chuk("model", "ls", place, "--json").stdout)} == {
        "adapter",
        "model",
        "run",
    }
    assert "no models here" in run_chuk("model", "ls", place / "letters").stdout
    done = run_chuk("model", "rm", place / "model")
    assert (done.returncode, "add `--yes`" in done.stderr) == (2, True)
    done = run_chuk("model", "rm", place / "model", "--dry-run", "-q")
    assert int(done.stdout) == sum(path.stat().st_size for path in LLAMA.iterdir())
    assert (place / "model").exists()
    done = run_chuk("model", "rm", place / "model", place / "letters", "--yes")
    assert done.returncode == 1
    assert (place / "model").exists(), "one bad name, and nothing goes"
    done = run_chuk("model", "rm", place / "model", "--yes")
    assert (done.returncode, "freed" in done.stdout) == (0, True)
    assert not (place / "model").exists()
