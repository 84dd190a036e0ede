"""Environments and tools by what the command line and settings call them: `FILE.py:NAME`."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.env.adapters import ADAPTERS, adapted
from chuk_lib.env.tools import Function
from chuk_lib.errors import ConfigError
from chuk_lib.rewards.user_file import import_file
from chuk_lib.training.online.config import OnlineConfig

if TYPE_CHECKING:
    from chuk_lib.env.mcp.client import McpClient
    from chuk_lib.training.config import TrainerConfig
    from chuk_lib.training.online.episode import Player


OWN_REWARD = "environment"


def player_maker(
    config: TrainerConfig, tell: Callable[[str], None] = lambda text: None
) -> Callable[[Any, Any], Player] | None:
    """What makes the player of a run with the environment and tools of its settings; None for
    settings that name none. The files are the user's own code, and run as such.

    MCP servers are started, and live as long as what is returned; `tell` gets a line for whatever
    happens to one. Raises ConfigError for a file that is not there or does not import, and a name
    that it lacks; McpError for a server that does not answer."""
    if not isinstance(config, OnlineConfig) or not config.has_tools:
        return None
    modules: dict[Path, ModuleType] = {}
    environment = load_environment(config.environment, modules) if config.environment else None
    functions = [load_tool(one, modules) for one in config.tools]
    client = _mcp_client(config, tell) if config.mcp else None
    asked = sorted(client.functions()) if client is not None else []
    functions += client.functions().values() if client is not None else []

    def make(model: Any, tokenizer: LoadedTokenizer) -> Player:
        from chuk_lib.env.play import Limits, ToolPlayer
        from chuk_lib.utils.identity import fingerprint

        limits = Limits(config.max_turns, config.max_tool_seconds, config.max_tool_tokens)
        player = ToolPlayer(model, tokenizer, functions, environment, limits, config.rollout_tokens)
        player.identity = f"tools of files {fingerprint(sorted(modules))[:16]}"
        player.identity += f", of MCP servers: {', '.join(asked)}" if asked else ""
        return player

    if client is not None:
        weakref.finalize(make, client.close)
    return make


def _mcp_client(config: OnlineConfig, tell: Callable[[str], None]) -> McpClient:
    """The servers of some settings, connected."""
    from chuk_lib.env.mcp.client import McpClient
    from chuk_lib.env.mcp.servers import mcp_servers
    from chuk_lib.env.mcp.supervisor import McpLimits

    servers, notes = mcp_servers(config.mcp)
    for note in notes:
        tell(note)
    limits = McpLimits(config.mcp_connect_seconds, config.max_tool_seconds)
    record = Path(config.mcp_record) if config.mcp_record else None
    return McpClient(servers, limits, config.mcp_tools or None, record, tell).__enter__()


def load_environment(name: str, modules: dict[Path, ModuleType]) -> type:
    """The class `FILE.py:CLASS`, or one that an adapter makes of `KIND:NAME`."""
    made = adapted(name)
    if made is not None:
        return made
    found = _load(name, "environment", modules)
    if not inspect.isclass(found):
        raise ConfigError(f"environment `{name}` is no class", "name a class: FILE.py:CLASS")
    return found


def has_reward(environment: type) -> bool:
    """Whether an environment says itself what was done in it is worth."""
    return callable(getattr(environment, "get_reward", None))


def with_own_reward(environment: str | None, rewards: tuple[str, ...]) -> tuple[str, ...]:
    """The rewards and, as in TRL, the one that an environment gives itself. Raises ConfigError for
    an environment that cannot be loaded, or is named as a reward and gives none."""
    if not environment:
        return rewards
    named = any(one.partition("=")[0] == OWN_REWARD for one in rewards)
    own = has_reward(load_environment(environment, {}))
    if named and not own:
        raise ConfigError(
            f"reward `{OWN_REWARD}`: `{environment}` has no method `get_reward`",
            "give it one, or choose another reward",
        )
    return (*rewards, OWN_REWARD) if own and not named else rewards


def load_tool(name: str, modules: dict[Path, ModuleType]) -> Function:
    """The function `FILE.py:FUNCTION`."""
    found = _load(name, "tool", modules)
    if inspect.isclass(found) or not callable(found):
        raise ConfigError(f"tool `{name}` is no function", "name a function: FILE.py:FUNCTION")
    function: Function = found
    return function


def offered(file: str) -> tuple[list[type], list[Function]]:
    """The environments (classes with `reset`) and the functions that a file itself defines, in its
    order. Raises ConfigError for a file that is not there or does not import."""
    module = _module(file, "environment", {})
    own = [
        one
        for key, one in vars(module).items()
        if not key.startswith("_") and getattr(one, "__module__", None) == module.__name__
    ]
    environments = [one for one in own if inspect.isclass(one) and hasattr(one, "reset")]
    return environments, [one for one in own if inspect.isfunction(one)]


def _load(name: str, what: str, modules: dict[Path, ModuleType]) -> Any:
    file, colon, item = name.rpartition(":")
    if not colon or not file.endswith(".py") or not item:
        raise ConfigError(
            f"{what} `{name}` is not FILE.py:NAME",
            "for example `mine.py:Calculator`"
            + (f", or one of {', '.join(ADAPTERS)} and a name" if what == "environment" else ""),
        )
    module = _module(file, what, modules)
    found = getattr(module, item, None)
    if found is None:
        own = [key for key in vars(module) if not key.startswith("_")]
        raise ConfigError(
            f"{what} file `{file}` has no `{item}`", f"it has: {', '.join(own) or 'nothing'}"
        )
    return found


def _module(file: str, what: str, modules: dict[Path, ModuleType]) -> ModuleType:
    path = Path(file).expanduser()
    if not path.is_file():
        raise ConfigError(f"{what} file `{file}` does not exist", "check the path: FILE.py:NAME")
    path = path.resolve()
    if path not in modules:
        modules[path] = import_file(path, file, f"{what} file")
    return modules[path]
