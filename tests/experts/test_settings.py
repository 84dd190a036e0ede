"""Every setting of `chuk train ppo --expert` changes something, and docs/experts.md has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.config.settings import settings_of
from chuk_lib.errors import ConfigError
from chuk_lib.experts.config import ExpertPPOConfig
from chuk_lib.experts.trainer import train_expert
from tests.conftest import ROOT

pytest.importorskip("gymnasium")

SMALL: dict[str, Any] = {
    "env": "gym:CartPole-v1",
    "num_envs": 2,
    "num_steps": 24,
    "num_epochs": 2,
    "total_timesteps": 192,
    "hidden_dim": 4,
    "eval_episodes": 2,
    "checkpoint_interval": 2,
    "eval_steps": 2,
    "log_interval": 1,
}
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "expert": ({}, {"expert": "lstm"}),
    "env": ({}, {"env": "gym:Acrobot-v1"}),
    "observe": ({}, {"observe": ("0", "2")}),
    "hidden_dim": ({}, {"hidden_dim": 5}),
    "num_layers": ({}, {"num_layers": 2}),
    "normalize_observations": ({}, {"normalize_observations": False}),
    "normalize_rewards": ({}, {"normalize_rewards": False}),
    "total_timesteps": ({}, {"total_timesteps": 96}),
    "num_envs": ({}, {"num_envs": 4}),
    "num_steps": ({}, {"num_steps": 12}),
    "num_epochs": ({}, {"num_epochs": 1}),
    "num_mini_batches": ({}, {"num_mini_batches": 2}),
    "learning_rate": ({}, {"learning_rate": 1e-2}),
    "lr_scheduler_type": ({}, {"lr_scheduler_type": "constant"}),
    "warmup_steps": ({}, {"warmup_steps": 4}),
    "warmup_ratio": ({}, {"warmup_ratio": 0.5}),
    "min_lr_rate": ({"lr_scheduler_type": "cosine_with_min_lr"}, {"min_lr_rate": 0.5}),
    "num_cycles": ({"lr_scheduler_type": "cosine_with_restarts"}, {"num_cycles": 3.0}),
    "lr_power": ({"lr_scheduler_type": "polynomial"}, {"lr_power": 3.0}),
    "num_decay_steps": ({"lr_scheduler_type": "warmup_stable_decay"}, {"num_decay_steps": 5}),
    "optimizer": ({}, {"optimizer": "adamw", "weight_decay": 0.5}),
    "weight_decay": ({"optimizer": "adamw"}, {"weight_decay": 0.5}),
    "adam_beta1": ({}, {"adam_beta1": 0.5}),
    "adam_beta2": ({}, {"adam_beta2": 0.9}),
    "adam_epsilon": ({}, {"adam_epsilon": 1e-2}),
    "max_grad_norm": ({"adam_epsilon": 1e-1}, {"max_grad_norm": 0.01}),
    "gamma": ({}, {"gamma": 0.5}),
    "lam": ({}, {"lam": 0.1}),
    "advantage_scale": ({"max_grad_norm": 0.0}, {"advantage_scale": "batch"}),
    "cliprange": ({"learning_rate": 3e-2}, {"cliprange": 0.001}),
    "clip_schedule": ({"learning_rate": 3e-2, "cliprange": 0.01}, {"clip_schedule": "constant"}),
    "cliprange_value": ({"learning_rate": 3e-2}, {"cliprange_value": 0.001}),
    "vf_coef": ({}, {"vf_coef": 2.0}),
    "entropy_coef": ({}, {"entropy_coef": 0.5}),
    "backend": ({"backend": "numpy"}, {"backend": "mlx"}),
    "seed": ({}, {"seed": 1}),
    "max_steps": ({}, {"max_steps": 1}),
    "eval_episodes": ({}, {"eval_episodes": 3}),
    "eval_steps": ({}, {"eval_steps": 1}),
    "checkpoint_interval": ({}, {"checkpoint_interval": 1}),
    "log_interval": ({}, {"log_interval": 2}),
    "keep_checkpoints": ({"checkpoint_interval": 1}, {"keep_checkpoints": 1}),
    "early_stopping_patience": (
        {"eval_steps": 1, "total_timesteps": 480},
        {"early_stopping_patience": 1},
    ),
}
IDLE = {"momentum": 0.5}
"""What an optimizer of experts does not read."""
ELSEWHERE = {
    "output",
    "project",
    "report_to",
    "run_name",
    "tags",
    "early_stopping_threshold",
    "checkpoint_minutes",
}


def left_behind(run: Path) -> dict[str, Any]:
    """The weights and the numbers of a run, without times."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    kept = [
        (event["kind"], event["step"])
        for event in events
        if event["kind"] in ("step", "eval", "saved")
    ]
    evals = [event["data"].get("eval_reward") for event in events if event["kind"] == "eval"]
    last = run / "checkpoints" / (run / "latest").read_text().strip()
    checkpoints = sorted(path.name for path in (run / "checkpoints").iterdir())
    return {
        "events": kept,
        "evals": evals,
        "weights": (last / "model.safetensors").read_bytes(),
        "checkpoints": checkpoints,
    }


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_changes_the_run(name: str, tmp_path: Path) -> None:
    shared, change = CHANGES[name]
    found = []
    for number, more in enumerate((shared, shared | change)):
        config = ExpertPPOConfig(**SMALL | more | {"output": str(tmp_path / str(number))})
        found.append(left_behind(train_expert(config).run_dir))
    assert found[0] != found[1]


@pytest.mark.parametrize("name", IDLE)
def test_what_would_do_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="does nothing"):
        train_expert(ExpertPPOConfig(**SMALL | {name: IDLE[name]}))


def test_every_setting_is_tried_and_documented() -> None:
    known = set(settings_of(ExpertPPOConfig))
    assert known == {*CHANGES, *IDLE, *ELSEWHERE}
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    part = page.partition("## `chuk train ppo --expert`")[2]
    own = set(settings_of(ExpertPPOConfig)) - set(settings_of(ExpertPPOConfig.__base__))
    assert not {name for name in own if f"| `{name}` |" not in part}
