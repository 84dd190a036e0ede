"""Data sets of the hub: from a cache laid out as huggingface_hub lays it out, and clear words when unreachable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data import read_records
from chuk_lib.data.hub import fetch
from chuk_lib.errors import DataError


def cached(cache: Path, *names: str) -> Path:
    """A cached data set `someone/sums` with these files."""
    repo = cache / "datasets--someone--sums"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    for name in names:
        path = repo / "snapshots" / ("a" * 40) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}\n')
    return cache


def found(cache: Path, source: str, split: str = "train") -> list[str]:
    return [path.as_posix().partition("a" * 40 + "/")[2] for path in fetch(source, split, cache)]


def test_splits_of_a_cached_data_set(tmp_path: Path) -> None:
    cache = cached(tmp_path, "README.md", "data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl",
                   "data/validation-00000-of-00001.jsonl")  # fmt: skip
    assert found(cache, "someone/sums") == ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]
    assert found(cache, "someone/sums", "valid") == ["data/validation-00000-of-00001.jsonl"]
    assert [record.columns for path in fetch("someone/sums", "train", cache) for record in read_records(path)] == [
        {"text": "a"},
        {"text": "a"},
    ]


def test_configurations(tmp_path: Path) -> None:
    cache = cached(tmp_path, "main/train.jsonl", "socratic/train.jsonl")
    assert found(cache, "someone/sums") == ["main/train.jsonl"]
    assert found(cache, "someone/sums/socratic") == ["socratic/train.jsonl"]
    cache = cached(tmp_path / "other", "en/train.jsonl", "de/train.jsonl")
    with pytest.raises(DataError, match="several configurations: de, en") as caught:
        fetch("someone/sums", "train", cache)
    assert caught.value.hint == "name one: someone/sums:de"


def test_unreachable_data_sets_are_explained(run_chuk: Any, parity: Path, tmp_path: Path) -> None:
    model = parity / "models" / "llama-tiny"
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = run_chuk("data", "preview", "--data", "someone/none", "--model", model, env=environment)
    assert done.returncode == 1
    assert "`someone/none` is not here, and the hub cannot be reached" in done.stderr
    assert "hf download --repo-type dataset someone/none" in done.stderr


def test_a_path_under_a_folder_is_never_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").mkdir()
    with pytest.raises(DataError, match="`data/trian` does not exist") as caught:
        read_records("data/trian")
    assert "did you mean `data/train`?" in caught.value.hint
