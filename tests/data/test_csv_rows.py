"""Separated fields as spreadsheets of all countries write them, and quotes that are never
closed."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pyarrow
import pytest

from chuk_lib.data import read_records
from chuk_lib.errors import DataError

ROW = {"prompt": "1, 2; 3", "completion": "4"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'prompt;completion\n"1, 2; 3";4\n'),
        ("a.csv", '"prompt";"completion"\r\n"1, 2; 3";"4"\r\n'),
        ("a.csv", 'prompt\tcompletion\n"1, 2; 3"\t4\n'),
        ("a.csv", "prompt|completion\n1, 2; 3|4\n"),
        ("a.csv", 'sep=,\nprompt,completion\n"1, 2; 3",4\n'),
        ("a.csv", 'SEP=;\r\nprompt;completion\r\n"1, 2; 3";4\r\n'),
        ("a.csv", 'prompt, completion\n"1, 2; 3", 4\n'),
        ("a.csv", 'prompt , completion\n"1, 2; 3", "4"\n'),
        ("a.tsv", "prompt\tcompletion\n1, 2; 3\t4\n"),
        ("a.tsv", 'prompt,completion\n"1, 2; 3",4\n'),
    ],
)
def test_separators(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8", newline="")
    assert [record.columns for record in read_records(tmp_path / name)] == [ROW]


def test_spaces_stay_where_the_header_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion\n1+1=, 2\n")
    assert next(read_records(tmp_path / "a.csv")).columns == {"prompt": "1+1=", "completion": " 2"}


def test_lines_count_from_the_line_that_names_the_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('sep=;\na;b\n"x\ny";z\n1;2\n')
    assert [record.source.line for record in read_records(tmp_path / "a.csv")] == [4, 5]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            'a,b\n1,2\n"3,4\n5,6\n7,8\n',
            "line 3 is not CSV: a quote opens there and is not closed before the file ends",
        ),
        (
            'a,b\n1,2\n"3,4\n5,6\n"7",8\n',
            "line 3 is not CSV: ',' expected after '\"' (line 5, in the field",
        ),
        ('a,b\n"1\n2",3\n"4""5,6\n', "line 4 is not CSV: a quote opens there"),
        ('a,b\n1,"x"y\n', "line 2 is not CSV: ',' expected"),
    ],
)
def test_the_line_where_a_quote_opens(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        list(read_records(tmp_path / "a.csv"))
    assert says in caught.value.message


def test_an_open_quote_before_much_more(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.csv.gz", "wt", compresslevel=1) as file:
        file.write('a,b\n"open,1\n' + "some words and, a comma\n" * 1_000_000)
    with pytest.raises(
        DataError, match="line 2 is not CSV: a quote opens there and is not closed before 16 MiB"
    ):
        list(read_records(tmp_path / "a.csv.gz"))


def test_packed_files(tmp_path: Path) -> None:
    line = b'{"text": "a"}\n'
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(line))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(line))
    (tmp_path / "a.jsonl.zst").write_bytes(pyarrow.compress(line, codec="zstd", asbytes=True))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"[" + line + b"]"))
    for name in ("a.jsonl.bz2", "a.jsonl.xz", "a.jsonl.zst", "a.json.gz"):
        assert [record.columns for record in read_records(tmp_path / name)] == [{"text": "a"}]
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) - 8])
        with pytest.raises(DataError, match="cannot be read") as caught:
            list(read_records(tmp_path / name))
        assert "cut off" in caught.value.hint


def test_packed_twice(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    with pytest.raises(DataError, match="compressed twice"):
        list(read_records(tmp_path / "a.parquet.gz"))


@pytest.mark.parametrize("text", [b'[{"text": "', b'{"text": "', b'[{"text": "a"}, {"text": "'])
def test_a_bomb_of_one_row_is_refused_in_little_memory(tmp_path: Path, text: bytes) -> None:
    with gzip.open(tmp_path / "a.json.gz", "wb", compresslevel=1) as file:
        file.write(text)
        for _ in range(200):
            file.write(b"x" * 2**20)
    with pytest.raises(DataError, match="longer than 64 MiB"):
        list(read_records(tmp_path / "a.json.gz"))
