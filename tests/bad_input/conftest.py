"""A folder with everything that can be wrong, and a command line that must say so and leave nothing
behind."""

from __future__ import annotations

import io
import json
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chuk_cli.app import run

GOOD_ROWS = "".join(
    json.dumps({"prompt": f"{n}+{n}=", "completion": str(2 * n)}) + "\n" for n in range(16)
)

Fails = Callable[..., None]


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The working folder of all cases: `good` (a model), `good.jsonl`, and damaged copies. No test
    may change it."""
    folder = tmp_path_factory.mktemp("bench")
    shutil.copytree(tiny_model_dir, folder / "good")
    (folder / "good.jsonl").write_text(GOOD_ROWS)
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    return folder


@pytest.fixture
def fails(
    bench: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Fails]:
    """`fails(args, code, says, hint, stdin=…)`: the command line ends with that code, one line that
    says what is wrong and one that says what to do, in human words and as JSON; nothing on stdout,
    nothing new on disk."""
    monkeypatch.chdir(bench)
    # The variable is read at import only.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def check(args: str | list[str], code: int, says: str, hint: str, stdin: bytes = b"") -> None:
        words = args.split() if isinstance(args, str) else args
        before = _listing(bench, tmp_path)
        errors = []
        for more in ([], ["--json"]):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            assert run([*words, *more]) == code, capsys.readouterr().err
            out, err = capsys.readouterr()
            assert out == ""
            assert "Traceback" not in err
            errors.append(_parts(json.loads(err.splitlines()[-1])["error"]) if more else _told(err))
        assert errors[0] == errors[1]
        message, way_out = errors[0]
        assert says in message
        assert hint in way_out
        assert len(message) <= 300
        assert _listing(bench, tmp_path) == before

    yield check
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _told(err: str) -> tuple[str, str]:
    """The error and its hint: the last two lines, and the only ones of their kind."""
    *_, error, hint = err.splitlines()
    assert error.startswith("error: "), err
    assert hint.startswith("hint: "), err
    assert sum(line.startswith(("error:", "hint:")) for line in err.splitlines()) == 2
    return error.removeprefix("error: "), hint.removeprefix("hint: ")


def _parts(error: dict[str, str]) -> tuple[str, str]:
    assert error["kind"] in ("usage", "config", "data", "model", "training", "error")
    return error["message"], error["hint"]


def _listing(*folders: Path) -> list[str]:
    return sorted(str(path) for folder in folders for path in folder.rglob("*"))


def damaged(bench: Path, name: str) -> Path:
    """A copy of the good model to spoil; the folder is `bench/name`."""
    folder = bench / name
    shutil.copytree(bench / "good", folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_text())
    content |= changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON header of a safetensors file and leave its tensors."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
