"""`chuk model inspect`: the tensors of a model's files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.humanize import count, counted, number, size
from chuk_cli.model.options import RevisionOption
from chuk_cli.options import JsonOption, QuietOption
from chuk_cli.out import Out, make_table

if TYPE_CHECKING:
    from chuk_lib.models.inspection import Inspected


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder, run, checkpoint, adapter, cached hub id, or one file.", metavar="PATH"
        ),
    ],
    tensors: Annotated[
        str | None,
        typer.Option(
            "--tensors", "-t", help="Those of this name or shell pattern.", metavar="GLOB"
        ),
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Read the numbers: extremes, norm, zeros, NaN.")
    ] = False,
    sort: Annotated[
        str | None,
        typer.Option("--sort", help="name, size or norm, the largest first.", metavar="ORDER"),
    ] = None,
    revision: RevisionOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the tensors of a model, a checkpoint with its optimizer, an adapter or one file.

    Reads headers only, unless statistics are asked for, which read one tensor at a time. Packed
    weights are shown as what they stand for. Without options, tensors of different blocks stand
    together. Quiet output is their names.

    Examples:
      chuk model inspect ./my-model
      chuk model inspect ./my-model --tensors "*.q_proj.*" --stats
      chuk model inspect runs/first/checkpoints/step_000100/optimizer.safetensors --sort size
    """
    from chuk_lib.models.inspection import inspect as look

    out = Out.of(json, quiet)
    found = look(model, revision, tensors=tensors, stats=stats, sort=sort)
    plain = tensors is None and not stats and sort is None
    human = _by_block(found) if plain else _each(found)
    out.result(_as_data(found), human=human, quiet=[row.name for row in found.rows])
    if len(found.rows) < found.tensors:
        out.say(f"{counted(len(found.rows), 'tensor')} of {found.tensors:,}")
    else:
        what = f"{counted(found.tensors, 'tensor')} in {counted(len(found.files), 'file')}"
        out.say(f"{what}: {count(found.numbers)} numbers, {size(found.n_bytes)}")


def _as_data(found: Inspected) -> dict[str, Any]:
    rows = [
        {
            "name": row.name,
            "dtype": row.dtype,
            "shape": list(row.shape),
            "bytes": row.n_bytes,
            "file": row.file,
            **({"stats": row.stats} if row.stats else {}),
        }
        for row in found.rows
    ]
    return {
        "path": str(found.path),
        "kind": found.kind,
        "files": list(found.files),
        "count": found.tensors,
        "numbers": found.numbers,
        "bytes": found.n_bytes,
        "tensors": rows,
    }


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _by_block(found: Inspected) -> Any:
    from chuk_lib.models.inspection import grouped

    rows = [
        [alike.name, alike.dtype, _shape(alike.shape), alike.count, size(alike.n_bytes)]
        for alike in grouped(found.rows)
    ]
    return make_table("", ["tensor", "type", "shape", "times", "bytes"], rows)


def _each(found: Inspected) -> Any:
    head = ["tensor", "type", "shape", "bytes"]
    rows: list[list[Any]] = [
        [row.name, row.dtype, _shape(row.shape), size(row.n_bytes)] for row in found.rows
    ]
    if any(row.stats for row in found.rows):
        head += ["min", "max", "rms", "norm", "zeros", "NaN", "inf"]
        for cells, row in zip(rows, found.rows, strict=True):
            stat = row.stats
            cells += (
                [
                    number(stat.minimum),
                    number(stat.maximum),
                    number(stat.rms),
                    number(stat.norm),
                    stat.zeros,
                    stat.nan,
                    stat.inf,
                ]
                if stat
                else [None] * 7
            )
    return make_table("", head, rows)
