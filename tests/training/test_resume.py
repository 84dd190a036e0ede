"""Resume is exact: 2n steps are n + resume n, bit for bit, whatever is switched on and however the
run ended."""

import os
import signal
import subprocess
import sys
import time

import pytest

from chuk_lib.errors import DataError, ModelError
from chuk_lib.events import read_events
from chuk_lib.training import resume, train_sft
from chuk_lib.training.checkpoints import list_checkpoints, verify_checkpoint
from tests.conftest import chuk_environment
from tests.training.conftest import assert_same_bits, toy_rows, weights_of, write_rows

CASES = {
    "full": {},
    "lora": {"use_lora": True, "lora_target_modules": ("all-linear",)},
    "dropout": {"use_lora": True, "lora_dropout": 0.3},
    "noise": {"neftune_noise_alpha": 5.0},
    "dora": {"use_dora": True},
    "packing": {"packing": True, "max_length": 96, "batch_size": 2},
    "accumulation": {"gradient_accumulation_steps": 3, "batch_size": 2},
    "cosine and warmup": {"lr_scheduler_type": "cosine", "warmup_steps": 5},
    "muon": {"optimizer": "muon", "weight_decay": 0.1},
    "adafactor": {"optimizer": "adafactor"},
    "lion": {"optimizer": "lion", "learning_rate": 3e-4},
    "sgd with momentum": {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1},
    "evaluation": {"eval_steps": 4, "checkpoint_interval": 5},
    "recomputing": {"gradient_checkpointing": True},
}


def stop_after(steps):
    """A `should_stop` that says yes after that many steps."""
    calls = iter(range(1, steps + 1))
    return lambda: next(calls) >= steps


def optimizer_bits(run):
    return (
        verify_checkpoint(list_checkpoints(run)[-1]).folder / "optimizer.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_stopping_and_resuming_changes_no_bit(sft_config, changes):
    whole = train_sft(sft_config("whole", **changes))
    part = train_sft(sft_config("parts", **changes), should_stop=stop_after(6))
    assert (part.reason, part.steps) == ("stopped", 6)
    rest = resume(part.run_dir)
    assert (rest.reason, rest.steps, whole.steps) == ("done", 12, 12)
    assert optimizer_bits(whole.run_dir) == optimizer_bits(rest.run_dir)
    assert_same_bits(weights_of(whole.checkpoint), weights_of(rest.checkpoint))
    assert log_of(whole.run_dir) == log_of(rest.run_dir)


def log_of(run):
    """Every logged number that does not depend on the clock or the machine's memory."""
    timed = ("second", "memory")
    return [
        (
            event.kind,
            event.step,
            {k: v for k, v in event.data.items() if not any(word in k for word in timed)},
        )
        for event in read_events(run / "events.jsonl")
        if event.kind in ("step", "eval")
    ]


def test_more_steps_can_be_asked_for_on_the_way(train, tmp_path):
    whole = train("whole", lr_scheduler_type="constant", max_steps=10)
    short = train("short", lr_scheduler_type="constant", max_steps=4)
    longer = resume(short.run_dir, changes={"max_steps": 10})
    assert_same_bits(weights_of(whole.run_dir), weights_of(longer.run_dir))


def test_kill_9_at_any_moment_loses_nothing_but_steps(sft_config, tmp_path):
    settings = {"max_steps": 60, "checkpoint_interval": 7}
    whole = train_sft(sft_config("whole", **settings))
    config = sft_config("killed", **settings)
    command = [
        sys.executable,
        "-m",
        "chuk_cli",
        "train",
        "sft",
        "--model",
        config.model,
        "--data",
        config.data,
        "--output",
        config.output,
        "--max-steps",
        "60",
        "--batch-size",
        "4",
        "--learning-rate",
        "3e-3",
        "--set",
        "checkpoint_interval=7",
        "--set",
        "log_interval=1",
    ]
    environment = chuk_environment()
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    run = tmp_path / "killed"
    wait_for_checkpoint(run, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    rest = resume(run)
    assert rest.steps == 60
    assert_same_bits(weights_of(whole.run_dir), weights_of(run))
    assert not list((run / "checkpoints").glob(".partial-*"))


def wait_for_checkpoint(run, process):
    deadline = time.monotonic() + 90
    while not list_checkpoints(run):
        assert process.poll() is None, "training ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_changed_data_is_refused_unless_allowed(train, toy_data):
    run = train(max_steps=4, lr_scheduler_type="constant").run_dir
    write_rows(toy_data / "train.jsonl", toy_rows(37, offset=5))
    with pytest.raises(DataError, match="not what"):
        resume(run, changes={"max_steps": 6})
    assert resume(run, changes={"max_steps": 6}, allow_changed=True).steps == 6


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(train):
    whole = train("whole", checkpoint_interval=4)
    run = train(checkpoint_interval=4).run_dir
    weights = run / "checkpoints" / "step_000012" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    events = []
    resume(run, sinks=[events.append])
    assert any(event.kind == "warning" and "step_000012" in event.data["text"] for event in events)
    assert_same_bits(weights_of(whole.run_dir), weights_of(run))


def test_a_folder_that_is_no_run_says_so(tmp_path):
    with pytest.raises(ModelError, match="not a run directory"):
        resume(tmp_path)
