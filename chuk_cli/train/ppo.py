"""`chuk train ppo`."""

from __future__ import annotations

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
from chuk_lib.training.online.ppo_config import PPOConfig


@with_settings(PPOConfig)
def ppo(
    settings: Resolved[PPOConfig],
    reward: RewardOption = None,
    tool: ToolOption = None,
    mcp: McpOption = None,
    mcp_tool: McpToolOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Reinforcement learning with a value function: PPO, of a language model or, with --expert, of
    a small policy.

    Rewards and data are those of `chuk train grpo`; each token also pays for its distance to the
    model as it was (--kl-coef). The value function is a score head on the model's own body;
    --value-model takes `copy` or a reward model instead. Prints the run directory. Ctrl-C finishes
    the step and saves; a second one quits at once.

    With --expert (gru, lstm, mlp) it trains a small policy in a Gymnasium environment, with
    settings of its own: `chuk train ppo --expert gru --help` lists them.

    Examples:
      chuk train ppo --model my-model --data sums.jsonl --reward exact_match --max-steps 100
      chuk train ppo -m Qwen/Qwen3-0.6B --data math.jsonl --reward numeric --lora --value-model copy
      chuk train ppo --model my-model --data prompts.jsonl --reward rewards.py:brevity --dry-run
    """
    tools = ToolOptions(tool, mcp, mcp_tool)
    run_or_plan(Out.of(json, quiet), "ppo", settings, reward, tools, dry_run, overwrite)
