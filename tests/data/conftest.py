"""What the data tests share: TRL's fixtures, a real tokenizer with and without markers in its
template, and files."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from chuk_cli.app import run
from chuk_lib.data.tokenizers.loader import load_tokenizer

TESTS = Path(__file__).resolve().parent.parent
WriteRows = Callable[..., Path]


class Done(NamedTuple):
    """A finished command line."""

    returncode: int
    stdout: str
    stderr: str


Chuk = Callable[..., Done]


@pytest.fixture(scope="session")
def parity() -> Path:
    """TRL's fixtures: the folder named by CHUK_PARITY, else the committed ones."""
    places = [Path(os.environ.get("CHUK_PARITY", ""))]
    found = (place for place in places if (place / "expected" / "sft_tokenized.json").is_file())
    return next(found, TESTS / "fixtures" / "parity")


@pytest.fixture(scope="session")
def tokenizer(parity: Path) -> Any:
    """Byte-level BPE with a ChatML template that marks what the assistant writes. Do not change
    it."""
    return load_tokenizer(parity / "models" / "llama-tiny")


@pytest.fixture
def with_template(parity: Path) -> Callable[[str | None], Any]:
    """The same tokenizer with another chat template."""

    def load(template: str | None) -> Any:
        made = load_tokenizer(parity / "models" / "llama-tiny")
        made._tokenizer.chat_template = template
        return made

    return load


@pytest.fixture
def unmarked(tokenizer: Any, with_template: Callable[[str | None], Any]) -> Any:
    """The tokenizer whose template has lost its `{% generation %}` markers."""
    template = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", tokenizer._tokenizer.chat_template)
    assert "generation %}" not in template
    return with_template(template)


@pytest.fixture
def rows_file(tmp_path: Path) -> WriteRows:
    """`rows_file(row, row, …)` writes a JSONL file and returns its path."""

    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def chuk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Chuk]:
    """`chuk("data", "stats", path, input=b"…")` in this process and in the test's own folder: much
    faster than a new one where heavy packages are needed."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.chdir(tmp_path)

    def call(*words: Any, input: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input), encoding="utf-8"))
        capsys.readouterr()
        code = run([str(word) for word in words])
        return Done(code, *capsys.readouterr())

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
