"""Writing: what is written reads back, and a file is whole or not there."""

from __future__ import annotations

import io
import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data import read_records
from chuk_lib.data.writer import open_rows, to_line, write_rows
from chuk_lib.errors import ConfigError, DataError

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": 'a "quote", a comma\nand ü 🎉\r'},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ],
        "score": 1.5,
    },
    {
        "messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}],
        "score": 2.0,
        "more": "x",
    },
]


def read(path: Path) -> list[dict[str, Any]]:
    return [record.columns for record in read_records(path)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_json_reads_back_as_it_was(tmp_path: Path, name: str) -> None:
    assert write_rows(tmp_path / name, ROWS) == 2
    assert read(tmp_path / name) == ROWS


def test_parquet_reads_back_with_columns_that_come_late(tmp_path: Path) -> None:
    rows = [{"n": 1}] * 1500 + [{"n": 2.5, "late": {"a": [1]}}, {"n": 3, "late": {"b": "x"}}]
    write_rows(tmp_path / "a.parquet", rows)
    found = read(tmp_path / "a.parquet")
    assert found[0] == {"n": 1, "late": None}
    assert found[-2:] == [{"n": 2.5, "late": {"a": [1]}}, {"n": 3, "late": {"b": "x"}}]
    write_rows(tmp_path / "b.parquet", ROWS)
    assert read(tmp_path / "b.parquet") == [{**ROWS[0], "more": None}, ROWS[1]]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_tables_hold_text_and_json(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, ROWS)
    found = read(tmp_path / name)
    assert [json.loads(row["messages"]) for row in found] == [row["messages"] for row in ROWS]
    assert [row["score"] for row in found] == ["1.5", "2.0"]
    assert [row["more"] for row in found] == ["", "x"]


def test_lines_of_text(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.txt", [{"text": "one"}, {"text": "zwei ü"}])
    assert (tmp_path / "a.txt").read_text() == "one\nzwei ü\n"
    with pytest.raises(DataError, match="row 2 is no line of text"):
        write_rows(tmp_path / "b.txt", [{"text": "one"}, {"text": "two\nlines"}])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"a": 1}, {"a": "x"}], "column `a`"),
        ([{"a": 10**30}], "column `a`"),
        ([{"a": {}}], "no child field"),
        ([{"a": [1]}] * 1000 + [{"a": "x"}], "incompatible types"),
    ],
)
def test_parquet_says_what_it_cannot_hold_and_leaves_nothing(
    tmp_path: Path, rows: Any, says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        write_rows(tmp_path / "a.parquet", rows)
    assert ".jsonl" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    def stops() -> Any:
        yield {"n": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(path, stops())
    assert list(tmp_path.iterdir()) == []
    write_rows(path, [{"n": 1}])
    with pytest.raises(ConfigError, match="exists"):
        write_rows(path, [{"n": 2}])
    with pytest.raises(KeyboardInterrupt):
        write_rows(path, stops(), overwrite=True)
    assert read(path) == [{"n": 1}]
    write_rows(path, [{"n": 2}], overwrite=True)
    assert read(path) == [{"n": 2}]
    assert [item.name for item in tmp_path.iterdir()] == ["a.jsonl"]
    assert path.stat().st_mode & 0o444


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").write_text("x")
    cases = {
        "a.docx": "no suffix",
        "a.parquet.gz": "twice",
        "folder.jsonl": "is a folder",
        "file/a.jsonl": "is a file",
    }
    for name, says in cases.items():
        with pytest.raises(ConfigError, match=says):
            write_rows(tmp_path / name, ROWS)
    with pytest.raises(ConfigError, match="standard output"):
        write_rows("-", ROWS)


def test_a_stream_gets_lines_of_utf8() -> None:
    stream = io.BytesIO()
    with open_rows("-", stream=stream) as writer:
        writer.write({"text": "ü"})
    assert stream.getvalue() == '{"text": "ü"}\n'.encode()


def test_values_that_json_does_not_have() -> None:
    row = {"nan": math.nan, "inside": [math.inf, 1], "day": date(2024, 5, 6), "text": "NaN"}
    assert json.loads(to_line(row)) == {
        "nan": None,
        "inside": [None, 1],
        "day": "2024-05-06",
        "text": "NaN",
    }
    with pytest.raises(DataError, match="bytes"):
        to_line({"image": b"x"})
