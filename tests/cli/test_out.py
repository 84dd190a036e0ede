"""The three modes of output, and numbers for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chuk_cli import humanize
from chuk_cli.out import Out, make_table, to_json
from chuk_lib.errors import ConfigError

ROWS = [["a", 1200, 0.5, None], ["[b]", 7, 12.25, True]]
COLUMNS = ["name", "rows", "share", "fine"]


def test_a_result_in_each_mode(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"human": "hello\n", "json": '{"text": "hello"}\n', "quiet": "h\n"}
    for mode, text in expected.items():
        Out(mode).result({"text": "hello"}, human="hello", quiet="h")
        assert capsys.readouterr() == (text, "")


def test_a_result_without_words_is_shown_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Out("human").result({"rows": 1200, "max_length": None})
    assert capsys.readouterr().out == "rows        1,200\nmax length  -\n"
    Out("quiet").result({"rows": 1200})
    assert capsys.readouterr().out == ""
    Out("quiet").result([], quiet=["a", "b"])
    assert capsys.readouterr().out == "a\nb\n"


def test_a_table_in_each_mode(capsys: pytest.CaptureFixture[str]) -> None:
    Out("json").table("Files", COLUMNS, ROWS)
    first = {"name": "a", "rows": 1200, "share": 0.5, "fine": None}
    assert json.loads(capsys.readouterr().out)[0] == first
    Out("quiet").table("Files", COLUMNS, ROWS)
    assert capsys.readouterr().out == "a\n[b]\n"
    Out("human").table("Files", COLUMNS, ROWS)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "Files",
        "name   rows  share  fine",
        "a     1,200    0.5  -",
        "[b]       7  12.25  yes",
    ]


def test_a_wide_table_is_not_cut_off_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    Out("human").result({}, human=make_table("", ["text"], [["x" * 300]]))
    assert "x" * 300 in capsys.readouterr().out


def test_talk_goes_to_stderr_and_only_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    for mode, said in (("human", "working\nwarning: odd\nhint: look\n"), ("quiet", "")):
        out = Out(mode)
        out.say("working")
        out.warn("odd", "look")
        assert capsys.readouterr() == ("", said)
    Out("json").say("working")
    Out("json").warn("odd", "look")
    written = capsys.readouterr()
    assert json.loads(written.err) == {"warning": {"message": "odd", "hint": "look"}}
    assert written.out == ""


def test_json_holds_what_json_cannot() -> None:
    text = to_json({"nan": float("nan"), "path": Path("a/b"), "set": {2, 1}, "tuple": (1, "é")})
    assert json.loads(text) == {"nan": "nan", "path": "a/b", "set": [1, 2], "tuple": [1, "é"]}


def test_json_lines_are_for_json_mode(capsys: pytest.CaptureFixture[str]) -> None:
    Out("json").line({"a": 1})
    Out("human").line({"a": 1})
    assert capsys.readouterr().out == '{"a": 1}\n'


def test_modes_exclude_each_other() -> None:
    with pytest.raises(ConfigError):
        Out.of(json=True, quiet=True)
    assert [Out.of().mode, Out.of(json=True).mode, Out.of(quiet=True).mode] == [
        "human",
        "json",
        "quiet",
    ]


def test_nobody_to_ask_means_no(capsys: pytest.CaptureFixture[str]) -> None:
    Out().confirm("Delete it?", yes=True)
    with pytest.raises(ConfigError, match="Delete it") as caught:
        Out().confirm("Delete it?", yes=False)
    assert "--yes" in caught.value.hint


def test_status_is_a_line_off_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Out().status("loading"):
        pass
    assert capsys.readouterr() == ("", "loading\n")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (humanize.count(999), "999"),
        (humanize.count(12_345), "12,345"),
        (humanize.count(123_456), "123 k"),
        (humanize.count(1.08e6), "1.08 M"),
        (humanize.count(4.94e8), "494 M"),
        (humanize.count(7.6e9), "7.60 B"),
        (humanize.size(812), "812 B"),
        (humanize.size(3.4 * 2**30), "3.4 GiB"),
        (humanize.size(5 * 2**40), "5.0 TiB"),
        (humanize.duration(0.42), "0.4 s"),
        (humanize.duration(59.6), "1 m 00 s"),
        (humanize.duration(725), "12 m 05 s"),
        (humanize.duration(11_220), "3 h 07 m"),
        (humanize.duration(187_200), "2 d 04 h"),
        (humanize.duration(float("nan")), "?"),
        (humanize.number(2e-5), "2e-5"),
        (humanize.number(0.25612), "0.2561"),
        (humanize.number(0.0), "0"),
        (humanize.number(float("inf")), "inf"),
    ],
)
def test_numbers_for_people(shown: str, expected: str) -> None:
    assert shown == expected
