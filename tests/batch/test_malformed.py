"""About a hundred damaged or hostile folders: always exit code 1, always the file's name, never a
traceback, never code run, never memory taken for what a file only claims."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chuk_cli.app import run
from chuk_lib.data.batches import BatchFolder, BatchSpec, build
from chuk_lib.errors import DataError
from tests.batch.conftest import pair_rows, write_rows

Good = dict[str, np.ndarray]


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A sound folder. Copy it, do not change it."""
    folder = tmp_path_factory.mktemp("whole")
    source = write_rows(folder / "rows.jsonl", pair_rows(20))
    return build(source, tiny_model_dir, folder / "batches", BatchSpec(max_length=160)).path


def member(header: str, body: bytes = b"", magic: bytes = b"\x93NUMPY\x01\x00") -> bytes:
    text = header.encode("latin1") + b"\n"
    return magic + struct.pack("<H", len(text)) + text + body


def described(descr: str = "'<i4'", shape: str = "(2, 4)", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def saved(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


IDS = np.arange(8, dtype=np.int32).reshape(2, 4) + 4
GOOD = {
    "input_tensor": IDS,
    "target_tensor": np.roll(IDS, -1, axis=1),
    "attention_mask_tensor": np.ones((2, 4), np.int32),
}


def changed(**changes: Any) -> bytes:
    return saved(**{key: value for key, value in {**GOOD, **changes}.items() if value is not None})


def with_header(header: str, body: bytes = b"\0" * 32) -> bytes:
    return zipped(input_tensor=member(header, body), target_tensor=member(described(), b"\0" * 32))


def with_claimed_size(name: str, size: int) -> bytes:
    """The archive's directory says that a member is larger than the file."""
    data = bytearray(saved(**GOOD))
    at = data.index(f"{name}.npy".encode(), data.index(b"PK\x01\x02")) - 46
    data[at + 20 : at + 28] = struct.pack("<II", size, size)
    return bytes(data)


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("input_tensor.npy", "w") as stream:
            stream.write(member(described(shape="(1000, 75000)")))
            for _ in range(300):
                stream.write(b"\0" * 1_000_000)
        archive.writestr("target_tensor.npy", member(described(), b"\0" * 32))
    return buffer.getvalue()


HEADERS = {
    "huge shape": described(shape="(1000000000000, 4)"),
    "huge product": described(shape="(4294967296, 4294967296)"),
    "beyond 64 bits": described(shape=f"({2**70}, {2**70})"),
    "negative shape": described(shape="(-2, 4)"),
    "both negative": described(shape="(-2, -4)"),
    "shape of text": described(shape="('a', 4)"),
    "shape of floats": described(shape="(2.0, 4)"),
    "shape of truth": described(shape="(True, 8)"),
    "three axes": described(shape="(2, 2, 2)"),
    "no axes": described(shape="()"),
    "shape too small": described(shape="(1, 4)"),
    "shape too large": described(shape="(3, 4)"),
    "objects": described(descr="'|O'"),
    "text": described(descr="'<U4'"),
    "bytes": described(descr="'|S16'"),
    "times": described(descr="'<M8[s]'", shape="(1, 4)"),
    "complex": described(descr="'<c8'", shape="(1, 4)"),
    "void": described(descr="'|V4'"),
    "fields": described(descr="[('a', '<i4')]"),
    "object fields": described(descr="[('a', '|O')]"),
    "subarray": described(descr="('<i4', (4,))", shape="(2,)"),
    "no such type": described(descr="'<q9'"),
    "code in the header": "__import__('os').system('true')",
    "call in the shape": described(shape="tuple([2, 4])"),
    "not a dictionary": "[1, 2, 3]",
    "missing key": "{'descr': '<i4', 'shape': (2, 4)}",
    "more keys": described()[:-1] + "'more': 1}",
    "open bracket": "{'descr': '<i4'",
    "brackets": "(" * 3000,
    "long header": described() + " " * 60_000,
    "fortran of text": described(fortran="'no'"),
    "empty header": "",
    "null": "\0\0\0\0",
}
FILES: dict[str, Callable[[Path], bytes]] = {
    **{
        f"header: {name}": lambda path, header=header: with_header(header)
        for name, header in HEADERS.items()
    },
    "empty file": lambda path: b"",
    "no zip": lambda path: b"hello" * 100,
    "cut in half": lambda path: saved(**GOOD)[:700],
    "cut at the end": lambda path: saved(**GOOD)[:-9],
    "only an end record": lambda path: b"PK\x05\x06" + b"\0" * 18,
    "end record that lies": lambda path: b"PK\x05\x06" + b"\xff" * 18,
    "a pickle": lambda path: pickle.dumps(Trap(path)),
    "a bare array": lambda path: member(described(), b"\0" * 32),
    "pickled input": lambda path: changed(
        input_tensor=np.array([[Trap(path)] * 4] * 2, dtype=object)
    ),
    "pickled mask": lambda path: changed(
        attention_mask_tensor=np.array([[Trap(path)] * 4] * 2, dtype=object)
    ),
    "pickled lengths": lambda path: changed(lengths=np.array([Trap(path), 1], dtype=object)),
    "member is a pickle": lambda path: zipped(
        input_tensor=pickle.dumps(Trap(path)), target_tensor=pickle.dumps(1)
    ),
    "member is empty": lambda path: zipped(input_tensor=b"", target_tensor=b""),
    "no version": lambda path: zipped(
        input_tensor=member(described(), magic=b"\x93NUMPY\x09\x00"), target_tensor=b""
    ),
    "large member claimed": lambda path: with_claimed_size("input_tensor", 2**31),
    "largest member claimed": lambda path: with_claimed_size("target_tensor", 2**32 - 2),
    "bomb": lambda path: bomb(),
    "byte changed": lambda path: saved(**GOOD).replace(IDS.tobytes(), IDS[::-1].tobytes()),
    "no target": lambda path: changed(target_tensor=None),
    "no input": lambda path: changed(input_tensor=None),
    "other names": lambda path: saved(x=IDS, y=IDS),
    "no arrays": lambda path: saved(),
    "many arrays": lambda path: saved(**{f"a{n}": IDS for n in range(80)}, **GOOD),
    "one name twice": lambda path: saved(**GOOD, xnput_tensor=IDS).replace(b"xnput", b"input"),
    "shapes differ": lambda path: changed(target_tensor=IDS[:, :3]),
    "mask shape": lambda path: changed(attention_mask_tensor=IDS[:1] * 0),
    "no rows": lambda path: changed(
        input_tensor=IDS[:0], target_tensor=IDS[:0], attention_mask_tensor=IDS[:0]
    ),
    "no columns": lambda path: saved(input_tensor=IDS[:, :0], target_tensor=IDS[:, :0]),
    "flat": lambda path: saved(input_tensor=IDS.ravel(), target_tensor=IDS.ravel()),
    "negative ids": lambda path: changed(input_tensor=-IDS),
    "huge ids": lambda path: changed(input_tensor=IDS.astype(np.int64) + 2**40),
    "unsigned ids": lambda path: changed(input_tensor=np.full((2, 4), 2**64 - 1, np.uint64)),
    "beyond the vocabulary": lambda path: changed(
        input_tensor=IDS + 5000, target_tensor=GOOD["target_tensor"] + 5000
    ),
    "halves of ids": lambda path: changed(input_tensor=IDS + 0.5),
    "not a number": lambda path: changed(input_tensor=IDS * np.nan),
    "infinite": lambda path: changed(target_tensor=IDS * np.inf),
    "mask of twos": lambda path: changed(attention_mask_tensor=IDS * 0 + 2),
    "lengths too long": lambda path: changed(lengths=np.array([9, 9])),
    "lengths too few": lambda path: changed(lengths=np.array([4])),
    "negative lengths": lambda path: changed(lengths=np.array([-1, 2])),
    "segments shape": lambda path: changed(segment_tensor=IDS[:1]),
    "records too few": lambda path: changed(
        segment_tensor=IDS * 0 + 1, record_tensor=np.array([1])
    ),
    "halves without rows": lambda path: saved(concatenated_tensor=IDS[:0]),
    "mask of ids": lambda path: saved(input_ids=IDS, loss_mask=IDS),
    "mask of other size": lambda path: saved(input_ids=IDS, loss_mask=IDS[:, 1:]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(
    name: str, tiny_model_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    folder, trap = tmp_path / "old", tmp_path / "sprung"
    folder.mkdir()
    (folder / "old_batch_0001.npz").write_bytes(FILES[name](trap))
    for words in (
        ["verify", str(folder), "--model", str(tiny_model_dir)],
        ["show", str(folder), "-m", str(tiny_model_dir)],
    ):
        assert run(["batch", *words]) == 1
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert "old_batch_0001.npz" in out + err, out + err
    assert not trap.exists()


def test_random_damage_never_ends_in_a_bug(tmp_path: Path) -> None:
    drawn, good = random.Random(0), saved(**GOOD, lengths=np.array([4, 3]))
    refused = []
    for number in range(300):
        data = bytearray(good)
        for _ in range(drawn.choice([1, 1, 2, 8])):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        path = tmp_path / f"x_{number}.npz"
        path.write_bytes(
            bytes(data[: drawn.choice([len(data)] * 3 + [drawn.randrange(len(data))])])
        )
        try:
            BatchFolder(tmp_path)
        except DataError as error:
            refused.append(path.name in error.message)
        path.unlink()
    assert all(refused)
    assert len(refused) > 200


def test_claims_take_no_memory(tmp_path: Path) -> None:
    names = [
        "header: huge shape",
        "header: huge product",
        "large member claimed",
        "largest member claimed",
        "bomb",
    ]
    for name in names:
        (tmp_path / "old_batch_0001.npz").write_bytes(FILES[name](tmp_path))
        tracemalloc.start()
        with pytest.raises(DataError):
            BatchFolder(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5_000_000, name


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        content = json.loads(data)
        made = change(content)
        return json.dumps(content if made is None else made).encode()

    return edit


def first_file(**changes: Any) -> Callable[[bytes], bytes]:
    return rewritten(lambda content: content["files"][0].update(changes))


MANIFESTS: dict[str, Callable[[bytes], bytes]] = {
    **{
        f"without {name}": rewritten(lambda content, name=name: content.pop(name) and None)
        for name in (
            "format",
            "version",
            "digest",
            "kind",
            "prefix",
            "settings",
            "tokenizer",
            "sources",
            "report",
            "files",
        )
    },
    "empty": lambda data: b"",
    "cut": lambda data: data[:300],
    "a list": lambda data: b"[1]",
    "null": lambda data: b"null",
    "not text": lambda data: b"\xff\xfe\x00",
    "deep": lambda data: b"[" * 100_000,
    "other version": rewritten(lambda content: content.update(version=99)),
    "other digest": rewritten(lambda content: content.update(digest="0" * 64)),
    "no files": rewritten(lambda content: content.update(files=[])),
    "files are numbers": rewritten(lambda content: content.update(files=[1, 2])),
    "a path as name": first_file(name="../../etc/passwd"),
    "an absolute path": first_file(name="/etc/passwd"),
    "negative rows": first_file(rows=-1),
    "rows are text": first_file(rows="8"),
    "rows are true": first_file(rows=True),
    "a name is a number": first_file(name=3),
    "other hash": first_file(sha256="0" * 64),
    "other size": first_file(bytes=1),
    "other rows": first_file(rows=7),
    "huge rows": first_file(rows=10**30),
    "missing file": first_file(name="none.npz"),
    "vocabulary is text": rewritten(lambda content: content["tokenizer"].update(vocab_size="many")),
    "tokenizer is a list": rewritten(lambda content: content.update(tokenizer=[])),
    "nameless source": rewritten(lambda content: content["sources"][0].pop("name") and None),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_damaged_manifest_is_named(name: str, whole: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "batches"
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = folder / "manifest.json"
    manifest.write_bytes(MANIFESTS[name](manifest.read_bytes()))
    for command in ("verify", "inspect"):
        assert run(["batch", command, str(folder)]) == 1
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert "manifest.json" in out + err, out + err


def test_a_changed_file_is_found_by_its_hash(
    whole: Path, tokenizer: Any, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "batches"
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    first = sorted(folder.glob("*.npz"))[0]
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(bytes(data))
    assert run(["batch", "verify", str(folder)]) == 1
    assert first.name in capsys.readouterr().out
    with pytest.raises(DataError, match=first.name):
        BatchFolder(folder, tokenizer).read(0)
    first.unlink()
    with pytest.raises(DataError, match=f"{first.name}` is missing"):
        BatchFolder(folder)
    assert run(["batch", "verify", str(folder)]) == 1
    assert "is missing" in capsys.readouterr().out
