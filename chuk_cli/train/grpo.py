"""`chuk train grpo`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.humanize import count
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out, glyph, paint
from chuk_cli.plan import settings_lines
from chuk_cli.settings import with_settings
from chuk_cli.train.watching import require, run
from chuk_lib.config.settings import Resolved, as_dict
from chuk_lib.errors import ConfigError
from chuk_lib.training.grpo_config import GRPOConfig, trl_values

if TYPE_CHECKING:
    from chuk_lib.training.online_plan import OnlinePlan, PromptPreview

RewardOption = Annotated[
    list[str] | None,
    typer.Option(
        "--reward", "-r", metavar="NAME", rich_help_panel="Rewards",
        help="What completions are worth: NAME[:args][=weight] or file.py:function[=weight]; repeat it. "
        "Setting `rewards`.",
    ),
]  # fmt: skip
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help="trl: TRL 1.16's defaults where chuk has others."),
]


@with_settings(GRPOConfig)
def grpo(
    settings: Resolved[GRPOConfig],
    reward: RewardOption = None,
    preset: PresetOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Reinforcement learning: completions of each prompt are compared with each other by rewards.

    Data: rows with `prompt` (text or messages) and the columns that rewards need, such as `answer`; rows for
    supervised fine-tuning do too. RLOO and REINFORCE++ by --advantage-estimator, other losses by --loss-type. Prints
    the run directory. Ctrl-C finishes the step and saves; a second one quits at once.

    Examples:
      chuk train grpo --model my-model --data sums.jsonl --reward exact_match --max-steps 100
      chuk train grpo --model Qwen/Qwen3-0.6B --data math.jsonl --reward numeric --reward format=0.2 --lora
      chuk train grpo --model my-model --data prompts.jsonl --reward rewards.py:brevity --dry-run
      chuk train grpo --model my-model --data sums.jsonl --reward numeric --preset trl
    """
    out = Out.of(json, quiet)
    settings = with_rewards(with_preset(settings, preset), reward)
    require(settings.value)
    if dry_run:
        show_plan(out, settings, overwrite)
        return
    run(out, "grpo", settings, overwrite)


def with_rewards(settings: Resolved[Any], reward: list[str] | None) -> Resolved[Any]:
    """The settings with the rewards that were typed, which replace those of files."""
    if not reward:
        return settings
    return Resolved(replace(settings.value, rewards=tuple(reward)), settings.origins | {"rewards": "--reward"})


def with_preset(settings: Resolved[GRPOConfig], preset: str | None) -> Resolved[GRPOConfig]:
    """The settings with TRL's values where nobody gave one. Raises ConfigError for an unknown preset."""
    if preset is None:
        return settings
    if preset != "trl":
        raise ConfigError(f"there is no preset `{preset}`", "there is: trl")
    values = trl_values(uses_lora=settings.value.lora is not None)
    taken = {name: value for name, value in values.items() if settings.origins[name] == "default"}
    origins = settings.origins | dict.fromkeys(taken, "--preset trl")
    return Resolved(replace(settings.value, **taken), origins)


def show_plan(out: Out, settings: Resolved[GRPOConfig], overwrite: bool) -> None:
    """Print what the run would be. Nothing is written."""
    with out.status("dry run: loading model and data"):
        from chuk_lib.training.online_plan import plan_grpo

        plan = plan_grpo(settings.value, origins=settings.origins, overwrite=overwrite)
    out.result(plan.as_dict(), human="\n".join(_lines(plan)), quiet=str(plan.steps))
    for note in plan.notes:
        out.warn(note)
    out.say("dry run: nothing was written")


def _lines(plan: OnlinePlan) -> Iterator[str]:
    yield from settings_lines(as_dict(plan.config), plan.origins)
    yield ""
    for row in plan.rows:
        yield from _prompt(row)
    pairs = dict(_facts(plan))
    width = max(map(len, pairs))
    for name, value in pairs.items():
        yield f"{name:<{width}}  {value}"


def _prompt(row: PromptPreview) -> Iterator[str]:
    yield f"{row.source}  {paint(f'{row.tokens} tokens', 'secondary', sys.stdout)}"
    parts = {"prompt": row.text, **row.columns}
    for name, text in parts.items():
        for number, line in enumerate(text.removesuffix("\n").split("\n")):
            yield f"  {name if number == 0 else '':<10} {glyph('│', '|', sys.stdout)} {line}"
    yield ""


def _facts(plan: OnlinePlan) -> Iterator[tuple[str, str]]:
    config, report = plan.config, plan.report
    rewards = ", ".join(name if weight == 1 else f"{name} × {weight:g}" for name, weight in plan.rewards.items())
    yield "run directory", plan.output
    yield "device", plan.device
    yield "trained", f"{count(plan.trainable_parameters)} of {count(plan.parameters)} parameters"
    dropped = f", {report.dropped:,} left out" if report.dropped else ""
    yield "prompts", f"{report.kept:,}{dropped}; up to {report.longest:,} tokens"
    yield "rewards", rewards
    yield "steps", f"{plan.steps:,} ({plan.epochs:.2f} epochs)"
    group, prompts = config.num_generations, plan.prompts_per_step
    yield (
        "step",
        f"{prompts} prompts × {group} completions = {plan.completions_per_step}, {plan.updates_per_step} updates",
    )
    yield "completions", f"up to {config.max_completion_length:,} tokens, temperature {config.temperature:g}"
