"""`chuk train pipeline` as a process: what it prints, how it goes on after kill -9, and its report."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import chuk_environment
from tests.training.conftest import assert_same_bits, toy_rows, weights_of, write_rows

SETTINGS = (
    "--max-steps", "40", "--batch-size", "4", "--learning-rate", "3e-3", "--set", "checkpoint_interval=5",
    "--set", "sft-2.use_lora=true", "--set", "log_interval=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def arguments(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    write_rows(folder / "train.jsonl", toy_rows(37))
    write_rows(folder / "valid.jsonl", toy_rows(9, offset=100))
    return [
        "train", "pipeline", "--stages", "sft,sft,eval", "--model", str(tiny_model_dir), "--data", str(folder),
        *SETTINGS,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def pipe(arguments, tmp_path_factory):
    """A finished pipeline and what the command said."""
    folder = tmp_path_factory.mktemp("work")
    command = [sys.executable, "-m", "chuk_cli", *arguments, "--output", "pipe"]
    done = subprocess.run(command, env=chuk_environment(), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "pipe", done


def test_it_prints_the_model_and_writes_a_report_of_all_stages(pipe, run_chuk):
    path, done = pipe
    assert done.stdout == "pipe/02-sft-2\n"
    assert "1/3 sft: finished, 40 steps" in done.stderr
    page = (path / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("3 of 3 stages", "sft: Loss", "sft-2: Loss", "exact match", "01-sft"))
    again = run_chuk("train", "pipeline", "--output", "pipe", "--json", cwd=path.parent)
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout.splitlines()[-1])
    assert (result["reason"], [stage["state"] for stage in result["stages"]]) == ("done", ["finished"] * 3)
    changed = run_chuk("train", "pipeline", "--output", "pipe", "--set", "sft-2.learning_rate=1e-4", cwd=path.parent)
    assert changed.returncode == 2
    assert "learning_rate was 0.003, now 0.0001" in changed.stderr
    assert "--redo" in changed.stderr


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_at_any_moment_changes_no_bit(pipe, arguments, tmp_path, seed):
    """The moments are drawn; each try lives a little longer, so that the last ones get through."""
    draw = random.Random(seed)
    command = [sys.executable, "-m", "chuk_cli", *arguments, "--output", str(tmp_path / "killed")]
    kills = 0
    for attempt in range(30):
        process = subprocess.Popen(
            command, env=chuk_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
        )
        try:
            code = process.wait(timeout=0.9 + draw.random() * (0.8 + 0.8 * attempt))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert code == 0
        break
    assert kills > 0
    stages = json.loads((tmp_path / "killed" / "pipeline.json").read_text())["stages"]
    assert [stage["state"] for stage in stages] == ["finished"] * 3
    for folder in ("01-sft", "02-sft-2"):
        assert_same_bits(weights_of(pipe[0] / folder), weights_of(tmp_path / "killed" / folder))
    own = [
        json.loads((path / "03-eval" / "eval.json").read_text())["metrics"] for path in (pipe[0], tmp_path / "killed")
    ]
    assert own[0] == own[1]


def test_a_dry_run_shows_every_stage_with_origins_and_writes_nothing(run_chuk, arguments, tmp_path):
    done = run_chuk(*arguments, "--output", "pipe", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "stage 2 of 3: sft-2 (sft)" in done.stdout
    assert "learning_rate" in done.stdout
    assert "(--learning-rate)" in done.stdout
    online = ["train", "pipeline", "--stages", "grpo,eval", *arguments[4:8], "--reward", "exact_match", "--dry-run"]
    rewards = [stage["settings"]["rewards"] for stage in json.loads(run_chuk(*online, "--json").stdout)["stages"]]
    assert rewards == [{"value": ["exact_match"], "origin": "--reward"}] * 2
    data = json.loads(run_chuk(*arguments, "--dry-run", "--json").stdout)
    second = data["stages"][1]["settings"]
    assert second["use_lora"] == {"value": True, "origin": "--set"}
    assert second["model"] == {"value": "stage:sft", "origin": "the stages before"}
    assert not (tmp_path / "pipe").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "sft,dop", "--model", "m", "--data", "d"], "unknown stage `dop` (--stages)"),
        ([], "Usage"),
        (["--model", "m"], "no stages given"),
        (["--stages", "sft", "--set", "eval.max_rows=3"], "is for a stage `eval`, which there is not"),
        (["--stages", "sft", "--set", "max_rows=3"], "unknown setting `max_rows` in --set: no stage has it"),
        (["--stages", "sft", "--set", "nonsense"], "is not KEY=VALUE"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(run_chuk, arguments, message):
    done = run_chuk("train", "pipeline", *arguments)
    assert done.returncode == 2
    assert message in done.stderr + done.stdout
    assert done.stderr.count("error:") == (1 if arguments else 0)


def test_ctrl_c_saves_and_the_same_folder_goes_on(arguments, run_chuk, tmp_path):
    slow = [text if text != "40" else "4000" for text in arguments]
    command = [sys.executable, "-m", "chuk_cli", *slow, "--output", "pipe"]
    process = subprocess.Popen(command, env=chuk_environment(), stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pipe" / "01-sft" / "latest").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert "resume: `chuk train pipeline --output pipe`" in said
    shown = json.loads((tmp_path / "pipe" / "pipeline.json").read_text())
    assert shown["stages"][0]["state"] == "stopped"
