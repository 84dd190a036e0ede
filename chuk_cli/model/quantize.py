"""`chuk model quantize` and `dequantize`: pack weights, and make them float again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.humanize import counted, size
from chuk_cli.model.options import ModelArgument, NewFolderOption, RevisionOption
from chuk_cli.model.texts import rows_for
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out, make_table

if TYPE_CHECKING:
    from chuk_lib.models.quantize_model import Quantized


def quantize(
    model: ModelArgument,
    output: NewFolderOption,
    bits: Annotated[
        int | None, typer.Option("--bits", help="Bits of a weight. Unset: 4, or the mode's.")
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option("--group-size", help="Weights that share a scale. Unset: 64, or the mode's."),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="affine, mxfp4, mxfp8 or nvfp4.", metavar="NAME")
    ] = "affine",
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6, as in MLX-LM.",
            metavar="NAME",
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            help="Bits for layers, such as *.v_proj=6, lm_head=float. Again for more.",
            metavar="GLOB=BITS",
        ),
    ] = None,
    target_bpw: Annotated[
        float | None,
        typer.Option(
            "--target-bpw", help="Bits a weight on average, spread where they help.", min=1
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration", help="Text or data: measure the loss, choose bits.", metavar="DATA"
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Measure the error of each layer.")
    ] = False,
    revision: RevisionOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Pack a model's weights to few bits and write it as a folder that MLX-LM and chuk load.

    Embeddings and the head are packed too, unless a rule says otherwise. With --target-bpw bits go
    to the layers whose rounding would cost most on the calibration data. With --calibration the
    loss before and after is told.

    Examples:
      chuk model quantize ./my-model -o ./four-bit
      chuk model quantize ./my-model -o ./mixed --rule embed_tokens=8 --rule "*.v_proj=6" --report
      chuk model quantize ./my-model -o ./small --target-bpw 4.5 --calibration train.jsonl
    """
    from chuk_lib.errors import ConfigError
    from chuk_lib.models.quantize_model import QuantizeConfig, quantize_model
    from chuk_lib.models.quantizing import make_packing, read_rule

    out = Out.of(json, quiet)
    if target_bpw is not None and (bits is not None or recipe is not None):
        raise ConfigError("`--target-bpw` chooses the bits itself", "leave out --bits and --recipe")
    if recipe is not None and bits is not None:
        raise ConfigError(f"recipe `{recipe}` has its own bits", "leave out --bits")
    config = QuantizeConfig(
        make_packing(bits, group_size, mode), recipe, tuple(map(read_rule, rule or ())), target_bpw
    )
    needs_text = calibration is not None and (not dry_run or target_bpw is not None)
    rows = rows_for(str(calibration), model, revision=revision) if needs_text else None
    with out.status(f"quantizing into {output}"):
        made = quantize_model(
            model,
            output,
            config,
            revision=revision,
            overwrite=overwrite,
            calibration=rows,
            report=report,
            dry_run=dry_run,
        )
    _warn_of_groups(out, made, group_size)
    _show(out, made, report, dry_run)


def _warn_of_groups(out: Out, made: Quantized, wanted: int | None) -> None:
    """Name the layers that have other groups than those asked for; None asks for none."""
    other = [
        layer.path for layer in made.layers if layer.packing and layer.packing.group_size != wanted
    ]
    if wanted is not None and other:
        more = f" and {counted(len(other) - 1, 'more layer')}" if len(other) > 1 else ""
        out.warn(
            f"groups of {wanted} do not fit the width of `{other[0]}`{more}: they have smaller ones"
        )


def dequantize(
    model: ModelArgument,
    output: NewFolderOption,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16 or float16. Unset: that of the scales."),
    ] = None,
    revision: RevisionOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a quantized model with float weights: what its packed weights stand for.

    Examples:
      chuk model dequantize ./four-bit -o ./float
      chuk model dequantize ./four-bit -o ./half --dtype bfloat16
    """
    from chuk_lib.models.quantize_model import dequantize_model

    out = Out.of(json, quiet)
    with out.status(f"dequantizing into {output}"):
        made = dequantize_model(
            model, output, dtype, revision=revision, overwrite=overwrite, dry_run=dry_run
        )
    _show(out, made, False, dry_run)


def _show(out: Out, made: Quantized, report: bool, dry_run: bool) -> None:
    layers = [
        {
            "path": layer.path,
            "bits": layer.packing.bits if layer.packing else None,
            "group_size": layer.packing.group_size if layer.packing else None,
            "numbers": layer.numbers,
            "error": layer.error,
        }
        for layer in made.layers
    ]
    data: dict[str, Any] = {
        "path": str(made.folder),
        "bits_per_weight": made.bits_per_weight,
        "bytes": made.n_bytes,
        "layers": layers,
        "loss_before": made.losses[0] if made.losses else None,
        "loss_after": made.losses[1] if made.losses else None,
        "written": not dry_run,
    }
    kinds: dict[str, int] = {}
    for layer in made.layers:
        word = str(layer.packing) if layer.packing else "float"
        kinds[word] = kinds.get(word, 0) + 1
    told = ", ".join(f"{counted(count, 'layer')} {word}" for word, count in kinds.items())
    lines = [
        f"{made.folder}: {made.bits_per_weight:.2f} bits a weight, {size(made.n_bytes)}; {told}"
    ]
    if made.losses:
        lines.append(f"loss {made.losses[0]:.4f} before, {made.losses[1]:.4f} after")
    out.result(data, human="\n".join(lines), quiet=str(made.folder))
    if report and out.human:
        out.console.print(_table(made))
    if dry_run:
        out.say("dry run: nothing was written")


def _table(made: Quantized) -> Any:
    rows = [
        [
            layer.path,
            layer.packing.bits if layer.packing else "float",
            f"{layer.numbers:,}",
            None if layer.error is None else f"{layer.error:.4f}",
        ]
        for layer in made.layers
    ]
    return make_table("", ["layer", "bits", "numbers", "relative error"], rows)
