"""Work that others do while a run goes on: rollout workers and a parameter server, on Ray. Ray is
loaded when one of them is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chuk_lib.utils.lazy import exported

if TYPE_CHECKING:
    from chuk_lib.distributed.client import ParameterServerClient as ParameterServerClient
    from chuk_lib.distributed.client import join as join
    from chuk_lib.distributed.parameter_server import ParameterServer as ParameterServer
    from chuk_lib.distributed.rollouts import RayPlayer as RayPlayer
    from chuk_lib.distributed.rollouts import rollout_player as rollout_player

_HOMES = {
    "ParameterServer": "parameter_server",
    "ParameterServerClient": "client",
    "RayPlayer": "rollouts",
    "join": "client",
    "rollout_player": "rollouts",
}


def __getattr__(name: str) -> Any:
    return exported(__name__, _HOMES, name)
