"""Damaged and hostile files: an explanation with file and place, never a traceback, never a memory
that fills up."""

from __future__ import annotations

import gzip
import io
import json
import random
import resource
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.data.conftest import Chuk

GOOD = b'{"prompt": "2 + 3?", "completion": "5"}\n'


def line(value: bytes) -> bytes:
    """A good row, then one with this value."""
    return GOOD + b'{"prompt": ' + value + b', "completion": "5"}\n'


JSONL: dict[str, tuple[bytes, str]] = {
    "latin": (line(b'"caf\xe9"'), "line 2"),
    "utf16": ("\ufeff{}\n".encode("utf-16-le"), "line 1"),
    "surrogate bytes": (line(b'"\xed\xa0\x80"'), "line 2"),
    "overlong utf8": (line(b'"\xc0\xaf"'), "line 2"),
    "half character": (line(b'"\\ud83d"'), "line 2"),
    "half character as key": (
        GOOD + b'{"\\udc00": 1, "prompt": "a", "completion": "b"}\n',
        "line 2",
    ),
    "cut in a string": (GOOD + b'{"prompt": "2 +', "line 2"),
    "cut in a number": (GOOD + b'{"prompt": 12', "line 2"),
    "cut in a character": (GOOD + '{"prompt": "ü'.encode()[:-1], "line 2"),
    "cut after a key": (GOOD + b'{"prompt":', "line 2"),
    "two rows a line": (GOOD + GOOD.strip() + GOOD, "line 2"),
    "raw null": (line(b'"a\x00b"'), "line 2"),
    "raw tab": (line(b'"a\tb"'), "line 2"),
    "only nulls": (GOOD + b"\x00" * 5000 + b"\n", "line 2"),
    "single quotes": (GOOD + b"{'prompt': 'a'}\n", "line 2"),
    "trailing comma": (GOOD + b'{"prompt": "a",}\n', "line 2"),
    "comment": (b"// rows\n" + GOOD, "line 1"),
    "text": (GOOD + b"hello\n", "line 2"),
    "list": (GOOD + b"[1, 2]\n", "line 2"),
    "number": (GOOD + b"7\n", "line 2"),
    "null": (GOOD + b"null\n", "line 2"),
    "text in quotes": (GOOD + b'"hello"\n', "line 2"),
    "wrong type": (line(b"3"), "line 2"),
    "wrong type null": (line(b"null"), "line 2"),
    "wrong type object": (line(b'{"a": 1}'), "line 2"),
    "messages of numbers": (line(b"[1]"), "line 2"),
    "empty messages": (line(b"[]"), "line 2"),
    "message without role": (line(b'[{"content": "a"}]'), "line 2"),
    "message without content": (line(b'[{"role": "user"}]'), "line 2"),
    "role of a number": (line(b'[{"role": 1, "content": "a"}]'), "line 2"),
    "content of numbers": (line(b'[{"role": "user", "content": [1]}]'), "line 2"),
    "image": (line(b'[{"role": "user", "content": [{"type": "image"}]}]'), "line 2"),
    "deep lists": (line(b"[" * 100_000 + b"]" * 100_000), "line 2"),
    "deep lists cut": (line(b"[" * 100_000), "line 2"),
    "deep objects": (line(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "line 2"),
    "deeper than writers go": (line(b"[" * 400 + b"]" * 400), "line 2"),
    "huge whole number": (line(b"9" * 100_000), "line 2"),
    "huge number": (line(b"1e999999"), "line 2"),
    "not a number": (line(b"NaN"), "line 2"),
    "infinity": (line(b"-Infinity"), "line 2"),
    "other columns": (GOOD + b'{"text": "a"}\n', "line 2"),
    "no columns": (GOOD + b"{}\n", "line 2"),
    "unknown columns": (b'{"a": 1}\n' + GOOD, "line 1"),
    "an array": (b"[\n" + GOOD + b"]\n", "line 1"),
    "a gzip": (gzip.compress(GOOD), "line 1"),
    "a parquet": (b"PAR1" + bytes(range(256)), "line 1"),
    "key twice": (GOOD + b'{"prompt": "a", "completion": "b", "prompt": "c"}\n', "line 2"),
    "key twice inside": (line(b'[{"role": "user", "content": "a", "content": "b"}]'), "line 2"),
    "marks only": (b"\xef\xbb\xbf\xef\xbb\xbf\n" + GOOD, "line 1"),
    "empty": (b"", "no records"),
    "blank": (b"\n \r\n\t\n", "no records"),
    "mark alone": (b"\xef\xbb\xbf", "no records"),
    "carriage returns": (GOOD.replace(b"\n", b"\r") * 2, "line 1"),
}
JSON: dict[str, tuple[bytes, str]] = {
    "cut": (b'[{"prompt": "a", "completion": "b"}, {"pro', "line 1"),
    "no comma": (b"[" + GOOD + b" " + GOOD + b"]", "line 2 column 2"),
    "text": (b"hello", "line 1"),
    "a string": (b'"hello"', "holds text"),
    "a number": (b"12", "holds a number"),
    "no rows": (b'{"version": 1, "items": [1]}', "not rows"),
    "rows of numbers": (b"[" + GOOD + b", 2]", "row 2"),
    "deep": (b"[" * 100_000, "line 1"),
    "deep row": (b'[{"text": ' + b"[" * 500 + b"]" * 500 + b"}]", "row 1"),
    "half character": (b"[" + GOOD + b', {"text": "\\ud800"}]', "row 2"),
    "latin": (b'[{"text": "caf\xe9"}]', "line 1"),
    "huge number": (b'[{"text": ' + b"9" * 10_000 + b"}]", "line 1"),
    "empty array": (b"[]", "no records"),
    "a comma too many": (b"[" + GOOD + b",]", "line 2 column 2"),
    "text behind": (b"[" + GOOD + b"] x", "line 2 column 3"),
    "no colon": (b'{"data" [' + GOOD + b"]}", "line 1 column 9"),
    "data twice": (b'{"data": [' + GOOD + b'], "data": [' + GOOD + b"]}", "twice"),
    "data and rows": (b'{"data": [' + GOOD + b'], "rows": [' + GOOD + b"]}", "`rows`"),
    "key twice": (b"[" + GOOD + b', {"prompt": "a", "prompt": "b", "completion": "c"}]', "row 2"),
    "empty": (b"", "no records"),
    "many names": (json.dumps({f"k{n}": [n] for n in range(9999)}).encode(), "not rows"),
}
CSV: dict[str, tuple[bytes, str]] = {
    "short row": (b"prompt,completion\na,b\nc\n", "line 3"),
    "long row": (b"prompt,completion\na,b\nc,d,e\n", "line 3"),
    "open quote": (b'prompt,completion\na,"b\n', "line 2"),
    "text after a quote": (b'prompt,completion\n"a"b,c\n', "line 2"),
    "latin": (b"prompt,completion\na,caf\xe9\n", "line 2"),
    "carriage return inside": (b"prompt,completion\na\rb,c\n", "line 2"),
    "header twice": (b"prompt,prompt\na,b\n", "line 1"),
    "header only": (b"prompt,completion\n", "no records"),
    "empty": (b"", "no records"),
    "json": (GOOD * 2, "line 1"),
    "open quote over lines": (b'prompt,completion\na,"b\nc,d\ne,f\n', "line 2"),
    "open quote before a quote": (b'prompt,completion\na,"b\n"c",d\n', "line 2"),
    "bars in the rows only": (b"prompt,completion\na|b\n", "line 2"),
    "messages cut": (b'messages\n"[{""role"": "\n', "line 2"),
    "messages deep": (b"messages\n" + b"[" * 100_000 + b"\n", "line 2"),
    "null header": (b"\x00\na\n", "line 2"),
}
PACKED: dict[str, tuple[bytes, str]] = {
    "no gzip": (GOOD, "cannot be read"),
    "cut short": (gzip.compress(GOOD * 500)[:-20], "cannot be read"),
    "cut in the header": (gzip.compress(GOOD)[:6], "cannot be read"),
    "wrong sum": (gzip.compress(GOOD)[:-8] + b"\x00" * 8, "cannot be read"),
    "damaged inside": (
        gzip.compress(GOOD * 500)[:40] + b"\xff" * 40 + gzip.compress(GOOD * 500)[80:],
        "cannot be read",
    ),
    "text behind": (gzip.compress(GOOD) + b"hello", "cannot be read"),
    "broken row": (gzip.compress(GOOD + b"{"), "line 2"),
    "an endless line": (gzip.compress(b" " * (80 * 2**20), 1), "longer than 64 MiB"),
    "empty": (b"", "no records"),
    "empty inside": (gzip.compress(b""), "no records"),
}


def parquet(rows: list[dict[str, Any]] | None = None, **options: Any) -> bytes:
    """A Parquet file."""
    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist(
        rows or [{"prompt": f"{n}", "completion": "b"} for n in range(300)]
    )
    pyarrow.parquet.write_table(table, buffer, **options)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("rows.jsonl", GOOD)
    return buffer.getvalue()


def bad_text() -> bytes:
    """A column of text that is not UTF-8, which Parquet does not check."""
    values = pyarrow.array([b"ok", b"\xff\xfe"]).cast(pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, values.buffers())
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), buffer)
    return buffer.getvalue()


