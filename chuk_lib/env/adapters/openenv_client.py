"""Environments of an OpenEnv server, `--env openenv:URL`: JSON over one WebSocket a play."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any
from urllib.request import urlopen

from chuk_lib.env.adapters import as_text, behind, seed_of
from chuk_lib.errors import ConfigError
from chuk_lib.utils.extras import need


def environment(url: str) -> type:
    """The class of a server's environment, whose tool `step` takes what its schema of actions says.
    Raises ConfigError for a server that does not answer."""
    client = need(f"environment `openenv:{url}`", "websockets.sync.client", "websockets", "openenv")
    base = url.rstrip("/")
    try:
        with urlopen(f"{base}/schema", timeout=60) as answer:
            action = json.load(answer)["action"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"`openenv:{url}` does not answer: {error}") from None

    class OpenEnvSession:
        def __init__(self) -> None:
            connected = client.connect(f"ws{base.removeprefix('http')}/ws", max_size=None)
            self._socket = ExitStack().enter_context(connected)  # it is closed with the process

        def reset(self, **row: Any) -> str:
            self._reward, self._over = 0.0, False
            return behind(row, self._ask("reset", {"seed": seed_of(row)}))

        def step(self, **action: Any) -> str:
            return "The episode is over." if self._over else self._ask("step", action)

        def get_reward(self) -> float:
            return self._reward

        def _ask(self, kind: str, data: dict[str, Any]) -> str:
            self._socket.send(json.dumps({"type": kind, "data": data}))
            found = json.loads(self._socket.recv(timeout=60))
            told = found["data"]
            if found["type"] == "error":
                raise RuntimeError(str(told.get("message", told)))
            self._reward += float(told.get("reward") or 0.0)
            self._over = bool(told.get("done"))
            return as_text(told["observation"])

    vars(OpenEnvSession)["step"].schema = _schema(action)
    return OpenEnvSession


def _schema(action: dict[str, Any]) -> dict[str, Any]:
    """The tool of which an action is the arguments."""
    told: dict[str, Any] = {k: action[k] for k in ("type", "required", "$defs") if k in action}
    told["properties"] = {k: v for k, v in action.get("properties", {}).items() if k != "metadata"}
    one = {"name": "step", "description": "Act in the environment.", "parameters": told}
    return {"type": "function", "function": one}
