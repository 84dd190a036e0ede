"""`chuk batch suggest` and `histogram`: how long rows are, and which padded lengths suit them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.batch.options import (
    BucketsOption,
    FormatOption,
    KindOption,
    MultipleOption,
    SplitOption,
    TextFieldOption,
    TokenizerOption,
    spec_of,
    tokenizer_folder,
)
from chuk_cli.options import JsonOption, QuietOption
from chuk_cli.out import Out, glyph, make_table
from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

_WIDTH = 40
SourceArgument = Annotated[
    str, typer.Argument(help="Data (with --model), or a folder of batches.", metavar="DATA")
]
WholeOption = Annotated[bool, typer.Option("--all", help="Look at every row instead of a sample.")]


def suggest(
    source: SourceArgument,
    model: TokenizerOption = None,
    kind: KindOption = "sft",
    split: SplitOption = "train",
    max_length: Annotated[
        int | None, typer.Option("--max-length", help="Unset: the best one.", min=2)
    ] = None,
    buckets: BucketsOption = 16,
    multiple: MultipleOption = 8,
    keep: Annotated[
        float,
        typer.Option("--keep", help="Share of rows and tokens to keep whole.", min=0.5, max=1),
    ] = 0.995,
    format: FormatOption = None,
    text_field: TextFieldOption = "text",
    whole: WholeOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Suggest a max_length and the padded lengths that waste least.

    The edges are the best that there are for the lengths found, by dynamic programming. The quiet
    output is the edges as `chuk batch build --edges` takes them.

    Examples:
      chuk batch suggest train.jsonl --model ./my-model
      chuk batch suggest train.jsonl --model ./my-model --max-length 2048 --buckets 8
      chuk batch suggest ./batches
    """
    from chuk_lib.data.batches import edges as found

    out = Out.of(json, quiet)
    lengths, share = _lengths(source, model, kind, split, format, text_field, whole)
    limit = max_length or found.best_length(lengths, keep)
    choices = [count for count in (1, 2, 4, 8, 16, 32) if count < buckets] + [buckets]
    rows = [(count, found.suggest(lengths, count, limit, multiple)) for count in choices]
    best = rows[-1][1]
    cut = found.cut_at(lengths, limit)
    result = {
        "max_length": limit,
        "edges": list(best.edges),
        "padding": round(best.padding, 4),
        "rows_cut": round(cut.rows_cut, 4),
        "tokens_lost": round(cut.tokens_lost, 4),
        "share_seen": round(share, 4),
        "by_buckets": [{"buckets": n, "padding": round(made.padding, 4)} for n, made in rows],
        "limits": [
            {
                "max_length": c.max_length,
                "rows_cut": round(c.rows_cut, 4),
                "tokens_lost": round(c.tokens_lost, 4),
            }
            for c in found.cuts(lengths)
        ],
    }
    out.result(result, human=_suggestion(result, lengths), quiet=",".join(map(str, best.edges)))
    if out.human and model is not None:
        edges = ",".join(map(str, best.edges))
        out.say(
            f"next: `chuk batch build --data {shlex.quote(str(source))} --model"
            f" {shlex.quote(str(model))} --max-length {limit} --edges"
            f" {edges} -o DIR`"
        )


def _suggestion(result: dict[str, Any], lengths: np.ndarray) -> Any:
    from rich.console import Group

    lost = (
        f"{100 * result['rows_cut']:.2f} % of rows cut, {100 * result['tokens_lost']:.2f} % of"
        " tokens lost"
    )
    head = [
        f"max_length  {result['max_length']:,} ({lost})",
        f"edges       {', '.join(map(str, result['edges']))}",
        f"padding     {100 * result['padding']:.2f} %, longest row {int(lengths.max()):,}",
        "",
    ]
    percent = lambda share: f"{100 * share:.2f} %"  # noqa: E731
    buckets = make_table(
        "",
        ["buckets", "padding"],
        [[part["buckets"], percent(part["padding"])] for part in result["by_buckets"]],
    )
    limits = make_table(
        "",
        ["max_length", "rows cut", "tokens lost"],
        [
            [part["max_length"], percent(part["rows_cut"]), percent(part["tokens_lost"])]
            for part in result["limits"]
        ],
    )
    return Group("\n".join(head), buckets, "", limits)


def histogram(
    source: SourceArgument,
    model: TokenizerOption = None,
    kind: KindOption = "sft",
    split: SplitOption = "train",
    bins: Annotated[int, typer.Option("--bins", help="Bars.", min=1, max=200)] = 20,
    format: FormatOption = None,
    text_field: TextFieldOption = "text",
    whole: WholeOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show how long rows are: of data as it would be tokenised, or of batches as they were built.

    The quiet output is the median length.

    Examples:
      chuk batch histogram train.jsonl --model ./my-model
      chuk batch histogram ./batches --bins 40
    """
    import numpy as np

    out = Out.of(json, quiet)
    lengths, share = _lengths(source, model, kind, split, format, text_field, whole)
    longest = int(lengths.max())
    step = -(-longest // bins)
    counts = np.bincount((lengths - 1).clip(0) // step, minlength=1)
    quantiles = {
        f"p{part}": int(np.percentile(lengths, part, method="higher")) for part in (50, 90, 95, 99)
    }
    result = {
        "rows": len(lengths),
        "tokens": int(lengths.sum()),
        "mean": round(float(lengths.mean()), 2),
        **quantiles,
        "longest": longest,
        "share_seen": round(share, 4),
        "bins": [{"up_to": (at + 1) * step, "rows": int(count)} for at, count in enumerate(counts)],
    }
    out.result(result, human=_bars(result), quiet=str(quantiles["p50"]))


def _bars(result: dict[str, Any]) -> str:
    most = max(part["rows"] for part in result["bins"])
    lines = []
    for part in result["bins"]:
        bar = glyph("█", "#", sys.stdout) * max(
            1 if part["rows"] else 0, round(_WIDTH * part["rows"] / most)
        )
        lines.append(f"up to {part['up_to']:>7,}  {part['rows']:>9,}  {bar}".rstrip())
    quantiles = ", ".join(
        f"{100 * int(name[1:]) // 100} % {result[name]:,}" for name in ("p50", "p90", "p95", "p99")
    )
    seen = (
        ""
        if result["share_seen"] == 1
        else f" (a sample: {100 * result['share_seen']:.1f} % of the data)"
    )
    lines.append(
        f"{result['rows']:,} rows{seen}, {result['tokens']:,} tokens; up to: {quantiles}, all"
        f" {result['longest']:,}"
    )
    return "\n".join(lines)


def _lengths(
    source: str,
    model: str | None,
    kind: str,
    split: str,
    format: str | None,
    text_field: str,
    whole: bool,
) -> tuple[np.ndarray, float]:
    """Tokens of rows of data or batches, and the share of them that was looked at."""
    from chuk_lib.data.batches import BatchFolder, is_batch_folder
    from chuk_lib.data.batches.measure import natural_lengths, row_lengths

    if is_batch_folder(Path(source)):
        return row_lengths(BatchFolder(source)), 1.0
    if model is None:
        raise ConfigError("data needs a tokenizer", "give --model; a folder of batches needs none")
    spec = spec_of(kind=kind, format=format, text_field=text_field)
    return natural_lengths(source, tokenizer_folder(model), spec, split=split, whole=whole)
