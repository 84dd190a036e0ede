"""A GRPO run that was stopped, or killed, goes on bit for bit as one that was not."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from chuk_lib.errors import DataError
from chuk_lib.events import read_events
from chuk_lib.training import resume
from chuk_lib.training import train as train_job
from chuk_lib.training.completions_log import read_completions
from tests.conftest import chuk_environment
from tests.training.conftest import assert_same_bits, weights_of, write_rows
from tests.training.grpo_runs import make_config, prompt_rows, train
from tests.training.test_resume import optimizer_bits, stop_after, wait_for_checkpoint

CASES = {
    "full": {},
    "lora": {"use_lora": True, "lora_target_modules": ("all-linear",)},
    "dropout": {"use_lora": True, "lora_dropout": 0.3, "num_iterations": 2},
    "several updates": {"num_iterations": 2, "steps_per_generation": 2},
    "reference": {"beta": 0.2, "num_iterations": 2},
    "reference of adapters": {"beta": 0.2, "use_lora": True},
    "moving reference": {"beta": 0.2, "sync_ref_model": True, "ref_model_sync_steps": 2},
    "moving reference of adapters": {
        "beta": 0.2,
        "sync_ref_model": True,
        "ref_model_sync_steps": 2,
        "use_lora": True,
    },
    "adaptive entropy": {
        "use_adaptive_entropy": True,
        "entropy_target": 100.0,
        "entropy_coef": 0.1,
    },
    "dynamic sampling": {"rewards": ("low",), "dynamic_sampling": 2},
    "lag": {"lag": 2},
    "lag, moving reference": {
        "lag": 1,
        "beta": 0.2,
        "sync_ref_model": True,
        "ref_model_sync_steps": 2,
    },
    "lag, dynamic sampling": {"lag": 1, "rewards": ("low",), "dynamic_sampling": 2},
    "rloo": {"advantage_estimator": "rloo"},
    "evaluation": {"eval_data": "DATA", "eval_steps": 2},
}


def logged(run):
    """Every logged number that does not depend on the clock or the machine's memory."""
    timed = ("second", "memory", "step_time")
    return [
        (
            event.kind,
            event.step,
            {k: v for k, v in event.data.items() if not any(word in k for word in timed)},
        )
        for event in read_events(run / "events.jsonl")
        if event.kind in ("step", "eval")
    ]


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_stopping_and_resuming_changes_no_bit(tiny_model_dir, tmp_path, changes):
    if "eval_data" in changes:
        changes = changes | {"eval_data": str(write_rows(tmp_path / "valid.jsonl", prompt_rows(3)))}
    whole = train_job(
        "grpo", make_config(tmp_path, tiny_model_dir, "whole", max_steps=6, **changes)
    )
    config = make_config(tmp_path, tiny_model_dir, "parts", max_steps=6, **changes)
    part = train_job("grpo", config, should_stop=stop_after(3))
    assert (part.reason, part.steps) == ("stopped", 3)
    rest = resume(part.run_dir)
    assert (rest.reason, rest.steps) == ("done", 6)
    assert optimizer_bits(whole.run_dir) == optimizer_bits(rest.run_dir)
    assert_same_bits(weights_of(whole.checkpoint), weights_of(rest.checkpoint))
    assert logged(whole.run_dir) == logged(rest.run_dir)
    lines = [list(read_completions(run.run_dir / "completions.jsonl")) for run in (whole, rest)]
    assert lines[0] == lines[1]


def test_kill_9_loses_nothing_but_steps(tiny_model_dir, tmp_path):
    changes = {"max_steps": 25, "checkpoint_interval": 5, "beta": 0.1, "num_iterations": 2}
    whole = train(tmp_path, tiny_model_dir, "whole", **changes)
    config = make_config(tmp_path, tiny_model_dir, "killed", **changes)
    command = [
        sys.executable,
        "-m",
        "chuk_cli",
        "train",
        "grpo",
        "--model",
        config.model,
        "--data",
        config.data,
        "--output",
        config.output,
        "--max-steps",
        "25",
        "--batch-size",
        "8",
        "--num-generations",
        "4",
        "--max-completion-length",
        "8",
        "--learning-rate",
        "3e-3",
        "--beta",
        "0.1",
        "--reward",
        config.rewards[0],
        "--set",
        "gradient_accumulation_steps=1",
        "--set",
        "num_iterations=2",
        "--set",
        "checkpoint_interval=5",
    ]
    environment = chuk_environment()
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    wait_for_checkpoint(tmp_path / "killed", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    rest = resume(tmp_path / "killed")
    assert rest.steps == 25
    assert_same_bits(weights_of(whole.run_dir), weights_of(tmp_path / "killed"))
    lines = [
        list(read_completions(tmp_path / name / "completions.jsonl"))
        for name in ("whole", "killed")
    ]
    assert lines[0] == lines[1]


def test_changed_prompts_and_changed_columns_are_refused(tiny_model_dir, tmp_path):
    run = train(tmp_path, tiny_model_dir, max_steps=2).run_dir
    rows = prompt_rows()
    write_rows(tmp_path / "prompts.jsonl", [rows[0] | {"answer": "other"}, *rows[1:]])
    with pytest.raises(DataError, match="not what"):
        resume(run, changes={"max_steps": 3})


def test_a_run_is_resumed_from_another_folder(tiny_model_dir, tmp_path, monkeypatch):
    config = make_config(tmp_path, tiny_model_dir, max_steps=2)
    monkeypatch.chdir(tmp_path)
    run = train_job(
        "grpo", replace(config, rewards=("rewards.py:even",), data="prompts.jsonl")
    ).run_dir
    monkeypatch.chdir("/")
    assert resume(run, changes={"max_steps": 3}).steps == 3
