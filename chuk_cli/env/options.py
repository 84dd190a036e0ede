"""Options of the commands that play: `chuk env`, and `chuk eval`, `chuk infer` and `chuk data
sample` where a model plays with tools."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from chuk_cli.out import Out
from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from chuk_lib.models.config import Implementation
    from chuk_lib.training.online.episode import MakePlayer


def _tools(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Tools", **more)


EnvironmentArgument = Annotated[
    str | None, typer.Argument(metavar="FILE.py:CLASS", help="The environment.")
]
MoreToolsOption = Annotated[
    list[str] | None,
    typer.Option("--tool", metavar="FILE.py:FUNCTION", help="One more tool; repeat it."),
]
SecondsOption = Annotated[
    float, typer.Option("--max-tool-seconds", metavar="S", min=0.1, help="Deadline of a call.")
]
PlayerOption = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="MODEL", help="Who plays; unset: you, on stdin."),
]
HeatOption = Annotated[
    float, typer.Option("--temperature", "-t", min=0.0, help="Of the model; 0: the likeliest.")
]
EnvOption = Annotated[
    str | None,
    _tools(
        "--env",
        metavar="FILE.py:CLASS",
        help="Play in it: a class of yours, or textarena:NAME, gym:ID …",
    ),
]
ToolOption = Annotated[
    list[str] | None,
    _tools("--tool", metavar="FILE.py:FUNCTION", help="A function to call; repeat it."),
]
McpOption = Annotated[
    list[str] | None,
    _tools("--mcp", metavar="SERVER", help="Tools of an MCP server; repeat it."),
]
RowOption = Annotated[
    str | None,
    _tools("--row", metavar="JSON", help="The row that is played: `prompt` and other columns."),
]
TurnsOption = Annotated[
    int | None, _tools("--max-turns", min=1, help="Turns of the model in a play.  [default: 8]")
]
CallSecondsOption = Annotated[
    float | None,
    _tools("--max-tool-seconds", metavar="S", min=0.1, help="Deadline of a call.  [default: 10]"),
]
ToolTokensOption = Annotated[
    int | None,
    _tools("--max-tool-tokens", min=1, help="Most of a tool's answer that is shown."),
]


@dataclass(frozen=True)
class PlayOptions:
    """What a model plays with, as it was typed; named as the settings of a training are."""

    environment: str | None = None
    tools: list[str] | None = None
    mcp: list[str] | None = None
    max_turns: int | None = None
    max_tool_seconds: float | None = None
    max_tool_tokens: int | None = None

    @property
    def has_tools(self) -> bool:
        """Whether anything is played with."""
        return bool(self.environment or self.tools or self.mcp)

    def make_player(self, out: Out) -> MakePlayer | None:
        """What makes the player, exactly as a training does; None without tools. Raises ConfigError
        for limits of plays that there are not."""
        given: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        given = {name: value for name, value in given.items() if value}
        if not self.has_tools:
            self.refuse_idle()
            return None
        from chuk_lib.env import player_maker
        from chuk_lib.training.online.config import OnlineConfig

        given |= {name: tuple(given[name]) for name in ("tools", "mcp") if name in given}
        return player_maker(OnlineConfig(**given), out.warn)

    def refuse_idle(self, row: str | None = None) -> None:
        """Raise ConfigError for what says something of plays where there are none."""
        names = ("max_turns", "max_tool_seconds", "max_tool_tokens")
        given = [name for name in names if getattr(self, name) is not None]
        given += ["row"] if row is not None else []
        if given and not self.has_tools:
            flag = f"--{given[0].replace('_', '-')}"
            raise ConfigError(f"`{flag}` is of plays, and there are none", "add --env or --tool")

    def player(
        self, out: Out, model: str, adapter: str | None = None, implementation: str = "auto"
    ) -> Any:
        """The player, with a model that is loaded for it. There must be tools."""
        make_player = self.make_player(out)
        assert make_player is not None
        from chuk_lib.models import load_model

        with out.status(f"loading `{model}`"):
            which = cast("Implementation", implementation)
            return make_player(*load_model(model, adapter=adapter, implementation=which))

    def rewards(self, named: list[str] | None) -> tuple[str, ...]:
        """The rewards that were named, and the one that the environment gives itself."""
        from chuk_lib.env.files import with_own_reward

        return with_own_reward(self.environment, tuple(named or ()))
