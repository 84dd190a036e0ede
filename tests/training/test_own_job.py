"""A job of one's own: whatever has an algorithm trains with the settings of any run, and with no
others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
import yaml

from chuk_lib.config.settings import settings_of
from chuk_lib.errors import ConfigError
from chuk_lib.events import read_events
from chuk_lib.training.algorithm import Algorithm, Arrays, Loss, Update
from chuk_lib.training.config import LanguageModelConfig, RunConfig, TrainerConfig
from chuk_lib.training.run import Job, RunResult, reopen, run_training


class Regression(Algorithm):
    """A line through points of y = 2x + 1."""

    def __init__(self) -> None:
        self.model = nn.Linear(1, 1)
        self.model.update({"weight": mx.zeros((1, 1)), "bias": mx.zeros(1)})

    def updates(self, step: int) -> Iterator[Update]:
        x = mx.arange(4, dtype=mx.float32)[:, None] + step % 3
        yield Update([{"x": x, "y": 2 * x + 1}], 4.0, {})

    def loss(self, model: nn.Module, batch: Arrays) -> Loss:
        return Loss(((model(batch["x"]) - batch["y"]) ** 2).sum(), mx.array(4.0), {})

    def where(self, step: int) -> str:
        return f"step {step}"


def train(output: Path, config: RunConfig, **options: object) -> RunResult:
    config = RunConfig(
        **{name: getattr(config, name) for name in settings_of(RunConfig)} | {"output": str(output)}
    )
    return run_training(Job(algorithm=Regression(), name="line", steps=12), config, **options)  # type: ignore[arg-type]


def test_a_run_s_settings_know_no_language_model(tmp_path: Path) -> None:
    own, language = set(settings_of(RunConfig)), set(settings_of(LanguageModelConfig))
    assert not own & language
    assert set(settings_of(TrainerConfig)) == own | language
    result = train(tmp_path / "run", RunConfig(learning_rate=0.1))
    assert set(yaml.safe_load((result.run_dir / "config.yaml").read_text())) == own
    started = read_events(result.run_dir / "events.jsonl")[0].data
    assert (started["algorithm"], started["steps"], "model" in started) == ("line", 12, False)


def test_max_steps_ends_a_job_s_plan_and_its_schedule(tmp_path: Path) -> None:
    shared = {"learning_rate": 0.1, "log_interval": 1}
    assert train(tmp_path / "whole", RunConfig(**shared)).steps == 12  # type: ignore[arg-type]
    short = train(tmp_path / "short", RunConfig(max_steps=4, **shared))  # type: ignore[arg-type]
    rates = [
        event.data["learning_rate"]
        for event in read_events(short.run_dir / "events.jsonl")
        if event.kind == "step"
    ]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert train(tmp_path / "long", RunConfig(max_steps=100, **shared)).steps == 12  # type: ignore[arg-type]


def test_settings_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`num_cycles` does nothing"):
        train(tmp_path / "run", RunConfig(learning_rate=0.1, num_cycles=2.0))
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_exactly_where_it_stopped(tmp_path: Path) -> None:
    config = RunConfig(learning_rate=0.1, checkpoint_interval=4)
    whole = train(tmp_path / "whole", config)
    steps = iter([False] * 5 + [True] * 9)
    train(tmp_path / "part", config, should_stop=lambda: next(steps))
    done = train(tmp_path / "part", config, open_run=lambda: reopen(tmp_path / "part"))
    files = [
        folder / "checkpoints" / "step_000012" / "model.safetensors"
        for folder in (whole.run_dir, done.run_dir)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