WHOLE = parquet(compression="none")
PARQUET: dict[str, tuple[bytes, str]] = {
    "cut short": (WHOLE[:-30], "Parquet"),
    "cut in half": (WHOLE[: len(WHOLE) // 2], "Parquet"),
    "only the mark": (b"PAR1", "Parquet"),
    "two marks": (b"PAR1PAR1", "Parquet"),
    "empty": (b"", "Parquet"),
    "no end mark": (WHOLE[:-4] + b"XXXX", "Parquet"),
    "footer longer than the file": (WHOLE[:-8] + b"\xff\xff\xff\x7f" + b"PAR1", "Parquet"),
    "footer of no length": (WHOLE[:-8] + b"\x00\x00\x00\x00" + b"PAR1", "Parquet"),
    "footer of noise": (
        WHOLE[:-400] + random.Random(1).randbytes(392) + WHOLE[-8:-4] + b"PAR1",
        "Parquet",
    ),
    "pages of noise": (
        WHOLE[:4] + random.Random(2).randbytes(len(WHOLE) // 2) + WHOLE[4 + len(WHOLE) // 2 :],
        "Parquet",
    ),
    "encrypted": (WHOLE[:-4] + b"PARE", "Parquet"),
    "json": (GOOD, "Parquet"),
    "zip": (zipped(), "Parquet"),
    "text that is not UTF-8": (bad_text(), "Parquet"),
    "numbers": (parquet([{"prompt": 1, "completion": "b"}]), "row 1"),
    "nulls": (
        parquet([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}]),
        "row 2",
    ),
    "other columns": (parquet([{"a": "b"}]), "row 1"),
    "bytes": (parquet([{"text": b"abc"}]), "row 1"),
}
CASES = {
    f"{suffix} {name}": (f"data.{suffix}", content, says)
    for suffix, cases in (
        ("jsonl", JSONL),
        ("json", JSON),
        ("csv", CSV),
        ("jsonl.gz", PACKED),
        ("parquet", PARQUET),
    )
    for name, (content, says) in cases.items()
}
COMMANDS = (["convert", "--to", "messages"], ["check", "--json"], ["stats"])
MOST_BYTES = 400 * 2**20
"""More than this process has with a good file and the longest line that is read, and far less than
what files claim."""


def explained(done: Any, name: str) -> bool:
    """Exit code 1 with a message that names the file; `check` may say it as a problem on stdout."""
    return (
        done.returncode == 1
        and "Traceback" not in done.stderr
        and name in done.stderr + done.stdout
    )


@pytest.mark.parametrize("case", CASES)
def test_damage_is_explained_with_its_place(chuk: Chuk, tmp_path: Path, case: str) -> None:
    name, content, says = CASES[case]
    (tmp_path / name).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for command, *options in COMMANDS:
        done = chuk("data", command, name, *options)
        assert explained(done, name), (command, done)
        place = says.removeprefix("line ").removeprefix("row ")
        problem = command == "check" and (
            f'"line": {place},' in done.stdout or '"line": 0,' in done.stdout
        )
        assert says in done.stderr or problem, (command, done)
    assert [item.name for item in tmp_path.iterdir()] == [name]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < MOST_BYTES


def test_there_are_as_many_cases_as_promised() -> None:
    assert len(CASES) >= 105


def _damaged(random_: random.Random, content: bytes) -> bytes:
    """One to three of: cut, noise put in, bytes changed, removed or repeated."""
    data = bytearray(content)
    noise = [
        b"\xff",
        b"\x00",
        b"{",
        b"]",
        b'"',
        b"\n",
        b"\\ud83d",
        b"[" * 500,
        b"9" * 5000,
        b"1e999",
        b"NaN",
        b"\r",
    ]
    for _ in range(random_.randint(1, 3)):
        at = random_.randrange(len(data) + 1)
        kind = random_.randrange(5)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = random_.choice(noise)
        elif kind == 2:
            data[at : at + 4] = random_.randbytes(4)
        elif kind == 3:
            del data[at : at + random_.randint(1, 40)]
        else:
            data[at:at] = data[at // 2 : at // 2 + 50]
    return bytes(data)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "jsonl.gz", "parquet", "txt"])
def test_random_damage_never_ends_in_a_traceback(chuk: Chuk, tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": f"{n} + ü?", "completion": f"{n}", "n": n} for n in range(20)]
    whole: dict[str, Callable[[], bytes]] = {
        "jsonl": lambda: "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in rows
        ).encode(),
        "json": lambda: json.dumps(rows, indent=1).encode(),
        "csv": lambda: (
            b"prompt,completion,n\n" + b"".join(f'"{n}, ü",{n},{n}\n'.encode() for n in range(20))
        ),
        "parquet": lambda: parquet(rows),
        "txt": lambda: "one\nzwei ü\n".encode() * 10,
    }
    content = gzip.compress(whole["jsonl"](), mtime=0) if suffix == "jsonl.gz" else whole[suffix]()
    name = f"data.{suffix}"
    for seed in range(12):
        (tmp_path / name).write_bytes(_damaged(random.Random(f"{suffix} {seed}"), content))
        for command in (
            ["check", name, "--json"],
            ["convert", name, "--to", "prompt", "-o", "out.parquet", "--overwrite"],
        ):
            done = chuk("data", *command)
            assert (
                done.returncode == 0
                or explained(done, name)
                or "Parquet cannot hold" in done.stderr
            ), (seed, done)
    assert {item.name for item in tmp_path.iterdir()} <= {name, "out.parquet"}
