"""`chuk model convert`: a model in the form that another tool reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chuk_cli.humanize import counted, size
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder, run, checkpoint, adapter, cached hub id, GGUF or NPZ file.",
            metavar="SRC",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New folder, or a file x.gguf.", metavar="DST")
    ],
    to: Annotated[
        str, typer.Option("--to", help="hf, mlx, peft, mlx-adapter or gguf.", metavar="FORM")
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            help=(
                "f32, f16, bf16; for GGUF also q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q6_k. Unset: as"
                " it is; GGUF: f16."
            ),
            metavar="TYPE",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help=(
                "Base of an adapter (unset: the one that it names), or the model whose config and"
                " tokenizer an NPZ file's weights get (unset: the folder that it is in)."
            ),
            metavar="MODEL",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a model or an adapter in the form that another tool reads.

    GGUF files, for llama.cpp, hold the tokenizer and the chat template too. What a form cannot hold
    is refused. NPZ checkpoints of chuk's predecessor become folders.

    Examples:
      chuk model convert ./my-model -o my-model.gguf --to gguf --type q8_0
      chuk model convert model-Q4_K_M.gguf -o ./model --to hf
      chuk model convert runs/lora -o ./for-peft --to peft
      chuk model convert final_model_checkpoint.npz -o ./model --to hf --base ./its-base
    """
    from chuk_lib.models.conversion import plan_conversion

    out = Out.of(json, quiet)
    plan = plan_conversion(source, output, to, kind, base, overwrite)
    if not dry_run:
        with out.status(f"writing {output}"):
            plan.write()
    data = {
        "path": str(output),
        "to": to,
        "tensors": plan.tensors,
        "bytes": plan.n_bytes,
        "types": plan.kinds,
        "dry_run": dry_run,
    }
    kinds = ", ".join(f"{count} as {kind}" for kind, count in plan.kinds.items())
    verb = "would write" if dry_run else "wrote"
    line = f"{verb} `{output}`: {counted(plan.tensors, 'tensor')}, {size(plan.n_bytes)}" + (
        f" ({kinds})" if kinds else ""
    )
    out.result(data, human=line, quiet=str(output))
