"""`chuk train pipeline` as a process: what it prints, how it goes on after kill -9, and its
report."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import chuk_environment
from tests.training.conftest import assert_same_bits, toy_rows, weights_of, write_rows

SETTINGS = (
    "--max-steps",
    "40",
    "--batch-size",
    "4",
    "--learning-rate",
    "3e-3",
    "--set",
    "checkpoint_interval=5",
    "--set",
    "sft-2.use_lora=true",
    "--set",
    "log_interval=1",
)


@pytest.fixture(scope="module")
def arguments(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    write_rows(folder / "train.jsonl", toy_rows(37))
    write_rows(folder / "valid.jsonl", toy_rows(9, offset=100))
    return [
        "train",
        "pipeline",
        "--stages",
        "sft,sft,eval",
        "--model",
        str(tiny_model_dir),
        "--data",
        str(folder),
        *SETTINGS,
    ]


@pytest.fixture(scope="module")
def pipe(arguments, tmp_path_factory):
    """A finished pipeline and what the command said."""
    folder = tmp_path_factory.mktemp("work")
    command = [sys.executable, "-m", "chuk_cli", *arguments, "--output", "pipe"]
    done = subprocess.run(
        command, env=chuk_environment(), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "pipe", done


def test_it_prints_the_model_and_writes_a_report_of_all_stages(pipe, run_chuk):
    path, done = pipe
    assert done.stdout == "pipe/02-sft-2\n"
    assert "1/3 sft: finished, 40 steps" in done.stderr
    page = (path / "report.html").read_text(encoding="utf-8")
    assert all(
        text in page
        for text in ("3 of 3 stages", "sft: Loss", "sft-2: Loss", "exact match", "01-sft")
    )
    again = run_chuk("train", "pipeline", "--output", "pipe", "--json", cwd=path.parent)
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout.splitlines()[-1])
    assert (result["reason"], [stage["state"] for stage in result["stages"]]) == (
        "done",
        ["finished"] * 3,
    )
    changed = run_chuk(
        "train",
        "pipeline",
        "--output",
        "pipe",
        "--set",
        "sft-2.learning_rate=1e-4",
        cwd=path.parent,
    )
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
            command,
            env=chuk_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
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
        json.loads((path / "03-eval" / "eval.json").read_text())["metrics"]
        for path in (pipe[0], tmp_path / "killed")
    ]
    assert own[0] == own[1]


def test_a_dry_run_shows_every_stage_with_origins_and_writes_nothing(run_chuk, arguments, tmp_path):
    done = run_chuk(*arguments, "--output", "pipe", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "stage 2 of 3: sft-2 (sft)" in done.stdout
    assert "learning_rate" in done.stdout
    assert "(--learning-rate)" in done.stdout
    online = [
        "train",
        "pipeline",
        "--stages",
        "grpo,eval",
        *arguments[4:8],
        "--reward",
        "exact_match",
        "--dry-run",
    ]
    rewards = [
        stage["settings"]["rewards"]
        for stage in json.loads(run_chuk(*online, "--json").stdout)["stages"]
    ]
    assert rewards == [{"value": ["exact_match"], "origin": "--reward"}] * 2
    data = json.loads(run_chuk(*arguments, "--dry-run", "--json").stdout)
    second = data["stages"][1]["settings"]
    assert second["use_lora"] == {"value": True, "origin": "--set"}
    assert second["model"] == {"value": "stage:sft", "origin": "the stages before"}
    assert data["stages"][0]["rows"] > 0
    assert data["stages"][0]["steps"] == data["stages"][0]["settings"]["max_steps"]["value"]
    assert "(default)" not in done.stdout
    assert len(done.stdout.splitlines()) < 45
    assert not (tmp_path / "pipe").exists()


def test_a_dry_run_counts_the_steps_that_the_stages_then_take(run_chuk, tiny_model_dir, tmp_path):
    write_rows(
        tmp_path / "rows.jsonl",
        [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(21)],
    )
    pairs = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": "x"} for n in range(13)]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    words = [
        "train",
        "pipeline",
        "--stages",
        "sft,kto,grpo",
        "--model",
        tiny_model_dir,
        "--data",
        "rows.jsonl",
        "--set",
        "kto.data=pairs.jsonl",
        "--set",
        "batch_size=4",
        "--set",
        "num_epochs=2",
        "--reward",
        "exact_match",
        "--set",
        "grpo.num_generations=2",
        "--set",
        "grpo.max_completion_length=3",
        "--set",
        "gradient_accumulation_steps=2",
        "-o",
        "pipe",
    ]
    planned = json.loads(run_chuk(*words, "--dry-run", "--json").stdout)["stages"]
    assert [stage["rows"] for stage in planned] == [21, 26, 21]
    assert run_chuk(*words, "-q").returncode == 0
    done = json.loads((tmp_path / "pipe" / "pipeline.json").read_text())["stages"]
    assert [stage["steps"] for stage in planned] == [stage["steps"] for stage in done]


def test_chuk_runs_knows_a_pipeline_and_its_stages(pipe, run_chuk, tmp_path):
    (tmp_path / "runs").mkdir()
    shutil.copytree(pipe[0], tmp_path / "runs" / "tuned")
    names = {row["name"] for row in json.loads(run_chuk("runs", "ls", "--json").stdout)}
    assert {"tuned/01-sft", "tuned/02-sft-2"} <= names
    shown = run_chuk("runs", "show", "tuned")
    assert (shown.returncode, "before it: `tuned/01-sft`" in shown.stderr) == (0, True)
    assert (
        json.loads(run_chuk("runs", "show", "tuned", "--json").stdout)["name"] == "tuned/02-sft-2"
    )
    assert (
        json.loads(run_chuk("runs", "show", "tuned/01-sft", "--json").stdout)["name"]
        == "tuned/01-sft"
    )
    lines = run_chuk("runs", "plot", "tuned", "-q", "--metric", "loss").stdout.splitlines()
    assert [line.split("\t")[:2] for line in lines] == [
        ["loss", "tuned/01-sft"],
        ["loss", "tuned/02-sft-2"],
    ]
    assert float(lines[0].split("\t")[2]) > 0
    assert run_chuk("runs", "watch", "tuned", "-q").returncode == 0
    refused = run_chuk("runs", "rm", "tuned", "--yes")
    assert (refused.returncode, "`tuned` is a pipeline" in refused.stderr) == (1, True)
    assert (tmp_path / "runs" / "tuned" / "pipeline.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "sft,dop", "--model", "m", "--data", "d"], "unknown stage `dop` (--stages)"),
        ([], "Usage"),
        (["--model", "m"], "no stages given"),
        (
            ["--stages", "sft", "--set", "eval.max_rows=3"],
            "is for a stage `eval`, which there is not",
        ),
        (
            ["--stages", "sft", "--set", "max_rows=3"],
            "unknown setting `max_rows` in --set: no stage has it",
        ),
        (["--stages", "sft", "--set", "nonsense"], "is not KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run_chuk, arguments, message):
    done = run_chuk("train", "pipeline", *arguments)
    assert done.returncode == 2
    assert message in done.stderr + done.stdout
    assert done.stderr.count("error:") == (1 if arguments else 0)


def test_ctrl_c_saves_and_the_same_folder_goes_on(arguments, run_chuk, tmp_path):
    slow = [text if text != "40" else "4000" for text in arguments]
    command = [sys.executable, "-m", "chuk_cli", *slow, "--output", "pipe"]
    process = subprocess.Popen(
        command, env=chuk_environment(), stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
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
