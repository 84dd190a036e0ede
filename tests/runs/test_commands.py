"""Every `chuk runs` command from end to end, in every mode."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.conftest import RunChuk
from tests.runs.conftest import WriteRun, as_json, started, step


def test_ls(runs: Path, run_chuk: RunChuk) -> None:
    done = run_chuk("runs", "ls", "--sort", "name")
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "run",
        "status",
        "steps",
        "loss",
        "best",
        "eval",
        "took",
        "age",
        "size",
        "how",
        "model",
    ]
    assert re.match(r"first +done +12/12 +\d", lines[1])
    assert re.match(r"second +done +6/6 +\d", lines[2])
    listed = as_json(run_chuk("runs", "ls", "--json", "--sort", "-step").stdout)
    assert [run["name"] for run in listed] == ["first", "second"]
    assert listed[0]["best"] <= listed[0]["eval_loss"] < 10
    assert listed[0]["size"] > 100_000
    assert run_chuk("runs", "ls", "-q", "--filter", "step<10").stdout == "runs/second\n"
    assert run_chuk("runs", "ls", runs, "-q", "--filter", "name=first").stdout == f"{runs}/first\n"


def test_ls_in_a_narrow_terminal_says_what_it_leaves_out(runs: Path, run_chuk: RunChuk) -> None:
    done = run_chuk("runs", "ls", env={"COLUMNS": "48"})
    assert max(map(len, done.stdout.splitlines())) <= 48
    assert "not shown for want of width" in done.stderr
    assert "first" in done.stdout


def test_ls_of_nothing(run_chuk: RunChuk, runs: Path, tmp_path: Path) -> None:
    none = run_chuk("runs", "ls", "--filter", "status=failed")
    assert (none.returncode, none.stdout) == (0, "")
    (tmp_path / "empty").mkdir()
    assert run_chuk("runs", "ls", cwd=tmp_path / "empty").returncode == 0
    assert run_chuk("runs", "ls", "--json", cwd=tmp_path / "empty").stdout == "[]\n"
    assert run_chuk("runs", "ls", "no-such-folder").returncode == 1


def test_show(runs: Path, run_chuk: RunChuk) -> None:
    done = run_chuk("runs", "show", "first", env={"COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    for part in (
        "12/12",
        "Settings that were chosen",
        "Samples",
        "Environment",
        "Checkpoints",
        "step_000012",
    ):
        assert part in done.stdout
    assert re.search(r"learning_rate +0.003 +none +--learning-rate", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80
    found = as_json(run_chuk("runs", "show", "runs/first", "--json").stdout)
    assert found["curves"]["loss"]["steps"] == list(range(1, 13))
    assert (found["settings"]["batch_size"], found["origins"]["learning_rate"]) == (
        4,
        "--learning-rate",
    )
    assert [point["marks"] for point in found["checkpoints"]][-1] == ["latest", "best"]
    assert found["samples"][0]["prompt"]
    assert run_chuk("runs", "show", "fi", "-q").stdout == "runs/first\n"


def test_show_in_ascii_writes_ascii(runs: Path, run_chuk: RunChuk) -> None:
    for command in (["show", "first"], ["plot", "first", "second"], ["compare", "first", "second"]):
        done = run_chuk("runs", *command, env={"PYTHONIOENCODING": "ascii"})
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
        assert not re.search(r"\\u2[0-9a-f]{3}", done.stdout)


def test_show_of_a_run_of_which_only_the_log_is_left(
    write_run: WriteRun, run_chuk: RunChuk
) -> None:
    write_run("bare", ["rubbish", started(1), step(1, 2), step(2, 3)])
    done = run_chuk("runs", "show", "bare")
    assert (done.returncode, "killed after" in done.stdout, "damaged" in done.stdout) == (
        0,
        True,
        True,
    )
    write_run("empty", [])
    for command in ("show", "plot", "report", "watch"):
        assert run_chuk("runs", command, "empty").returncode in (0, 1)
    assert run_chuk("runs", "report", "empty", "-q").stdout == "runs/empty/report.html\n"


def test_plot_in_the_terminal(runs: Path, run_chuk: RunChuk) -> None:
    done = run_chuk("runs", "plot", "first", "second", "--metric", "loss,learning_rate")
    assert done.returncode == 0, done.stderr
    titles = [line for line in done.stdout.splitlines() if line in ("loss", "learning_rate")]
    assert titles == ["loss", "learning_rate"]
    assert re.search(r"a +first", done.stdout)
    assert re.search(r"b +second", done.stdout)
    drawn = as_json(run_chuk("runs", "plot", "first", "--json").stdout)
    assert [line["label"] for line in drawn[0]["lines"]] == ["loss", "eval_loss"]
    assert run_chuk("runs", "plot", "first", "--log").returncode == 0
    wrong = run_chuk("runs", "plot", "first", "--metric", "los")
    assert (wrong.returncode, "did you mean `loss`" in wrong.stderr) == (2, True)


def test_plot_as_svg(runs: Path, run_chuk: RunChuk, tmp_path: Path) -> None:
    done = run_chuk("runs", "plot", "first", "second", "-o", "losses.svg")
    assert (done.returncode, done.stdout) == (0, "losses.svg\n"), done.stderr
    root = ElementTree.parse(tmp_path / "losses.svg").getroot()
    lines = [node for node in root.iter() if node.tag.endswith("polyline")]
    assert [len(line.attrib["points"].split()) for line in lines] == [12, 6, 3, 2]
    assert run_chuk("runs", "plot", "first", "-o", "losses.svg").returncode == 2
    assert run_chuk("runs", "plot", "first", "-o", "losses.svg", "--overwrite").returncode == 0
    assert run_chuk("runs", "plot", "first", "-o", "losses.pdf").returncode == 2


def test_plot_as_png(runs: Path, run_chuk: RunChuk, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run_chuk("runs", "plot", "first", "-o", "losses.png").returncode == 0
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_compare(runs: Path, run_chuk: RunChuk) -> None:
    done = run_chuk("runs", "compare", "first", "second")
    assert done.returncode == 0, done.stderr
    assert re.search(r"learning_rate +0.003 +0.0001", done.stdout)
    assert "batch_size" not in done.stdout
    assert re.search(r"\nloss +\d\.\d+ \* ", done.stdout)
    found = as_json(run_chuk("runs", "compare", "first", "second", "--json").stdout)
    assert found["settings"]["max_steps"] == [12, 6]
    assert "output" not in found["settings"]
    assert len(found["metrics"]["eval_loss"]) == len(found["curves"]["loss"]) == 2
    assert run_chuk("runs", "compare", "second", "first", "-q").stdout == "runs/first\n"
    assert run_chuk("runs", "compare", "first").returncode == 2
    assert run_chuk("runs", "compare", "first", "runs/first").returncode == 2


def test_export(runs: Path, run_chuk: RunChuk, tmp_path: Path) -> None:
    assert (
        as_json(run_chuk("runs", "export", "first", "-o", "first.csv", "--json").stdout)["rows"]
        == 12
    )
    with (tmp_path / "first.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == [str(number) for number in range(1, 13)]
    assert [row["step"] for row in rows if row["eval_loss"]] == ["4", "8", "12"]
    import pyarrow.parquet

    assert run_chuk("runs", "export", "first", "-o", "first.parquet").returncode == 0
    table = pyarrow.parquet.read_table(tmp_path / "first.parquet")
    assert table.column("loss").to_pylist() == [float(row["loss"]) for row in rows]
    assert table.column("eval_loss").null_count == 9
    for wrong in (["-o", "first.csv"], ["-o", "first.xls"], [], ["-o", "no/such/folder/x.csv"]):
        assert run_chuk("runs", "export", "first", *wrong).returncode == 2


def test_rm_asks_and_removes(runs: Path, run_chuk: RunChuk) -> None:
    refused = run_chuk("runs", "rm", "first")
    assert (refused.returncode, "--yes" in refused.stderr, (runs / "first").exists()) == (
        2,
        True,
        True,
    )
    (runs / "first" / "notes.txt").write_text("mine")
    done = run_chuk("runs", "rm", "first", "second", "--yes", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == [
        {"path": "runs/first", "left": ["notes.txt"]},
        {"path": "runs/second", "left": []},
    ]
    assert "notes.txt" in json.loads(done.stderr)["warning"]["message"]
    assert [entry.name for entry in runs.iterdir()] == ["first"]


def test_names_of_runs_cannot_do_anything_to_the_terminal(
    write_run: WriteRun, run_chuk: RunChuk
) -> None:
    write_run("evil\x1b[31m", [started(1, model="m\x1b]0;x\x07"), step(1, 2, text="\x1b[2J")])
    for command in (["ls"], ["show", "evil"], ["plot", "evil"]):
        done = run_chuk("runs", *command)
        assert done.returncode == 0
        assert "\x1b" not in done.stdout
