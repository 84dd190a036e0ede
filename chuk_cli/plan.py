"""`--dry-run` and `--fit` of the training commands: what a run would be, and settings that fit a
memory budget."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.humanize import count, duration, number, size
from chuk_cli.out import Out, paint
from chuk_lib.config.settings import Resolved, as_dict
from chuk_lib.errors import ConfigError
from chuk_lib.training.config import SFTConfig

if TYPE_CHECKING:
    from chuk_lib.training.planning.dry_run import DryRun
    from chuk_lib.training.planning.estimate import MemoryEstimate

FitOption = Annotated[
    str | None,
    typer.Option(
        "--fit",
        metavar="SIZE",
        rich_help_panel="Configuration",
        help=(
            "Choose batch size, accumulation, checkpointing and packing for this much memory: 8GiB,"
            " or auto."
        ),
    ),
]

_PARTS = {
    "weights": "weights",
    "optimizer": "optimizer",
    "gradients": "gradients",
    "activations": "activations and work",
    "logits": "logits (a tile)",
    "outside": "probabilities (NumPy)",
}


def show_plan(out: Out, settings: Resolved[SFTConfig], fit: str | None, overwrite: bool) -> None:
    """Print what the run would be. Nothing is written."""
    budget = _budget(fit)
    with out.status("dry run: loading model and data, measuring a few micro-steps"):
        from chuk_lib.training.planning.plan import plan_sft

        plan = plan_sft(
            settings.value, origins=settings.origins, budget=budget, overwrite=overwrite
        )
    tell_plan(out, plan, _lines(plan), plan.memory.total if plan.memory else 0)


def tell_plan(out: Out, plan: DryRun, lines: Iterable[str], number: int) -> None:
    """Print a dry run: its lines for people, one number for `--quiet`."""
    out.result(plan.as_dict(), human="\n".join(lines), quiet=str(number))
    for note in plan.notes:
        out.say(f"note: {note}")
    out.say("dry run: nothing was written")


def fitted(
    out: Out, settings: Resolved[SFTConfig], fit: str, overwrite: bool
) -> Resolved[SFTConfig]:
    """The settings with those that fit the budget, their origin `--fit`; says why each was
    chosen."""
    budget = _budget(fit)
    if settings.value.data == "-":
        raise ConfigError(
            "`--fit` reads the data twice, and stdin can be read once",
            "save the rows to a file first",
        )
    with out.status("fit: loading model and data, measuring a few micro-steps"):
        from chuk_lib.training.planning.plan import fit_sft

        found = fit_sft(settings.value, budget or 0, origins=settings.origins, overwrite=overwrite)
    for reason in found.reasons:
        out.say(f"fit: {reason}")
    chosen = found.choice.settings()
    return Resolved(
        replace(settings.value, **chosen), settings.origins | dict.fromkeys(chosen, "--fit")
    )


def _budget(text: str | None) -> int | str | None:
    """Bytes, `auto`, or None. Raises ConfigError for what is no size."""
    if text is None or text.lower() == "auto":
        return text and "auto"
    from chuk_lib.training.planning.budget import parse_size

    return parse_size(text)


def _lines(plan: DryRun) -> Iterator[str]:
    yield from settings_lines(as_dict(plan.config), plan.origins)
    yield ""
    from chuk_cli.preview import draw

    yield draw(plan.rows, plan.report)
    yield ""
    yield from table(_run(plan))
    yield ""
    if plan.memory:
        yield from table(_memory(plan.memory))
    if plan.fit:
        yield ""
        for reason in plan.fit.reasons:
            yield f"fit  {reason}"


def settings_lines(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """Every setting with its origin; those that somebody chose first."""
    if not values:
        return
    order = sorted(values, key=lambda name: origins[name] == "default")
    width = max(map(len, values))
    for name in order:
        origin = origins[name]
        line = f"{name:<{width}}  {plain(values[name])}"
        yield (
            paint(f"{line}  (default)", "secondary", sys.stdout)
            if origin == "default"
            else f"{line}  ({origin})"
        )


def plain(value: Any) -> str:
    """A setting's value as a file would have it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value)
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def _run(plan: DryRun) -> Iterator[tuple[str, str]]:
    config = plan.config
    window = config.batch_size * config.gradient_accumulation_steps
    yield from heading(plan)
    yield "steps", f"{plan.steps:,} ({plan.epochs:.2f} epochs of {plan.steps_per_epoch:,})"
    yield (
        "update",
        f"{config.batch_size} rows × {config.gradient_accumulation_steps} = {window} rows",
    )
    yield from batch_facts(plan, "rows")
    if plan.seconds is not None and plan.step_seconds is not None:
        yield (
            "time",
            (
                f"about {duration(plan.seconds)} ({duration(plan.step_seconds)} a step), without"
                " evaluations"
            ),
        )


def heading(plan: DryRun) -> Iterator[tuple[str, str]]:
    """What every run has: where it writes, where it runs, what is trained."""
    yield "run directory", plan.output
    yield "device", plan.device
    yield "trained", f"{count(plan.trainable_parameters)} of {count(plan.parameters)} parameters"


def batch_facts(plan: DryRun, what: str) -> Iterator[tuple[str, str]]:
    """The largest micro-batch, of rows or sequences, and the padding, where they are known."""
    if plan.largest is not None:
        yield "largest", f"{plan.largest[0]} {what} × {plan.largest[1]:,} tokens"
    if plan.padding is not None:
        yield "padding", f"{100 * plan.padding:.1f} % of the positions"


def _memory(memory: MemoryEstimate) -> Iterator[tuple[str, str]]:
    parts = memory.as_dict()
    for name, words in _PARTS.items():
        if parts[name]:
            yield words, size(parts[name])
    yield "memory at the peak", f"about {size(memory.total)}"


def table(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    """Names and values in two columns."""
    held = dict(pairs)
    width = max(map(len, held))
    for name, value in held.items():
        yield f"{name:<{width}}  {value}"
