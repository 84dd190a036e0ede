"""What all rooms stand on: files that are replaced whole, and text for messages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chuk_lib.utils.paths import replace_file, write_whole
from chuk_lib.utils.text import first_line, shorten


@pytest.mark.parametrize("content", ["ä\r\n", b"\x00\xff"])
def test_a_file_is_replaced_whole(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "a.json"
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_failure_leaves_the_old_file_and_nothing_beside(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "old")
    with pytest.raises(ValueError, match="half"):
        write_half(path, shared)
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["a.json"])


def write_half(path: Path, shared: bool) -> None:
    with replace_file(path, shared=shared) as partial:
        assert partial.parent == path.parent
        partial.write_text("ha")
        raise ValueError("half")


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_text_is_cut_at_either_end() -> None:
    assert shorten("a" * 60) == "a" * 60
    assert shorten("b" + "a" * 60) == "b" + "a" * 58 + "…"
    assert shorten("a" * 60 + "b", keep_end=True) == "…" + "a" * 58 + "b"
    assert shorten((2, 3), 4) == "(2,…"


def test_an_error_on_one_line() -> None:
    assert first_line(ValueError(" a\nb")) == "a"
    assert first_line(ValueError()) == "ValueError"
