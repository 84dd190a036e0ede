"""Training: one engine, and the algorithms that run on it.

Read `algorithm`, `engine`, `run` and `sft_trainer`, in this order; `recipes` lists all algorithms.
`preference` learns from pairs and labels, `online` from what the model writes; `losses` and `utils`
are what they compute with. `pipeline` runs several trainings, `measuring` measures and compares
models, `planning` says what a run would need."""

from __future__ import annotations

from typing import Any

from chuk_lib.utils.lazy import exported

_EXPORTS = {
    "CPOConfig": "preference.config",
    "DPOConfig": "preference.config",
    "DPOTrainer": "preference.trainer",
    "KTOConfig": "preference.config",
    "ORPOConfig": "preference.config",
    "PreferenceTrainer": "preference.trainer",
    "RewardConfig": "preference.config",
    "RewardTrainer": "preference.reward_trainer",
    "GRPOConfig": "online.grpo_config",
    "GRPOTrainer": "online.grpo_trainer",
    "PPOConfig": "online.ppo_config",
    "PPOTrainer": "online.ppo_trainer",
    "SFTConfig": "config",
    "RunConfig": "config",
    "TrainerConfig": "config",
    "SFTTrainer": "sft_trainer",
    "RunResult": "run",
    "train": "jobs",
    "train_sft": "jobs",
    "resume": "jobs",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    return exported(__name__, _EXPORTS, name)
