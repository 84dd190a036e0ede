"""`chuk data split`, `dedupe` and `mix`: which rows, and in what order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chuk_cli.completion import words
from chuk_cli.data.options import (
    ByOption,
    NearOption,
    RemovedOption,
    RowsOption,
    SourceArgument,
    SplitOption,
    ThresholdOption,
)
from chuk_cli.data.output import removed_rows, report, warn_of_nulls, write
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption, SeedOption
from chuk_cli.out import Out


def split(
    data: SourceArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the parts.", metavar="DIR")
    ],
    valid: Annotated[
        float,
        typer.Option("--valid", help="Validation: a share below 1, or a number of rows.", min=0),
    ] = 0.05,
    test: Annotated[
        float, typer.Option("--test", help="Test: a share below 1, or a number of rows.", min=0)
    ] = 0.05,
    group: Annotated[
        list[str] | None,
        typer.Option(
            "--group", help="Rows with one value in this column stay together.", metavar="COLUMN"
        ),
    ] = None,
    near: NearOption = True,
    threshold: ThresholdOption = 0.9,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            help="jsonl, json, parquet, csv or tsv.",
            metavar="NAME",
            autocompletion=words("jsonl", "json", "parquet", "csv", "tsv"),
        ),
    ] = "jsonl",
    seed: SeedOption = 42,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Split rows into train, valid and test so that nothing leaks from one into another.

    Rows with the same prompt, nearly the same rows and rows of one --group stay together; parts
    come as near to their size as that allows. The order of rows is kept. The data is read twice;
    memory grows by about 100 bytes a row, by 200 with near matches; stdin waits in a temporary
    file.

    Examples:
      chuk data split all.jsonl --output data
      chuk data split all.jsonl --valid 500 --test 500 --group conversation_id --output data
      chuk data generate-math --samples 1000 --output - | chuk data split - --exact --output math
    """
    from chuk_lib.data.workbench.replay import Replay
    from chuk_lib.data.workbench.split import (
        NAMES,
        assign,
        check_split_paths,
        split_paths,
        write_split,
    )

    out = Out.of(json, quiet)
    suffix = f".{kind.removeprefix('.')}"
    check_split_paths(output, suffix, overwrite)
    with Replay(data) as replay, out.status(f"reading {data}"):
        parts = assign(
            replay,
            valid=valid,
            test=test,
            seed=seed,
            group=group or (),
            near=near,
            threshold=threshold,
        )
        sizes = {name: int((parts == number).sum()) for number, name in enumerate(NAMES)}
        if not dry_run:
            warn_of_nulls(out, write_split(replay, parts, output, suffix, overwrite).nulled)
    made = {name: size for name, size in sizes.items() if size}
    paths = [str(path) for name, path in split_paths(output, suffix).items() if name in made]
    said = f"{output}: " + ", ".join(f"{size:,} {name}" for name, size in made.items())
    out.result({"path": str(output), "rows": made, "seed": seed}, human=said, quiet=paths)
    if dry_run:
        out.say("dry run: nothing was written")


def dedupe(
    data: SourceArgument,
    output: RowsOption = "-",
    near: NearOption = True,
    threshold: ThresholdOption = 0.9,
    by: ByOption = None,
    removed: RemovedOption = None,
    split: SplitOption = "train",
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Remove rows that repeat an earlier one, exactly or nearly; the first stays, and so does the
    order.

    Rows are equal when prompt, answers and all other text are, however they are spaced; ids, places
    and scores do not count. Of rows that fit no format all columns count; --by says otherwise. Near
    matches are found by MinHash over three words at a time (rows of fewer than 8 words: equal ones
    only). The data is read twice; memory grows by about 80 bytes a row, by 180 with near matches,
    whose signatures lie on disk, as stdin does.

    Examples:
      chuk data dedupe train.jsonl --output clean.jsonl --removed repeated.jsonl
      chuk data generate-math --samples 10000 --output - | chuk data dedupe - | chuk data stats -
      chuk data dedupe crawl.parquet --threshold 0.8 --by text --output clean.parquet
    """
    from chuk_lib.data.workbench.dedupe import DedupeCounts, deduped
    from chuk_lib.data.workbench.replay import Replay

    out = Out.of(json, quiet)
    counts = DedupeCounts()
    with Replay(data, split) as replay, removed_rows(removed, overwrite, dry_run) as take:
        rows = deduped(replay, counts, near=near, threshold=threshold, by=by or (), removed=take)
        write(out, rows, output, overwrite, dry_run)
    said = (
        f"{counts.kept:,} of {counts.rows:,} rows kept: {counts.exact:,} equal and {counts.near:,}"
        " near ones removed"
    )
    said += (
        f" (compared: {', '.join(counts.compared[:8])}{', …' if len(counts.compared) > 8 else ''})"
    )
    result = {
        "path": output,
        **{name: value for name, value in vars(counts).items() if name != "compared"},
    }
    result["compared"] = list(counts.compared)
    report(out, result, output, said, dry_run)


def mix(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files or folders with their weights; no weight is 1.", metavar="DATA=WEIGHT…"
        ),
    ],
    output: RowsOption = "-",
    rows: Annotated[
        int | None,
        typer.Option("--rows", "-n", help="Rows to draw; sources that end start again.", min=1),
    ] = None,
    stop: Annotated[
        str,
        typer.Option("--stop", help="Without --rows: end with the first source or when all ended."),
    ] = "all",
    tag: Annotated[
        str | None,
        typer.Option("--tag", help="Column that says where a row came from.", metavar="COLUMN"),
    ] = None,
    split: SplitOption = "train",
    seed: SeedOption = 42,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Mix several sources by weight, in an order that the seed decides.

    Each source keeps its own order; one row of each is in memory. All must have one format: `chuk
    data convert` makes them alike.

    Examples:
      chuk data mix chats.jsonl=0.7 math.jsonl=0.3 --rows 20000 --output mixed.jsonl
      chuk data mix chats.jsonl=3 code.parquet --stop first --tag source --output mixed.jsonl
    """
    from collections import Counter

    from chuk_lib.data.workbench.mix import mixed, parse_part

    out = Out.of(json, quiet)
    drawn: Counter[str] = Counter()
    parts = [parse_part(text) for text in sources]
    stream = mixed(parts, drawn, rows=rows, seed=seed, stop=stop, split=split, tag=tag)
    written = write(out, stream, output, overwrite, dry_run)
    said = f"{written:,} rows: " + ", ".join(
        f"{count:,} from {name}" for name, count in drawn.most_common()
    )
    report(
        out,
        {"path": output, "rows": written, "drawn": dict(drawn), "seed": seed},
        output,
        said,
        dry_run,
    )
