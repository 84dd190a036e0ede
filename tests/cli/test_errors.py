"""The error boundary: what each kind of failure says, where, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chuk_cli.errors import explain
from tests.conftest import RunChuk, chuk_environment

FAILING = """
import sys
from chuk_cli import app, lazy
from chuk_lib.errors import ChukError, ConfigError, DataError, ModelError, TrainingError
import typer

failing = typer.Typer(add_completion=False)

@failing.command()
def fail(json: bool = False) -> None:
    {statement}

lazy.GROUPS["doctor"] = lazy.LazyCommand("failing", "Fails.", "Work")
sys.modules["failing"] = type(sys)("failing")
sys.modules["failing"].app = failing
sys.argv = ["chuk", "doctor", *sys.argv[1:]]
sys.exit(app.run(sys.argv[1:]))
"""


def run_failing(
    statement: str, *args: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A real process whose command fails with `statement`."""
    command = [sys.executable, "-c", FAILING.format(statement=statement), *args]
    environment = chuk_environment({"TYPER_USE_RICH": "0", **(env or {})})
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


EXPLAINED = {
    "ConfigError": ("config", 2),
    "DataError": ("data", 1),
    "ModelError": ("model", 1),
    "TrainingError": ("training", 1),
    "ChukError": ("error", 1),
}


@pytest.mark.parametrize(
    ("name", "kind", "code"), [(name, *rest) for name, rest in EXPLAINED.items()]
)
def test_an_explained_failure_says_what_and_what_to_do(name: str, kind: str, code: int) -> None:
    statement = f'raise {name}("`x.jsonl` line 17 has no text", "add one")'
    done = run_failing(statement)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "error: `x.jsonl` line 17 has no text\nhint: add one\n"
    done = run_failing(statement, "--json")
    assert (done.returncode, done.stdout) == (code, "")
    expected = {"kind": kind, "message": "`x.jsonl` line 17 has no text", "hint": "add one"}
    assert json.loads(done.stderr) == {"error": expected}


def test_without_a_hint_there_is_no_hint_line() -> None:
    assert run_failing('raise DataError("empty")').stderr == "error: empty\n"


def test_a_bug_becomes_an_apology_with_a_crash_file(tmp_path: Path) -> None:
    done = run_failing("1 / 0", env={"TMPDIR": str(tmp_path)})
    assert (done.returncode, done.stdout) == (70, "")
    assert "Traceback" not in done.stderr
    assert "chuk doctor" in done.stderr
    saved = re.search(r"`(.*chuk-crash-.*\.txt)`", done.stderr)
    assert saved
    text = Path(saved[1]).read_text()
    assert "ZeroDivisionError" in text
    assert "Traceback" in text
    assert "doctor" in text


def test_a_bare_value_error_is_a_bug() -> None:
    done = run_failing('raise ValueError("oops")', "--json")
    assert done.returncode == 70
    assert json.loads(done.stderr)["error"]["kind"] == "bug"


def test_a_bug_without_a_place_for_the_crash_file_still_says_sorry(tmp_path: Path) -> None:
    done = run_failing('import tempfile; tempfile.tempdir = "/no/such/place"; 1 / 0')
    assert done.returncode == 70
    assert "CHUK_DEBUG=1" in done.stderr


@pytest.mark.parametrize("statement", ["1 / 0", 'raise DataError("empty")'])
def test_debug_shows_the_traceback(statement: str) -> None:
    assert "Traceback" in run_failing(statement, env={"CHUK_DEBUG": "1"}).stderr


def test_what_the_machine_refuses_is_not_a_bug() -> None:
    done = run_failing('raise OSError(28, "No space left on device", "/runs/x")')
    assert (done.returncode, "`/runs/x`: no space left" in done.stderr) == (1, True)
    assert run_failing("raise MemoryError").returncode == 1
    assert explain(FileNotFoundError(2, "No such file or directory", "x")) is None


def test_ctrl_c_and_sigterm_end_with_their_codes() -> None:
    waiting = 'import time; print("up", flush=True); time.sleep(60)'
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        command = [sys.executable, "-c", FAILING.format(statement=waiting)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=chuk_environment()
        )
        assert process.stdout
        process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == code
        assert b"Traceback" not in errors


def test_a_reader_that_leaves_is_no_error() -> None:
    statement = '[print("x" * 99) for _ in range(20000)]'
    command = [sys.executable, "-c", FAILING.format(statement=statement)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=chuk_environment()
    )
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=20) == 1


def test_a_reader_that_leaves_before_the_last_flush_is_no_error() -> None:
    statement = 'import time; print("x"); time.sleep(0.5)'
    command = [sys.executable, "-c", FAILING.format(statement=statement)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=chuk_environment()
    )
    assert process.stdout
    process.stdout.close()
    time.sleep(0.1)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (1, b"")


def test_usage_errors_are_one_line_and_a_hint(run_chuk: RunChuk) -> None:
    done = run_chuk("modle", "ls")
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: No such command 'modle'. Did you mean 'model'?\nhint: see `chuk --help`\n"
    )
    done = run_chuk("train", "sft", "--modle", "x", "--json")
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, error["kind"], "--model" in error["message"]) == (2, "usage", True)


def test_a_group_without_a_command_shows_its_help(run_chuk: RunChuk) -> None:
    done = run_chuk("train")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: chuk train")


def test_what_stdout_cannot_encode_is_escaped() -> None:
    done = run_failing(
        "print(chr(0x2713))", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    )
    assert (done.returncode, done.stdout) == (0, "\\u2713\n")


def test_colour_is_for_terminals_only() -> None:
    statement = 'raise DataError("no `x`", "add it")'
    assert "\033" not in run_failing(statement).stderr
    forced = {"FORCE_COLOR": "1"}
    assert "\033[1;31merror:\033[0m" in run_failing(statement, env=forced).stderr
    assert "\033" not in run_failing(statement, env=forced | {"NO_COLOR": "1"}).stderr


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
def test_a_terminal_gets_rich_help() -> None:
    import pty

    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "chuk_cli", "--help"]
    environment = chuk_environment({"TERM": "xterm-256color", "COLUMNS": "100"})
    process = subprocess.Popen(command, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    text = b""
    while chunk := _read(leader):
        text += chunk
    assert process.wait(timeout=20) == 0
    assert all(panel in text.decode() for panel in ("Work", "Prepare", "Inspect", "╭"))


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux tells that the other end of a pseudo-terminal is closed
        return b""
