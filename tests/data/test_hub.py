"""Data sets of the hub: from a cache laid out as huggingface_hub lays it out, and clear words when
unreachable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data import read_records
from chuk_lib.data.hub import fetch
from chuk_lib.errors import DataError

CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train_sft
    path: parts/a-*
  - split: test_sft
    path: [parts/b-0.jsonl, parts/b-1.jsonl]
- config_name: socratic
  data_files: s.jsonl
---
# Sums
"""


def cached(cache: Path, *names: str, card: str = "") -> Path:
    """A cached data set `someone/sums` with these files."""
    repo = cache / "datasets--someone--sums"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    for name in names:
        path = repo / "snapshots" / ("a" * 40) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(card if name == "README.md" else '{"text": "a"}\n')
    return cache


def found(cache: Path, source: str, split: str = "train") -> list[str]:
    return [path.as_posix().partition("a" * 40 + "/")[2] for path in fetch(source, split, cache)]


def test_splits_of_a_cached_data_set(tmp_path: Path) -> None:
    cache = cached(
        tmp_path,
        "README.md",
        "data/train-00000-of-00002.jsonl",
        "data/train-00001-of-00002.jsonl",
        "data/validation-00000-of-00001.jsonl",
    )
    assert found(cache, "someone/sums") == [
        "data/train-00000-of-00002.jsonl",
        "data/train-00001-of-00002.jsonl",
    ]
    assert found(cache, "someone/sums", "valid") == ["data/validation-00000-of-00001.jsonl"]
    assert [
        record.columns
        for path in fetch("someone/sums", "train", cache)
        for record in read_records(path)
    ] == [
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


def test_the_card_says_which_files_are_which_split(tmp_path: Path) -> None:
    parts = ("parts/a-0.jsonl", "parts/a-1.jsonl", "parts/b-0.jsonl", "parts/b-1.jsonl", "s.jsonl")
    cache = cached(tmp_path, "README.md", *parts, card=CARD)
    for source in ("someone/sums:main", "someone/sums/main"):
        assert found(cache, source, "train_sft") == ["parts/a-0.jsonl", "parts/a-1.jsonl"]
        assert found(cache, source, "test_sft") == ["parts/b-0.jsonl", "parts/b-1.jsonl"]
    assert found(cache, "someone/sums:socratic") == ["s.jsonl"]
    with pytest.raises(DataError, match="has no train file") as caught:
        fetch("someone/sums:main", "train", cache)
    assert "someone/sums:main#train_sft, someone/sums:main#test_sft" in caught.value.hint
    with pytest.raises(DataError, match="several configurations: main, socratic"):
        fetch("someone/sums", "train", cache)
    default = CARD.replace("- config_name: main", "- config_name: main\n  default: true")
    cache = cached(tmp_path / "other", "README.md", *parts, card=default)
    assert found(cache, "someone/sums", "train_sft") == ["parts/a-0.jsonl", "parts/a-1.jsonl"]


@pytest.mark.parametrize(
    "card", ["", "---\nconfigs: [3]\n---", "---\n{", "---\nconfigs: 7\n---", "no head"]
)
def test_cards_that_say_nothing(tmp_path: Path, card: str) -> None:
    cache = cached(tmp_path, "README.md", "data/train.jsonl", card=card)
    assert found(cache, "someone/sums") == ["data/train.jsonl"]


def test_a_command_reads_a_split_of_a_configuration(run_chuk: Any, tmp_path: Path) -> None:
    cached(tmp_path / "hub", "README.md", "parts/a-0.jsonl", "parts/b-0.jsonl", card=CARD)
    environment = {
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    for words in (["someone/sums:main#test_sft"], ["someone/sums:main", "--split", "test_sft"]):
        done = run_chuk("data", "stats", *words, "--quiet", env=environment)
        assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_unreachable_data_sets_are_explained(run_chuk: Any, parity: Path, tmp_path: Path) -> None:
    model = parity / "models" / "llama-tiny"
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = run_chuk("data", "preview", "--data", "someone/none", "--model", model, env=environment)
    assert done.returncode == 1
    assert "`someone/none` is not here, and the hub cannot be reached" in done.stderr
    assert "hf download --repo-type dataset someone/none" in done.stderr


def test_a_path_under_a_folder_is_never_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").mkdir()
    with pytest.raises(DataError, match="`data/trian` does not exist") as caught:
        read_records("data/trian")
    assert "did you mean `data/train`?" in caught.value.hint
