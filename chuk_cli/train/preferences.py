"""What the commands that learn from preferences share: a dry run, or the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from chuk_cli.humanize import count
from chuk_cli.out import Out
from chuk_cli.plan import settings_lines
from chuk_cli.train.watching import require, run
from chuk_lib.config.settings import Resolved, as_dict

if TYPE_CHECKING:
    from chuk_lib.training.preference_plan import PreferencePlan


def run_or_plan(out: Out, algorithm: str, settings: Resolved[Any], dry_run: bool, overwrite: bool) -> None:
    """Train with `algorithm`, or print what the run would be; then nothing is written."""
    require(settings.value)
    settings.value.check()
    if not dry_run:
        run(out, algorithm, settings, overwrite)
        return
    with out.status("dry run: loading model and data"):
        from chuk_lib.training.preference_plan import plan_preferences

        plan = plan_preferences(algorithm, settings.value, origins=settings.origins, overwrite=overwrite)
    out.result(plan.as_dict(), human="\n".join(_lines(plan)), quiet=str(plan.steps))
    for note in plan.notes:
        out.warn(note)
    out.say("dry run: nothing was written")


def _lines(plan: PreferencePlan) -> Iterator[str]:
    from chuk_cli.preview import draw

    yield from settings_lines(as_dict(plan.config), plan.origins)
    yield ""
    yield draw(plan.rows, plan.report)
    yield ""
    facts = dict(_facts(plan))
    width = max(map(len, facts))
    for name, value in facts.items():
        yield f"{name:<{width}}  {value}"


def _facts(plan: PreferencePlan) -> Iterator[tuple[str, str]]:
    config, (rows, tokens) = plan.config, plan.largest
    window = config.batch_size * config.gradient_accumulation_steps
    yield "run directory", plan.output
    yield "device", plan.device
    yield "trained", f"{count(plan.trainable_parameters)} of {count(plan.parameters)} parameters"
    yield "reference", plan.reference
    yield "steps", f"{plan.steps:,} ({plan.epochs:.2f} epochs)"
    yield "update", f"{config.batch_size} × {config.gradient_accumulation_steps} = {window} rows of data"
    yield "largest", f"{rows} sequences × {tokens:,} tokens"
    yield "padding", f"{100 * plan.padding:.1f} % of the positions"
