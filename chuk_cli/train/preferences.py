"""`chuk train dpo`, `kto`, `orpo`, `cpo` and `reward`: the commands that learn from preferences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.plan import batch_facts, heading, settings_lines, table, tell_plan
from chuk_cli.settings import with_settings
from chuk_cli.train.watching import require, run
from chuk_lib.config.settings import Resolved, as_dict
from chuk_lib.training.preference.config import (
    CPOConfig,
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    RewardConfig,
)

if TYPE_CHECKING:
    from chuk_lib.training.planning.dry_run import DryRun


def _command(config: type) -> Callable[[Callable[[], None]], Callable[..., Any]]:
    """Make a command of a function that has a name, which is the algorithm's, and help."""

    def decorate(named: Callable[[], None]) -> Callable[..., Any]:
        def command(
            settings: Resolved[Any],
            dry_run: DryRunOption = False,
            overwrite: OverwriteOption = False,
            json: JsonOption = False,
            quiet: QuietOption = False,
        ) -> None:
            _run_or_plan(Out.of(json, quiet), named.__name__, settings, dry_run, overwrite)

        command.__name__, command.__qualname__, command.__doc__ = (
            named.__name__,
            named.__qualname__,
            named.__doc__,
        )
        return with_settings(config)(command)

    return decorate


@_command(DPOConfig)
def dpo() -> None:
    """Learn from pairs of answers, a chosen and a rejected one (DPO).

    Data: rows with `chosen` and `rejected`, text or messages, and `prompt`; without it the prompt
    is what both begin with. The reference is the model as it was: with --lora nothing is copied.
    Other losses, alone or together, by --loss-type; ORPO, CPO and SimPO, which need no reference,
    are `chuk train orpo` and `cpo`; answers with labels in place of pairs `chuk train kto`. Prints
    the run directory.

    Examples:
      chuk train dpo --model Qwen/Qwen3-0.6B --data pairs.jsonl --lora
      chuk train dpo --model runs/sft --data pairs.jsonl --beta 0.05 --output runs/dpo
      chuk train dpo -m my-model -d pairs.jsonl --loss-type sigmoid,sft --loss-weights 0.8,1
      chuk train dpo --model my-model --data pairs.jsonl --dry-run
    """


@_command(KTOConfig)
def kto() -> None:
    """Learn from answers that are good or bad on their own (KTO).

    Data: rows with `prompt`, `completion` and `label` (true or false); pairs of `chosen` and
    `rejected` are taken apart. Prints the run directory.

    Examples:
      chuk train kto --model Qwen/Qwen3-0.6B --data feedback.jsonl --lora
      chuk train kto --model my-model --data feedback.jsonl --undesirable-weight 0.5
      chuk train kto --model my-model --data feedback.jsonl --loss-type apo_zero_unpaired
    """


@_command(ORPOConfig)
def orpo() -> None:
    """Learn to answer and to prefer in one go, without a reference (ORPO).

    Data: pairs as for `chuk train dpo`. The chosen rows are learned as in supervised fine-tuning,
    prompts too. Prints the run directory.

    Examples:
      chuk train orpo --model Qwen/Qwen3-0.6B --data pairs.jsonl --lora
      chuk train orpo --model my-model --data pairs.jsonl --beta 0.2 --learning-rate 8e-6
    """


@_command(CPOConfig)
def cpo() -> None:
    """Learn from pairs without a reference (CPO, SimPO, AlphaPO).

    Data: pairs as for `chuk train dpo`. SimPO is --loss-type simpo with --cpo-alpha 0; above 0 the
    chosen answers are learned as well. Prints the run directory.

    Examples:
      chuk train cpo --model Qwen/Qwen3-0.6B --data pairs.jsonl --lora
      chuk train cpo -m my-model -d pairs.jsonl --loss-type simpo --cpo-alpha 0 --simpo-gamma 1
    """


@_command(RewardConfig)
def reward() -> None:
    """Train a reward model on pairs of answers: a score head on a language model.

    Data: pairs as for `chuk train dpo`, maybe with a column `margin`. Checkpoints of full
    fine-tuning are what `AutoModelForSequenceClassification` of transformers reads, with one label.
    Prints the run directory, which `chuk train grpo --reward` takes.

    Examples:
      chuk train reward --model Qwen/Qwen3-0.6B --data pairs.jsonl --output runs/reward
      chuk train reward --model my-model --data pairs.jsonl --lora --center-rewards-coefficient 0.01
      chuk train reward --model my-model --data pairs.jsonl --dry-run
    """


def _run_or_plan(
    out: Out, algorithm: str, settings: Resolved[Any], dry_run: bool, overwrite: bool
) -> None:
    """Train with `algorithm`, or print what the run would be; then nothing is written."""
    require(settings.value)
    settings.value.check()
    if not dry_run:
        run(out, algorithm, settings, overwrite)
        return
    with out.status("dry run: loading model and data"):
        from chuk_lib.training.preference.plan import plan_preferences

        plan = plan_preferences(
            algorithm, settings.value, origins=settings.origins, overwrite=overwrite
        )
    tell_plan(out, plan, _lines(plan), plan.steps)


def _lines(plan: DryRun) -> Iterator[str]:
    from chuk_cli.preview import draw

    yield from settings_lines(as_dict(plan.config), plan.origins)
    yield ""
    yield draw(plan.rows, plan.report)
    yield ""
    yield from table(_facts(plan))


def _facts(plan: DryRun) -> Iterator[tuple[str, str]]:
    config = plan.config
    window = config.batch_size * config.gradient_accumulation_steps
    yield from heading(plan)
    yield "reference", str(plan.reference)
    yield "steps", f"{plan.steps:,} ({plan.epochs:.2f} epochs)"
    yield (
        "update",
        f"{config.batch_size} × {config.gradient_accumulation_steps} = {window} rows of data",
    )
    yield from batch_facts(plan, "sequences")
    yield "time, memory", "not estimated"
