"""Streamed JSON documents: the rows, the errors and the places of a decoder that reads the document
as a whole."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data import json_documents, read_records
from chuk_lib.errors import DataError

ROWS = [
    {
        "text": 'a "quoted" \\ ü 👋 \u2028\u0085\x7f',
        "n": number,
        "x": [1.5e-3, -2, None, True, {"k": "]}"}],
    }
    for number in range(9)
]
DOCUMENTS = [
    json.dumps(ROWS, ensure_ascii=False),
    json.dumps(ROWS, indent=3),
    json.dumps(
        {"version": [1, {"a": 2}], "data": ROWS, "end": "x"}, indent="\t", ensure_ascii=False
    ),
    "\r\n [\r\n" + ",\r\n".join(json.dumps(row) for row in ROWS) + "\r\n]\r\n",
    json.dumps([*ROWS, 12345678901234567890, "text", -0.5e10, None]),
]
NOISE = [
    "",
    "{",
    "}",
    "[",
    "]",
    '"',
    ",",
    ":",
    "\n",
    "\\",
    "\\ud83d",
    "tru",
    "NaN",
    "1",
    "é",
    "\t",
    "\x00",
]


def taken(path: Path) -> tuple[list[Any], str]:
    """Rows and what was wrong: broken rows as they come, and the end."""
    rows: list[Any] = []
    try:
        for record in read_records(path, broken=lambda place, error: rows.append(error.message)):
            rows.append(record.columns)
    except DataError as error:
        return rows, error.message
    return rows, ""


@pytest.mark.parametrize("piece", [1, 7, 64, 4096])
@pytest.mark.parametrize("document", range(len(DOCUMENTS)))
def test_pieces_of_any_size_give_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, document: int
) -> None:
    monkeypatch.setattr(json_documents, "_PIECE", piece)
    path = tmp_path / "a.json"
    path.write_text(DOCUMENTS[document], encoding="utf-8", newline="")
    rows, _ = taken(path)
    assert [row for row in rows if isinstance(row, dict)] == ROWS
    assert len(rows) == len(ROWS) + 4 * (document == 4)


@pytest.mark.parametrize("seed", range(300))
def test_errors_have_the_place_that_the_decoder_of_a_whole_document_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(json_documents, "_PIECE", dice.choice([1, 5, 50, 5000]))
    text = dice.choice(DOCUMENTS)
    at = dice.randrange(len(text))
    text = (
        text[:at]
        + dice.choice(NOISE)
        + (text[at + dice.randrange(3) :] if dice.random() < 0.7 else "")
    )
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        json.loads(text)
        wanted = None
    except json.JSONDecodeError as error:
        wanted = f"line {error.lineno} column {error.colno} is not JSON: {error.msg}"
    said = " ".join([item for item in taken(path)[0] if isinstance(item, str)])
    if wanted is None:
        assert "is not JSON" not in said
    else:
        assert wanted in said, (text[max(0, at - 20) : at + 20], said)


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_lines_of_json_may_hold_what_python_takes_for_line_ends(
    tmp_path: Path, separator: str
) -> None:
    text = (
        f'{{"text": "a{separator}b"}}\n'
        if separator > "\x1f"
        else f'{{"text": {json.dumps(separator)}}}\n'
    )
    (tmp_path / "a.json").write_text(text * 2, encoding="utf-8", newline="")
    (tmp_path / "a.jsonl").write_text(text * 2, encoding="utf-8", newline="")
    assert taken(tmp_path / "a.json") == taken(tmp_path / "a.jsonl")
    assert len(taken(tmp_path / "a.json")[0]) == 2


def test_json_lines_by_a_wrong_name_have_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n{"data": [1], "a": 1}\n{"a": 2}\n{"a": \n')
    rows, _ = taken(path)
    assert rows[:2] == [{"data": [1], "a": 1}, {"a": 2}]
    assert rows[2] == f"`{path}` line 4 is not JSON: expecting value at column 6"


def test_a_single_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n "messages": [{"role": "user", "content": "a"}]\n}\n')
    assert taken(tmp_path / "a.json")[0] == [{"messages": [{"role": "user", "content": "a"}]}]


def _write(path: Path, rows: int) -> None:
    row = json.dumps(
        {"instruction": "why is that so? " * 6, "input": "", "output": "because it is 👋 " * 30},
        indent=1,
    )
    with path.open("w", encoding="utf-8") as file:
        file.write("[" + f"{row},\n" * (rows - 1) + f"{row}]")


def test_time_grows_with_the_rows(tmp_path: Path) -> None:
    seconds = {}
    for rows in (4000, 32_000):
        _write(tmp_path / "a.json", rows)
        began = time.process_time()
        assert sum(1 for _ in read_records(tmp_path / "a.json")) == rows
        seconds[rows] = time.process_time() - began
    assert seconds[32_000] < 24 * seconds[4000]
    assert (tmp_path / "a.json").stat().st_size / 1e6 / seconds[
        32_000
    ] > 20  # MB/s; 200 and more on a free machine


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_does_not_grow_with_the_document(tmp_path: Path) -> None:
    code = (
        "from chuk_lib.data import read_records\nprint(sum(1 for _ in read_records('a.json')),"
        " open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    peaks = {}
    for rows in (2000, 60_000):
        _write(tmp_path / "a.json", rows)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
        )
        counted, peak = done.stdout.split()
        assert int(counted) == rows
        peaks[rows] = int(peak) * 1024
    assert peaks[60_000] - peaks[2000] < 8 * 2**20  # the larger document has 57 MB
