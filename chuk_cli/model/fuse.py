"""`chuk model fuse`: merge an adapter into its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.humanize import counted, number
from chuk_cli.model.options import ModelArgument, NewFolderOption, RevisionOption
from chuk_cli.model.texts import rows_for
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out

if TYPE_CHECKING:
    from chuk_lib.models.fusing import Fused


def fuse(
    model: ModelArgument,
    output: NewFolderOption,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter", "-a", help="Adapter or run; MODEL is its base then.", metavar="DIR"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="float32, bfloat16 or float16. Unset: as the base.", metavar="TYPE"
        ),
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", help="Pack all layers to so many bits.")
    ] = None,
    group_size: Annotated[
        int | None, typer.Option("--group-size", help="Weights that share a scale.")
    ] = None,
    keep_quantized: Annotated[
        bool,
        typer.Option(
            "--keep-quantized", help="Pack merged layers as the base's; stops when that loses them."
        ),
    ] = False,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Make every layer float.")
    ] = False,
    probe: Annotated[
        str | None,
        typer.Option(
            "--probe", help="Compare adapter and result on this text or data.", metavar="FILE"
        ),
    ] = None,
    revision: RevisionOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Merge an adapter into its base model and write the result as a model folder.

    MODEL is an adapter, a LoRA run or checkpoint, or a base with --adapter. Layers are merged in
    float32 and rounded once. Where the base is quantized, merged layers get 8 bits and the others
    stay: at 4 bits an adapter is often lost.

    Examples:
      chuk model fuse runs/first -o ./tuned
      chuk model fuse ./base-4bit --adapter ./adapter -o ./tuned --probe questions.jsonl
      chuk model fuse runs/first -o ./tuned --bits 4 --group-size 32
    """
    from chuk_lib.models.fusing import FuseConfig, fuse_model

    out = Out.of(json, quiet)
    rows = (
        None
        if probe is None or dry_run
        else rows_for(probe, model, adapter=adapter, revision=revision)
    )
    config = FuseConfig(bits, group_size, keep_quantized, dequantize, dtype)
    with out.status(f"merging into {output}"):
        made = fuse_model(
            model,
            output,
            config,
            adapter=adapter,
            revision=revision,
            overwrite=overwrite,
            probe=rows,
            dry_run=dry_run,
        )
    _show(out, made, dry_run)


def _show(out: Out, made: Fused, dry_run: bool) -> None:
    from dataclasses import asdict

    from chuk_lib.models.fusing import LOST

    data: dict[str, Any] = {**asdict(made), "folder": str(made.folder), "written": not dry_run}
    stored = ", ".join(f"{counted(count, 'layer')} {word}" for word, count in made.packings.items())
    what = f"{counted(made.layers, 'adapted layer')} merged" if made.layers else "adapter merged"
    lines = [f"{made.folder}: {what}; {stored}"]
    if made.changed:
        lines.append(f"{counted(made.changed, 'weight')} that the adapter brings whole")
    if made.probed is not None and made.base is not None:
        found = made.probed
        lines.append(
            f"on {counted(found.tokens, 'token')}: loss {found.loss:.4f} with the adapter,"
            f" {found.other_loss:.4f} merged (base {made.base.other_loss:.4f}); KL"
            f" {number(found.kl)}, same likeliest token {100 * found.same_argmax:.2f} %"
        )
    out.result(data, human="\n".join(lines), quiet=str(made.folder))
    if made.lost > LOST and made.probed is None:
        out.warn(
            f"rounding changes the merged weights {made.lost:.1f} times as much as the adapter"
            " does",
            "compare them: --probe FILE; more bits keep more: --bits 8",
        )
    if dry_run:
        out.say("dry run: nothing was written")
