"""Reading: every kind of source gives the same records, and every complaint names file and line."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from chuk_lib.data import has_split, read_records
from chuk_lib.errors import DataError

ROWS = [{"text": "one"}, {"text": "zwei, ü"}, {"text": "three\nlines"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def columns(source: Any, split: str = "train") -> list[dict[str, Any]]:
    return [record.columns for record in read_records(source, split)]


def failure(source: Any, split: str = "train") -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_records(source, split))
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", JSONL),
        ("a.jsonl", "\ufeff" + JSONL),
        ("a.jsonl", JSONL.replace("\n", "\r\n")),
        ("a.jsonl", JSONL.replace("\n", "\n\n")),
        ("a.ndjson", JSONL),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", json.dumps({"version": 1, "data": ROWS})),
        ("a.json", json.dumps({"rows": ROWS})),
        ("a.json", JSONL),
        ("a.csv", 'text\none\n"zwei, ü"\n"three\nlines"\n'),
        ("a.tsv", 'text\none\nzwei, ü\n"three\nlines"\n'),
    ],
)
def test_text_files_give_the_same_records(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    assert columns(path) == ROWS
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert columns(str(packed)) == ROWS


def test_lines_are_the_file_s(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"}\n')
    assert [str(record.source) for record in read_records(path)] == [
        f"`{path}` line 1",
        f"`{path}` line 3",
    ]
    path = tmp_path / "a.csv"
    path.write_text('text\n"two\nlines"\nb\n')
    assert [record.source.line for record in read_records(path)] == [3, 4]
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}]')
    assert str(next(read_records(path)).source) == f"`{path}` row 1"


def test_text_files_give_a_row_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo \n")
    assert columns(tmp_path / "a.txt") == [{"text": "one"}, {"text": "two "}]


def test_parquet_loses_the_nulls_that_arrow_fills_in(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "tools": [{"name": "f", "x": 1}]},
        {"text": None, "tools": [{"name": "g", "y": 2}]},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert columns(tmp_path / "a.parquet") == rows


def test_stdin_is_jsonl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(JSONL.encode())))
    assert columns("-") == ROWS
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert "stdin holds no records" in str(failure("-"))


def test_rows_and_records_in_memory() -> None:
    records = list(read_records(ROWS))
    assert [record.columns for record in records] == ROWS
    assert str(records[1].source) == "`rows` row 2"
    assert list(read_records(records)) == records
    assert "row 1 is text" in str(failure(["a"]))
    assert "no rows" in str(failure([]))


@pytest.mark.parametrize(
    "name", ["train.jsonl", "Train.jsonl", "training.jsonl", "train-00000-of-00001.jsonl"]
)
def test_a_folder_s_train_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(JSONL)
    (tmp_path / "dataset_info.json").write_text("{}")
    assert columns(tmp_path) == ROWS


@pytest.mark.parametrize("name", ["valid", "validation", "val", "dev", "eval"])
def test_a_folder_s_validation_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "train.jsonl").write_text(JSONL)
    assert not has_split(tmp_path, "valid")
    (tmp_path / f"{name}.json").write_text(json.dumps(ROWS[:1]))
    assert has_split(tmp_path, "valid")
    assert not has_split(tmp_path, "test")
    assert columns(tmp_path, "valid") == ROWS[:1]


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number, row in enumerate(ROWS):
        (tmp_path / "data" / f"train-{number:05d}-of-00003.jsonl").write_text(json.dumps(row))
    assert columns(tmp_path) == ROWS


def test_files_have_no_other_split(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(JSONL)
    assert has_split(tmp_path / "a.jsonl", "train")
    assert not has_split(tmp_path / "a.jsonl", "valid")
    assert "is one file and has no valid split" in str(failure(tmp_path / "a.jsonl", "valid"))
    error = failure(tmp_path, "trian")
    assert "has no trian file" in error.message
    assert "a split that is there (`#a` behind the path): a" in error.hint


@pytest.mark.parametrize(
    ("name", "text", "says", "hint"),
    [
        ("a.jsonl", "", "`{path}` holds no records", "a record is one row"),
        ("a.jsonl", "\n\n", "`{path}` holds no records", "a record is one row"),
        ("a.json", "[]", "`{path}` holds no records", "a record is one row"),
        ("a.csv", "text\n", "`{path}` holds no records", "a record is one row"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": \n',
            "`{path}` line 2 is not JSON: expecting value at column 9",
            "one JSON object",
        ),
        ("a.jsonl", '{"text": "a"}\n{"te', "`{path}` line 2 is not JSON", "may be cut off"),
        ("a.jsonl", "[\n{}\n]", "`{path}` line 1 is not JSON", "name the file `.json`"),
        (
            "a.jsonl",
            '{"text": "a"}\n[1]\n',
            "`{path}` line 2 is a list, not an object",
            "must be an object",
        ),
        ("a.jsonl", '"a"\n', "`{path}` line 1 is text, not an object", "must be an object"),
        (
            "a.json",
            '[{"text": "a"}, 3]',
            "`{path}` row 2 is a number, not an object",
            "must be an object",
        ),
        (
            "a.json",
            '[{"text": "a"},\n{"text" "b"}]',
            "`{path}` line 2 column 9 is not JSON",
            "array of rows",
        ),
        ("a.json", '"a"', "`{path}` holds text, not rows", "array of rows"),
        (
            "a.json",
            '{"text": ["a", "b"]}',
            "`{path}` holds an object with text, not rows",
            "under `data`",
        ),
        (
            "a.csv",
            "a,b\n1,2\n3\n",
            "`{path}` line 3 has 1 fields, the header has 2",
            "quote fields",
        ),
        (
            "a.csv",
            'a,b\n1,"2\n',
            "`{path}` line 2 is not CSV: a quote opens there and is not closed",
            "quotes",
        ),
        ("a.xml", "<a/>", "`{path}` has no suffix that says what it holds", ".parquet"),
        ("a.parquet", "PAR1", "`{path}` is not readable as Parquet", "again"),
        ("a.jsonl.gz", "not gzip", "`{path}` cannot be read", "check the file"),
    ],
)
def test_broken_files_are_explained(
    tmp_path: Path, name: str, text: str, says: str, hint: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    error = failure(path)
    assert says.format(path=path) in error.message
    assert hint in error.hint


def test_other_encodings_are_named_by_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    error = failure(path)
    assert error.message == f"`{path}` line 2 is not UTF-8 (byte 0xe9 at position 14)"
    assert "iconv" in error.hint


def test_a_torn_gzip_file_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(JSONL.encode() * 100)[:60])
    assert f"`{path}` cannot be read" in str(failure(path))


def test_splits_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "train_sft-00000-of-00001.jsonl").write_text(JSONL)
    (tmp_path / "test_sft.jsonl").write_text(JSONL.splitlines()[0])
    assert columns(tmp_path, "train_sft") == columns(f"{tmp_path}#train_sft") == ROWS
    assert columns(f"{tmp_path}#test_sft") == ROWS[:1]
    assert has_split(f"{tmp_path}#train_sft", "train")
    assert not has_split(f"{tmp_path}#train_sft", "valid")
    error = failure(tmp_path)
    assert "has no train file" in error.message
    assert "`#test_sft` behind the path" in error.hint
    assert "train_sft" in error.hint
    (tmp_path / "a#b.jsonl").write_text(JSONL)
    assert columns(tmp_path / "a#b.jsonl") == ROWS


def test_links_and_folders_say_what_they_hide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").symlink_to("nowhere.jsonl")
    assert "`a.jsonl` is a link to `nowhere.jsonl`, which does not exist" in str(failure("a.jsonl"))
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert "hides the data set of this name on the hub" in failure("owner/name").hint


def test_missing_files_suggest_the_near_one(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(JSONL)
    error = failure(tmp_path / "trian.jsonl")
    assert error.message == f"`{tmp_path / 'trian.jsonl'}` does not exist"
    assert error.hint == f"did you mean `{tmp_path / 'train.jsonl'}`?"
    assert "folder" in failure(tmp_path / "no" / "a.jsonl").hint


def test_a_missing_file_is_told_before_the_first_record(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_records(tmp_path / "none.jsonl")


def test_folders_without_or_with_too_many_files(tmp_path: Path) -> None:
    assert "no data file" in str(failure(tmp_path))
    (tmp_path / "rows.jsonl").write_text(JSONL)
    error = failure(tmp_path)
    assert error.message == f"`{tmp_path}` has no train file (found: rows.jsonl)"
    assert "name it train.jsonl" in error.hint
    (tmp_path / "train.jsonl").write_text(JSONL)
    (tmp_path / "train.json").write_text(JSONL)
    assert "several train files: train.json, train.jsonl" in str(failure(tmp_path))


def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "nowhere")
    assert "does not exist" in str(failure(tmp_path / "a.jsonl"))
