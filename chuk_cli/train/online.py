"""What the commands that learn from rewards share: their option, a dry run, or the run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from chuk_cli.completion import rewards
from chuk_cli.out import Out, glyph, paint
from chuk_cli.plan import heading, settings_lines, table, tell_plan
from chuk_cli.train.watching import require, run
from chuk_lib.config.settings import Resolved, as_dict

if TYPE_CHECKING:
    from chuk_lib.training.online.episode import MakePlayer
    from chuk_lib.training.online.plan import PromptPreview
    from chuk_lib.training.planning.dry_run import DryRun

RewardOption = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        "-r",
        metavar="NAME",
        rich_help_panel="Rewards",
        autocompletion=rewards,
        help=(
            "What completions are worth: NAME[:args][=weight] or file.py:function[=weight]; repeat"
            " it. Setting `rewards`."
        ),
    ),
]


ToolOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tool",
        metavar="FILE.py:FUNCTION",
        rich_help_panel="Tools",
        help="A function that the model may call while it answers; repeat it. Setting `tools`.",
    ),
]


McpOption = Annotated[
    list[str] | None,
    typer.Option(
        "--mcp",
        metavar="SERVER",
        rich_help_panel="Tools",
        help="Tools of an MCP server: a file with mcpServers, a command line, or a URL; repeat it."
        " Setting `mcp`.",
    ),
]
McpToolOption = Annotated[
    list[str] | None,
    typer.Option(
        "--mcp-tool",
        metavar="NAME",
        rich_help_panel="Tools",
        help="Take only this tool of the MCP servers: name, pattern or SERVER:NAME; repeat it."
        " Setting `mcp_tools`.",
    ),
]


class ToolOptions(NamedTuple):
    """The options that name tools, as they were typed."""

    functions: list[str] | None
    mcp: list[str] | None
    mcp_tools: list[str] | None

    def into(self, settings: Resolved[Any]) -> Resolved[Any]:
        """The settings with what was typed, and files that calls are recorded in absolute."""
        settings = _typed(settings, "tools", "--tool", self.functions)
        settings = _typed(settings, "mcp", "--mcp", self.mcp)
        settings = _typed(settings, "mcp_tools", "--mcp-tool", self.mcp_tools)
        record = settings.value.mcp_record
        if record is None:
            return settings
        value = replace(settings.value, mcp_record=str(Path(record).absolute()))
        return Resolved(value, settings.origins)


def run_or_plan(
    out: Out,
    algorithm: str,
    settings: Resolved[Any],
    reward: list[str] | None,
    tools: ToolOptions,
    dry_run: bool,
    overwrite: bool,
) -> None:
    """Train with `algorithm`, or print what the run would be; then nothing is written."""
    settings = _typed(settings, "rewards", "--reward", reward)
    settings = with_own_reward(tools.into(settings))
    require(settings.value)
    make_player = maker_of(settings.value, out.warn)
    if not dry_run:
        run(out, algorithm, settings, overwrite, make_player)
        return
    with out.status("dry run: loading model and data"):
        from chuk_lib.training.online.plan import plan_online

        plan = plan_online(
            settings.value,
            origins=settings.origins,
            overwrite=overwrite,
            make_player=make_player,
        )
    tell_plan(out, plan, _lines(plan), plan.steps)


def maker_of(config: Any, tell: Callable[[str], None]) -> MakePlayer | None:
    """What makes the player that settings ask for: rollout workers, or plays with tools; None for
    the model alone. `tell` gets what happens to servers of tools."""
    from chuk_lib.distributed import rollout_player
    from chuk_lib.env import player_maker

    return rollout_player(config) or player_maker(config, tell)


def _typed(
    settings: Resolved[Any], name: str, flag: str, values: list[str] | None
) -> Resolved[Any]:
    """The settings with a list that was typed, which replaces that of files."""
    if not values:
        return settings
    changed = replace(settings.value, **{name: tuple(values)})
    return Resolved(changed, settings.origins | {name: flag})


def with_own_reward(settings: Resolved[Any]) -> Resolved[Any]:
    """The settings with the reward that an environment gives itself, as in TRL. Raises ConfigError
    for an environment that cannot be loaded."""
    config = settings.value
    if not config.environment:
        return settings
    from chuk_lib.env import files

    rewards = files.with_own_reward(config.environment, config.rewards)
    if rewards == config.rewards:
        return settings
    changed = replace(config, rewards=rewards)
    return Resolved(changed, settings.origins | {"rewards": "get_reward of the environment"})


def _lines(plan: DryRun) -> Iterator[str]:
    yield from settings_lines(as_dict(plan.config), plan.origins)
    yield ""
    for row in plan.rows:
        yield from _prompt(row)
    yield from table(_facts(plan))


def _prompt(row: PromptPreview) -> Iterator[str]:
    yield f"{row.source}  {paint(f'{row.tokens} tokens', 'secondary', sys.stdout)}"
    parts = {"prompt": row.text, **row.columns}
    width = max(10, *map(len, parts))
    for name, text in parts.items():
        for number, line in enumerate(text.removesuffix("\n").split("\n")):
            yield f"  {name if number == 0 else '':<{width}} {glyph('│', '|', sys.stdout)} {line}"
    yield ""


def _facts(plan: DryRun) -> Iterator[tuple[str, str]]:
    config, report = plan.config, plan.report
    weights = (plan.rewards or {}).items()
    yield from heading(plan)
    dropped = f", {report.dropped:,} left out" if report.dropped else ""
    yield "prompts", f"{report.kept:,}{dropped}; up to {report.longest:,} tokens"
    yield (
        "rewards",
        ", ".join(name if weight == 1 else f"{name} × {weight:g}" for name, weight in weights),
    )
    yield "steps", f"{plan.steps:,} ({plan.epochs:.2f} epochs)"
    group, prompts = config.num_generations, plan.prompts_per_step
    updates = "1 update" if plan.updates_per_step == 1 else f"{plan.updates_per_step} updates"
    yield (
        "step",
        f"{prompts} prompts × {group} = {plan.completions_per_step} completions, {updates}",
    )
    yield "time, memory", "not estimated: they depend on how long the completions get"
    yield (
        "completions",
        f"up to {config.max_completion_length:,} tokens, temperature {config.temperature:g}",
    )
