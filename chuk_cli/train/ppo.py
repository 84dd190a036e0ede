"""`chuk train ppo`."""

from __future__ import annotations

from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.settings import with_settings
from chuk_cli.train.grpo import RewardOption, _lines, with_rewards
from chuk_cli.train.watching import require, run
from chuk_lib.config.settings import Resolved
from chuk_lib.training.ppo_config import PPOConfig


@with_settings(PPOConfig)
def ppo(
    settings: Resolved[PPOConfig],
    reward: RewardOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Reinforcement learning with a value function: PPO.

    Rewards and data are those of `chuk train grpo`; each token also pays for its distance to the model as it was
    (--kl-coef). The value function is a score head on the model's own body; --value-model takes `copy` or a reward
    model instead. Prints the run directory. Ctrl-C finishes the step and saves; a second one quits at once.

    Examples:
      chuk train ppo --model my-model --data sums.jsonl --reward exact_match --max-steps 100
      chuk train ppo --model Qwen/Qwen3-0.6B --data math.jsonl --reward numeric --lora --value-model copy
      chuk train ppo --model my-model --data prompts.jsonl --reward rewards.py:brevity --dry-run
    """
    out = Out.of(json, quiet)
    settings = with_rewards(settings, reward)
    require(settings.value)
    if dry_run:
        _show_plan(out, settings, overwrite)
        return
    run(out, "ppo", settings, overwrite)


def _show_plan(out: Out, settings: Resolved[PPOConfig], overwrite: bool) -> None:
    """Print what the run would be. Nothing is written."""
    with out.status("dry run: loading model and data"):
        from chuk_lib.training.ppo_plan import plan_ppo

        plan = plan_ppo(settings.value, origins=settings.origins, overwrite=overwrite)
    out.result(plan.as_dict(), human="\n".join(_lines(plan)), quiet=str(plan.steps))
    for note in plan.notes:
        out.warn(note)
    out.say("dry run: nothing was written")
