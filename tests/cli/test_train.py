"""`chuk train` from end to end: a real model, real files, the real executable."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import RunChuk, chuk_environment

ROWS = "".join(
    json.dumps({"prompt": f"{n}+{n}=", "completion": str(2 * n)}) + "\n" for n in range(32)
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Thirty-two sums."""
    path = tmp_path / "sums.jsonl"
    path.write_text(ROWS, encoding="utf-8")
    return path


def test_a_run_prints_its_folder_and_says_what_to_do_next(
    run_chuk: RunChuk, tiny_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    args = [
        "train",
        "sft",
        "-m",
        tiny_model_dir,
        "-d",
        data,
        "--eval-data",
        data,
        "-o",
        "runs/first",
    ]
    done = run_chuk(*args, "--num-epochs", 1)
    assert (done.returncode, done.stdout) == (0, "runs/first\n"), done.stderr
    told = done.stderr.splitlines()
    assert told[0] == "getting ready: libraries, model, data"
    assert [line for line in told if line.startswith("step 1/4  25%  loss")]
    assert [line for line in told if line.startswith("eval at step 4: eval loss")]
    assert [line for line in told if line.startswith("done: 4 steps")]
    assert told[-2].startswith("result: loss")
    assert re.fullmatch(r"next: `chuk infer --model runs/first --prompt .+`", told[-1])
    assert (tmp_path / "runs/first/config.yaml").exists()
    origins = json.loads((tmp_path / "runs/first/origins.json").read_text())
    assert (origins["num_epochs"], origins["seed"]) == ("--num-epochs", "default")


def test_json_writes_events_and_nothing_else(
    run_chuk: RunChuk, tiny_model_dir: Path, data: Path
) -> None:
    done = run_chuk(
        "train", "sft", "-m", tiny_model_dir, "-d", data, "-o", "run", "--max-steps", 3, "--json"
    )
    kinds = [json.loads(line)["kind"] for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "")
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert {"step", "saved"} <= set(kinds)


def test_quiet_prints_the_folder_only(run_chuk: RunChuk, tiny_model_dir: Path, data: Path) -> None:
    done = run_chuk(
        "train", "sft", "-m", tiny_model_dir, "-d", data, "-o", "run", "--max-steps", 1, "-q"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "run\n", "")


def test_settings_may_all_come_from_elsewhere(
    run_chuk: RunChuk, tiny_model_dir: Path, data: Path
) -> None:
    env = {
        "CHUK_MODEL": str(tiny_model_dir),
        "CHUK_DATA": str(data),
        "CHUK_OUTPUT": "run",
        "CHUK_MAX_STEPS": "1",
    }
    assert run_chuk("train", "sft", env=env).stdout == "run\n"


def test_data_may_come_from_a_pipe(run_chuk: RunChuk, tiny_model_dir: Path) -> None:
    done = run_chuk(
        "train",
        "sft",
        "-m",
        tiny_model_dir,
        "-d",
        "-",
        "-o",
        "run",
        "--max-steps",
        1,
        "-q",
        input=ROWS,
    )
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr


def test_nothing_is_overwritten_unasked(
    run_chuk: RunChuk, tiny_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    args = ["train", "sft", "-m", tiny_model_dir, "-d", data, "--max-steps", 1, "-o"]
    for more in ([], ["--overwrite"]):
        done = run_chuk(*args, "run", *more)
        assert (done.returncode, done.stdout) == (2, "")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    codes = [run_chuk(*args, "other", *more).returncode for more in ([], [], ["--overwrite"])]
    assert codes == [0, 2, 0]


def test_what_is_missing_is_named(run_chuk: RunChuk, tiny_model_dir: Path, data: Path) -> None:
    assert run_chuk("train", "sft", "-m", tiny_model_dir, "-d", "no.jsonl").returncode == 1
    assert run_chuk("train", "sft", "-m", "no/such/model/here", "-d", data).returncode == 1
    assert run_chuk("train", "resume", "no-run").returncode == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_is_saved_and_goes_on(
    run_chuk: RunChuk,
    tiny_model_dir: Path,
    data: Path,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
) -> None:
    args = ["train", "sft", "-m", tiny_model_dir, "-d", data, "-o", "run", "--max-steps", 100_000]
    command = [sys.executable, "-m", "chuk_cli", *map(str, args)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=chuk_environment(),
        cwd=tmp_path,
    )
    assert process.stderr
    while not process.stderr.readline().startswith("step"):
        assert process.poll() is None
    process.send_signal(number)
    out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "run\n"), told
    assert "stopping:" in told
    assert "resume: `chuk train resume run`" in told
    step = int((tmp_path / "run" / "latest").read_text().split("_")[1])
    done = run_chuk("train", "resume", "run", "--max-steps", step + 2)
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    assert f"goes on from step {step:,}" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
def test_a_terminal_gets_the_live_view(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    import pty

    leader, follower = pty.openpty()
    args = ["train", "sft", "-m", tiny_model_dir, "-d", data, "-o", "run", "--max-steps", 5]
    environment = chuk_environment({"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"})
    process = subprocess.Popen(
        [sys.executable, "-m", "chuk_cli", *map(str, args)],
        stdout=follower,
        stderr=follower,
        env=environment,
        cwd=tmp_path,
    )
    os.close(follower)
    text = b""
    while chunk := _read(leader):
        text += chunk
    assert process.wait(timeout=60) == 0
    shown = re.sub(r"\033\[[0-9;]*m", "", text.decode())
    missing = [
        part for part in ("getting ready", "5/5", "done after", "next:") if part not in shown
    ]
    assert not missing, shown
    assert shown.count("\033[?25l") == shown.count("\033[?25h")


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux tells that the other end of a pseudo-terminal is closed
        return b""


def test_resume_goes_on_with_other_settings_and_names_them(
    run_chuk: RunChuk, tiny_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    words = ("train", "sft", "-m", tiny_model_dir, "-d", data, "-q", "--max-steps", 2)
    constant = ("--lr-scheduler-type", "constant", "--log-interval", 1)
    assert run_chuk(*words, *constant, "-o", "run", "--learning-rate", "1e-3").returncode == 0
    done = run_chuk("train", "resume", "run", "--max-steps", 4, "--lr", "2e-4", "--eval-steps", "9")
    assert done.returncode == 0, done.stderr
    assert "note: `--lr` is `--learning-rate` here\n" in done.stderr
    assert "note: `learning_rate` is 2e-4 from here on; it was 0.001\n" in done.stderr
    events = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, events) if event["kind"] == "step"]
    assert [step["data"]["learning_rate"] for step in steps] == [1e-3, 1e-3, 2e-4, 2e-4]
    origins = json.loads((tmp_path / "run" / "origins.json").read_text())
    assert origins["learning_rate"] == "the command line, changed after step 2"
    refused = run_chuk("train", "resume", "run", "--batch-size", 2)
    assert (refused.returncode, "No such option: --batch-size" in refused.stderr) == (2, True)
