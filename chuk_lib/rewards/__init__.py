"""Rewards: what a completion is worth. Built-in ones by name, a user's functions by file; composed
with weights.

Nothing is loaded until a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chuk_lib.utils.lazy import exported

if TYPE_CHECKING:
    from chuk_lib.rewards.loading import load_rewards as load_rewards
    from chuk_lib.rewards.reward_set import RewardSet as RewardSet
    from chuk_lib.rewards.types import Completions as Completions
    from chuk_lib.rewards.types import TrainerState as TrainerState

_HOMES = {
    "Completions": "types",
    "RewardSet": "reward_set",
    "TrainerState": "types",
    "load_rewards": "loading",
}
__all__ = ["Completions", "RewardSet", "TrainerState", "load_rewards"]


def __getattr__(name: str) -> Any:
    return exported(__name__, _HOMES, name)
