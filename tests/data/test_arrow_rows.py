"""Parquet, Arrow and Feather files, and folders that `datasets` saved: types that Python lacks,
sizes, names."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from chuk_lib.data import has_split, read_records
from chuk_lib.errors import DataError
from tests.data.conftest import Chuk

ROWS = [{"prompt": f"{number}?", "completion": f"{number}"} for number in range(2500)]


def columns(source: Path, split: str = "train") -> list[dict[str, Any]]:
    return [record.columns for record in read_records(source, split)]


def write_stream(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def saved(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A folder as `Dataset.save_to_disk` lays it out, in two shards."""
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        write_stream(pa.Table.from_pylist(part), folder / f"data-{number:05d}-of-00002.arrow")
    names = [{"filename": f"data-{number:05d}-of-00002.arrow"} for number in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_split": "train"}))
    (folder / "dataset_info.json").write_text("{}")


def test_arrow_files_streams_and_feather(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    write_stream(table, tmp_path / "stream.arrow")
    with (
        pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    for name in ("stream.arrow", "file.arrow", "a.feather"):
        assert columns(tmp_path / name) == ROWS
    last = list(read_records(tmp_path / "file.arrow"))[-1]
    assert str(last.source) == f"`{tmp_path / 'file.arrow'}` row 2500"


def test_a_damaged_arrow_file_is_explained(tmp_path: Path) -> None:
    write_stream(pa.Table.from_pylist(ROWS), tmp_path / "a.arrow")
    whole = (tmp_path / "a.arrow").read_bytes()
    for content in (whole[:40], whole[: len(whole) // 2], b"ARROW1", b"", b"FEA1 and more"):
        (tmp_path / "a.arrow").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.arrow"):
            columns(tmp_path / "a.arrow")


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    saved(tmp_path / "one", ROWS)
    assert columns(tmp_path / "one") == ROWS
    assert has_split(tmp_path / "one", "train")
    assert not has_split(tmp_path / "one", "valid")
    saved(tmp_path / "all" / "train_sft", ROWS)
    saved(tmp_path / "all" / "validation", ROWS[:4])
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train_sft", "validation"]}')
    assert columns(tmp_path / "all", "valid") == ROWS[:4]
    assert columns(tmp_path / "all", "train_sft") == ROWS
    with pytest.raises(DataError, match="has no train file") as caught:
        columns(tmp_path / "all")
    assert "train_sft, validation" in caught.value.hint


def test_nanoseconds_are_kept_as_text_where_they_do_not_fit(tmp_path: Path) -> None:
    times = pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns"))
    whole = pa.array([1_700_000_000_123_456_000, None], pa.timestamp("ns"))
    inside = pa.array(
        [[{"at": 1_700_000_000_123_456_789}], []], pa.list_(pa.struct([("at", pa.timestamp("ns"))]))
    )
    table = pa.table({"text": ["a", "b"], "made": times, "whole": whole, "inside": inside})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    first, second = columns(tmp_path / "a.parquet")
    assert first["made"] == "2023-11-14 22:13:20.123456789"
    assert first["whole"] == datetime.datetime(2023, 11, 14, 22, 13, 20, 123456)
    assert first["inside"] == [{"at": "2023-11-14 22:13:20.123456789"}]
    assert (second["made"], second["whole"], second["inside"]) == (None, None, [])


def test_maps_structs_of_lists_and_the_index_of_pandas(tmp_path: Path) -> None:
    maps = pa.array([[("a", 1), ("b", None)]], pa.map_(pa.string(), pa.int64()))
    turns = [{"role": ["user", "assistant"], "content": ["hi", "ho"]}]
    table = pa.table({"messages": turns, "map": maps, "__index_level_0__": [7]})
    pyarrow.parquet.write_table(table, tmp_path / "plain.parquet")
    assert "__index_level_0__" in columns(tmp_path / "plain.parquet")[0]
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({"pandas": "{}"}), tmp_path / "a.parquet"
    )
    assert columns(tmp_path / "a.parquet") == [
        {
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
            "map": {"a": 1},
        }
    ]


def test_bytes_stop_only_what_writes_them(chuk: Chuk, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "image": {"bytes": b"\x89PNG"}}]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert chuk("data", "stats", "a.parquet").returncode == 0
    done = chuk("data", "convert", "a.parquet", "--to", "messages")
    assert done.returncode == 1
    assert "`a.parquet` row 1" in done.stderr
    assert "`image` holds bytes" in done.stderr
    done = chuk("data", "convert", "a.parquet", "--to", "prompt_completion", "--drop", "image")
    assert json.loads(done.stdout) == {"prompt": "a", "completion": "b"}


def test_large_whole_numbers_reach_parquet(chuk: Chuk, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        f'{{"text": "a", "id": {2**64 - 1}}}\n{{"text": "b", "id": 3}}\n'
    )
    assert chuk("data", "convert", "a.jsonl", "-o", "a.parquet").returncode == 0
    assert [row["id"] for row in columns(tmp_path / "a.parquet")] == [2**64 - 1, 3]


@pytest.mark.parametrize("group", [10, 5000])
def test_rows_are_read_in_small_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    rows = [{"text": "x" * 200_000 + str(number)} for number in range(100)]
    pyarrow.parquet.write_table(
        pa.Table.from_pylist(rows),
        tmp_path / "a.parquet",
        row_group_size=group,
        use_dictionary=False,
    )
    before = pa.default_memory_pool().max_memory()
    assert [row["text"][200_000:] for row in columns(tmp_path / "a.parquet")] == [
        str(n) for n in range(100)
    ]
    assert pa.total_allocated_bytes() < 8 * 2**20
    assert pa.default_memory_pool().max_memory() <= max(before, 2**25)


def test_rows_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    small, large = {"text": "a"}, {"text": "x" * (65 * 2**20)}
    for name, rows in (("one", [large]), ("many", [*[small] * 3, large])):
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match="longer than 64 MiB"):
            columns(tmp_path / f"{name}.parquet")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="names the column `text` twice"):
        columns(tmp_path / "a.parquet")
