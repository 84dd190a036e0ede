"""Training: one engine, and the algorithms that run on it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "CPOConfig": "preference_config",
    "DPOConfig": "preference_config",
    "DPOTrainer": "preference_trainer",
    "KTOConfig": "preference_config",
    "ORPOConfig": "preference_config",
    "PreferenceTrainer": "preference_trainer",
    "RewardConfig": "preference_config",
    "RewardTrainer": "reward_trainer",
    "GRPOConfig": "grpo_config",
    "GRPOTrainer": "grpo_trainer",
    "PPOConfig": "ppo_config",
    "PPOTrainer": "ppo_trainer",
    "SFTConfig": "config",
    "TrainerConfig": "config",
    "SFTTrainer": "sft_trainer",
    "RunResult": "run",
    "train": "jobs",
    "train_sft": "jobs",
    "resume": "jobs",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
