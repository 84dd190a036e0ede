"""What plays with a model over several turns: tools of other programs, environments, experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chuk_lib.utils.lazy import exported

if TYPE_CHECKING:
    from chuk_lib.env.files import player_maker as player_maker
    from chuk_lib.env.play import Limits as Limits
    from chuk_lib.env.play import ToolPlayer as ToolPlayer

_HOMES = {"Limits": "play", "ToolPlayer": "play", "player_maker": "files"}


def __getattr__(name: str) -> Any:
    return exported(__name__, _HOMES, name)
