"""`chuk model merge`: several models or adapters as one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.humanize import counted, number, size
from chuk_cli.model.options import NewFolderOption
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption, SeedOption
from chuk_cli.out import Out

if TYPE_CHECKING:
    from chuk_lib.models.merging.adapters import PlannedCat
    from chuk_lib.models.merging.merge import PlannedMerge

NormalizeOption = Annotated[
    bool | None,
    typer.Option(
        "--normalize/--no-normalize",
        help="Divide by the weights. Unset: linear, ties and della do.",
    ),
]
RescaleOption = Annotated[
    str | None,
    typer.Option(
        "--rescale", help="dare, della: paper (over the probability; the default), l1 or none."
    ),
]


def merge(
    output: NewFolderOption,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models or adapters, with their weights.", metavar="[MODEL[=WEIGHT]]..."
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="One of those above.", metavar="NAME")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A mergekit YAML file, instead of the rest.", metavar="FILE"),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="What the models were trained from; of adapters, their base."),
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", help="Share of the differences that is kept.")
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option("--epsilon", help="della: half of the range of probabilities. Unset: 0.15."),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option("--gamma", help="breadcrumbs: share of the largest that goes. Unset: 0.01."),
    ] = None,
    factor: Annotated[
        float | None, typer.Option("--lambda", help="Factor on the merged difference.")
    ] = None,
    t: Annotated[
        float | None, typer.Option("--t", help="slerp: 0 is the base, 1 the other model.")
    ] = None,
    normalize: NormalizeOption = None,
    rescale: RescaleOption = None,
    scale: Annotated[
        float | None, typer.Option("--scale", help="passthrough: factor on every number.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="float32, bfloat16 or float16. Unset: as the models.", metavar="TYPE"
        ),
    ] = None,
    seed: SeedOption = 0,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Merge models that were trained from one base, tensor by tensor, in float32.

    Methods: linear, slerp, task_arithmetic, ties, dare_linear, dare_ties, della, della_linear,
    breadcrumbs, breadcrumbs_ties, model_stock, passthrough; and cat, which makes one adapter of
    several.

    Examples:
      chuk model merge ./math=0.7 ./code=0.5 -o ./both --method ties --base ./base --density 0.5
      chuk model merge runs/first runs/second=0.5 -o ./adapter --method cat
      chuk model merge -o ./both --config merge.yaml
    """
    out = Out.of(json, quiet)
    settings = {
        "density": density,
        "epsilon": epsilon,
        "gamma": gamma,
        "lambda": factor,
        "t": t,
        "normalize": normalize,
        "rescale": rescale,
        "scale": scale,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    plan = _plan(output, models or [], method, config, base, given, dtype, seed, overwrite)
    for note in getattr(plan, "notes", ()):
        out.warn(note)
    if not dry_run:
        with out.status(f"writing {output}"):
            plan.write(overwrite)
    _show(out, plan, dry_run)


def _plan(
    output: Path,
    models: list[str],
    method: str | None,
    config: Path | None,
    base: str | None,
    given: dict[str, Any],
    dtype: str | None,
    seed: int,
    overwrite: bool,
) -> PlannedMerge | PlannedCat:
    from chuk_lib.errors import ConfigError
    from chuk_lib.models.merging.adapters import plan_cat
    from chuk_lib.models.merging.merge import plan_merge
    from chuk_lib.models.merging.recipes import read_recipe, recipe_of

    if config is not None:
        others = {"models": models, "method": method, "base": base, "dtype": dtype, **given}
        twice = [name for name, value in others.items() if value not in (None, [])]
        if twice:
            raise ConfigError(f"`--config` says {', '.join(twice)}", "leave them out, or --config")
        return plan_merge(read_recipe(config, seed), output, overwrite)
    if method is None or not models:
        raise ConfigError(
            "a merge needs models and a method", "A=0.7 B=0.5 --method linear, or --config FILE"
        )
    if method == "cat":
        if given or dtype or seed:
            idle = next(iter([*given, *(["dtype"] if dtype else []), "seed"]))
            raise ConfigError(f"cat reads no `{idle}`", "it reads weights: ADAPTER=0.5")
        return plan_cat(models, base, output, overwrite)
    return plan_merge(recipe_of(method, models, base, given, dtype, seed), output, overwrite)


def _show(out: Out, plan: PlannedMerge | PlannedCat, dry_run: bool) -> None:
    from chuk_lib.models.merging.adapters import PlannedCat

    verb = "would write" if dry_run else "wrote"
    data: dict[str, Any] = {"path": str(plan.output), "bytes": plan.n_bytes, "written": not dry_run}
    if isinstance(plan, PlannedCat):
        parts = ", ".join(
            f"{name} x {number(w)}" for name, w in zip(plan.names, plan.weights, strict=True)
        )
        data |= {"method": "cat", "rank": plan.rank, "models": list(plan.names)}
        line = f"an adapter of rank {plan.rank}, {size(plan.n_bytes)}: {parts}"
    else:
        models = list(
            dict.fromkeys(one.model for place in plan.recipe.slices for one in place.sources)
        )
        data |= {
            "method": plan.recipe.method,
            "models": models,
            "base": plan.recipe.base,
            "layers": plan.layers,
            "tensors": len(plan.tensors),
            "seed": plan.recipe.seed,
            "notes": list(plan.notes),
        }
        line = (
            f"{plan.recipe.method} of {counted(len(models), 'model')}:"
            f" {counted(plan.layers, 'layer')}, {counted(len(plan.tensors), 'tensor')},"
            f" {size(plan.n_bytes)}"
        )
    out.result(data, human=f"{verb} `{plan.output}`: {line}", quiet=str(plan.output))
