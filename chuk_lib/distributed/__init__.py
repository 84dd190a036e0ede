"""Work that others do while a run goes on: rollout workers and a parameter server, on Ray. Ray is
loaded when one of them is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chuk_lib.utils.lazy import exported

if TYPE_CHECKING:
    from chuk_lib.distributed.rollouts import RayPlayer as RayPlayer
    from chuk_lib.distributed.rollouts import rollout_player as rollout_player

_HOMES = {"RayPlayer": "rollouts", "rollout_player": "rollouts"}


def __getattr__(name: str) -> Any:
    return exported(__name__, _HOMES, name)
