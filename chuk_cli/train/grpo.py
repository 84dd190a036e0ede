"""`chuk train grpo`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from chuk_cli.completion import words
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.settings import with_settings
from chuk_cli.train.online import (
    McpOption,
    McpToolOption,
    RewardOption,
    ToolOption,
    ToolOptions,
    run_or_plan,
)
from chuk_lib.config.settings import Resolved
from chuk_lib.errors import ConfigError
from chuk_lib.training.online.grpo_config import GRPOConfig, trl_values

PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="trl: TRL 1.16's defaults where chuk has others.",
        autocompletion=words("trl"),
    ),
]


@with_settings(GRPOConfig)
def grpo(
    settings: Resolved[GRPOConfig],
    reward: RewardOption = None,
    tool: ToolOption = None,
    mcp: McpOption = None,
    mcp_tool: McpToolOption = None,
    preset: PresetOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Reinforcement learning: completions of each prompt are compared with each other by rewards.

    Data: rows with `prompt` (text or messages) and the columns that rewards need, such as `answer`;
    rows for supervised fine-tuning do too. RLOO and REINFORCE++ by --advantage-estimator, other
    losses by --loss-type. Prints the run directory. Ctrl-C finishes the step and saves; a second
    one quits at once.

    Examples:
      chuk train grpo --model my-model --data sums.jsonl --reward exact_match --max-steps 100
      chuk train grpo -m Qwen/Qwen3-0.6B -d math.jsonl --reward numeric --reward format=0.2 --lora
      chuk train grpo --model my-model --data prompts.jsonl --reward rewards.py:brevity --dry-run
      chuk train grpo --model my-model --data sums.jsonl --reward numeric --preset trl
      chuk train grpo -m my-model -d sums.jsonl --reward numeric --tool calculator.py:calculate
      chuk train grpo -m my-model -d games.jsonl --env games.py:Wordle --max-turns 6
      chuk train grpo -m my-model -d dates.jsonl --reward exact_match --mcp mcp-server-time
      chuk train grpo -m my-model -d sums.jsonl --reward numeric --rollout-workers 2
    """
    tools, chosen = ToolOptions(tool, mcp, mcp_tool), with_preset(settings, preset)
    run_or_plan(Out.of(json, quiet), "grpo", chosen, reward, tools, dry_run, overwrite)


def with_preset(settings: Resolved[GRPOConfig], preset: str | None) -> Resolved[GRPOConfig]:
    """The settings with TRL's values where nobody gave one. Raises ConfigError for an unknown
    preset."""
    if preset is None:
        return settings
    if preset != "trl":
        raise ConfigError(f"there is no preset `{preset}`", "there is: trl")
    values = trl_values(settings.value.lora is not None, settings.value.chosen_lag)
    taken = {name: value for name, value in values.items() if settings.origins[name] == "default"}
    origins = settings.origins | dict.fromkeys(taken, "--preset trl")
    return Resolved(replace(settings.value, **taken), origins)
