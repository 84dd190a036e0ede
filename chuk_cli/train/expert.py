"""`chuk train ppo --expert`: a small policy for a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from chuk_cli.humanize import count
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.plan import settings_lines, table
from chuk_cli.settings import with_settings
from chuk_cli.train.watching import watch
from chuk_lib.config.settings import Resolved, as_dict
from chuk_lib.experts.config import ExpertPPOConfig

if TYPE_CHECKING:
    from chuk_lib.events import Sink
    from chuk_lib.experts.trainer import ExpertPlan
    from chuk_lib.training.run import RunResult


@with_settings(ExpertPPOConfig)
def ppo(
    settings: Resolved[ExpertPPOConfig],
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Reinforcement learning with a value function: PPO of an expert, a small policy that is no
    language model.

    It learns in copies of a Gymnasium environment, with a memory (gru, lstm) or without (mlp); the
    best checkpoint is that of the highest mean of greedy episodes. Prints the run directory. Ctrl-C
    finishes the step and saves; a second one quits at once.

    Examples:
      chuk train ppo --expert gru --env gym:CartPole-v1
      chuk train ppo --expert lstm --env gym:CartPole-v1 --observe 0,2 --seed 7
      chuk train ppo --expert mlp --env gym:Pendulum-v1 --gamma 0.9 --set lam=0.95 --dry-run
    """
    out = Out.of(json, quiet)
    settings.value.check()
    if dry_run:
        _show_plan(out, settings, overwrite)
        return

    def train(sinks: Sequence[Sink], should_stop: Callable[[], bool]) -> RunResult:
        from chuk_lib.experts.trainer import train_expert

        return train_expert(
            settings.value,
            origins=settings.origins,
            sinks=sinks,
            should_stop=should_stop,
            overwrite=overwrite,
        )

    watch(out, train)


def _show_plan(out: Out, settings: Resolved[ExpertPPOConfig], overwrite: bool) -> None:
    from chuk_lib.experts.trainer import plan_expert

    plan = plan_expert(settings.value, origins=settings.origins, overwrite=overwrite)
    out.result(plan.as_dict(), human="\n".join(_lines(plan)), quiet=str(plan.config.steps))
    out.say("dry run: nothing was written")


def _lines(plan: ExpertPlan) -> Iterator[str]:
    yield from settings_lines(as_dict(plan.config), plan.origins)
    yield ""
    yield from table(_facts(plan))


def _facts(plan: ExpertPlan) -> Iterator[tuple[str, str]]:
    config, sizes = plan.config, plan.sizes
    rollout = config.num_envs * config.num_steps
    acts = (
        f"one of {sizes.num_actions}"
        if sizes.discrete_actions
        else f"{sizes.action_dim} numbers between bounds"
    )
    yield "run directory", plan.output
    yield "device", f"{plan.device}, gradients in {'NumPy' if plan.backend == 'numpy' else 'MLX'}"
    yield "expert", f"{config.expert}, {count(plan.parameters)} parameters"
    yield "environment", f"{config.env}: {sizes.obs_dim} numbers seen, {acts} done"
    yield (
        "steps",
        (
            f"{config.steps:,} rollouts of {config.num_envs} × {config.num_steps}:"
            f" {config.steps * rollout:,} steps"
        ),
    )
    yield (
        "update",
        f"{config.updates_per_step} a rollout, of {rollout // config.num_mini_batches} steps each",
    )
