"""`chuk data convert`, `filter` and `chunk`: rows in, other rows out."""

from __future__ import annotations

from typing import Annotated

import typer

from chuk_cli.data.options import (
    FormatOption,
    RemovedOption,
    RowsOption,
    SourceArgument,
    SplitOption,
    TextFieldOption,
    TokenizerOption,
    load_tokenizer,
    optional_tokenizer,
)
from chuk_cli.data.output import removed_rows, report, write
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out

RoleOption = Annotated[
    list[str] | None,
    typer.Option("--role", help="A role that speaks in the row; repeatable.", metavar="ROLE"),
]
MatchOption = Annotated[
    list[str] | None,
    typer.Option("--match", help="Pattern in a column; repeatable.", metavar="COLUMN=REGEX"),
]
RejectOption = Annotated[
    list[str] | None,
    typer.Option("--reject", help="Pattern not in a column.", metavar="COLUMN=REGEX"),
]
ScriptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--script", help="Least share of letters: Latin=0.9; repeatable.", metavar="NAME=SHARE"
    ),
]


def convert(
    data: SourceArgument,
    output: RowsOption = "-",
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help=(
                "messages, sharegpt, alpaca, prompt_completion, prompt_response, input_output,"
                " question_answer, problem_solution, text, preference, "
                "unpaired, prompt; same: keep the format."
            ),
            metavar="NAME",
        ),
    ] = "same",
    rename: Annotated[
        list[str] | None,
        typer.Option("--rename", help="Rename a column first; repeatable.", metavar="OLD=NEW"),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", help="Leave a column out; repeatable.", metavar="COLUMN"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Its chat template makes text of messages.", metavar="MODEL"
        ),
    ] = None,
    format: FormatOption = None,
    text_field: TextFieldOption = "text",
    split: SplitOption = "train",
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Convert rows between formats, and files between JSONL, JSON, Parquet, CSV and TSV.

    Columns that belong to no format go along. What the new format cannot say is an error with its
    line, never dropped in silence. Preference pairs become two rows of unpaired data, or, for the
    other formats, the chosen answer. Rows stream; for CSV and Parquet they wait in a temporary file
    until all columns are known.

    Examples:
      chuk data convert alpaca.json --to messages --output chats.jsonl
      chuk data convert train.parquet --output train.jsonl
      chuk data convert qa.csv --rename question=prompt --rename answer=completion --output qa.jsonl
      chuk data convert chats.jsonl --to text --model ./my-model | head -3
    """
    from collections import Counter

    from chuk_lib.data import read_records
    from chuk_lib.data.workbench.convert import converted, template_of
    from chuk_lib.data.workbench.options import parse_pairs

    out = Out.of(json, quiet)
    left_out: Counter[str] = Counter()
    rows = converted(
        read_records(data, split),
        to,
        format=format,
        text_field=text_field,
        drop=drop or (),
        rename=parse_pairs(rename or (), "--rename"),
        render=template_of(load_tokenizer(model)) if model else None,
        left_out=left_out,
    )
    written = write(out, rows, output, overwrite, dry_run)
    report(
        out,
        {"path": output, "rows": written, "format": to},
        output,
        f"{written:,} rows to {output}",
        dry_run,
    )
    for what, count in left_out.items():
        out.warn(f"{count:,} {what} are left out: `{to}` has no place for them")


def filter(
    data: SourceArgument,
    output: RowsOption = "-",
    min_characters: Annotated[
        int | None, typer.Option("--min-characters", help="Fewest in a row.", min=0)
    ] = None,
    max_characters: Annotated[
        int | None, typer.Option("--max-characters", help="Most in a row.", min=0)
    ] = None,
    min_tokens: Annotated[
        int | None, typer.Option("--min-tokens", help="Fewest; needs --model.", min=0)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Most; needs --model.", min=0)
    ] = None,
    min_turns: Annotated[
        int | None, typer.Option("--min-turns", help="Fewest of the assistant.", min=0)
    ] = None,
    max_turns: Annotated[
        int | None, typer.Option("--max-turns", help="Most of the assistant.", min=0)
    ] = None,
    role: RoleOption = None,
    match: MatchOption = None,
    reject: RejectOption = None,
    script: ScriptOption = None,
    model: TokenizerOption = None,
    removed: RemovedOption = None,
    format: FormatOption = None,
    text_field: TextFieldOption = "text",
    split: SplitOption = "train",
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Keep the rows that meet every condition; say how many failed which.

    Characters are those of what a row says, not of its notes. Scripts are Latin, Cyrillic, Han,
    Hiragana, Arabic … Rows stream: one is in memory at a time, 256 where tokens are counted.

    Examples:
      chuk data filter chats.jsonl --min-turns 2 --max-characters 8000 --output longer.jsonl
      chuk data filter train.jsonl --reject text=https?:// --script Latin=0.9 -o clean.jsonl
      chuk data filter chats.jsonl --max-tokens 2048 --model ./my-model | chuk data stats -
    """
    from collections import Counter

    from chuk_lib.data import read_records
    from chuk_lib.data.workbench.filter import Conditions, filtered, nothing_left
    from chuk_lib.data.workbench.options import parse_pairs, parse_shares

    out = Out.of(json, quiet)
    conditions = Conditions(
        min_characters,
        max_characters,
        min_tokens,
        max_tokens,
        min_turns,
        max_turns,
        tuple(role or ()),
        parse_pairs(match or (), "--match"),
        parse_pairs(reject or (), "--reject"),
        parse_shares(script or (), "--script"),
    )
    left_out: Counter[str] = Counter()
    with removed_rows(removed, overwrite, dry_run) as take:
        rows = filtered(
            read_records(data, split),
            conditions,
            left_out,
            tokenizer=optional_tokenizer(model),
            format=format,
            text_field=text_field,
            removed=take,
        )
        kept = write(out, nothing_left(rows, left_out), output, overwrite, dry_run)
    total = kept + sum(left_out.values())
    lines = [
        f"{kept:,} of {total:,} rows kept",
        *(f"  {count:,}: {why}" for why, count in left_out.most_common()),
    ]
    result = {"path": output, "rows": total, "kept": kept, "left_out": dict(left_out.most_common())}
    report(out, result, output, "\n".join(lines), dry_run)


def chunk(
    data: SourceArgument,
    output: RowsOption = "-",
    size: Annotated[int, typer.Option("--size", help="Length of a chunk, in units.", min=1)] = 512,
    overlap: Annotated[
        int, typer.Option("--overlap", help="Units that two neighbours share.", min=0)
    ] = 0,
    unit: Annotated[
        str | None,
        typer.Option(
            "--unit", help="tokens, words or characters. Unset: tokens with --model, else words."
        ),
    ] = None,
    model: TokenizerOption = None,
    text_field: TextFieldOption = "text",
    split: SplitOption = "train",
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Cut long texts into overlapping chunks, with nothing lost between them.

    A `.txt` file is one text, its line ends included, and streams; every other row is a text of its
    own. Each chunk says where it starts and how many of its first characters the chunk before holds
    too: without those, the chunks joined are the text again.

    Examples:
      chuk data chunk book.txt --size 400 --overlap 40 --output book.jsonl
      chuk data chunk articles.jsonl --size 1024 --model ./my-model | chuk data stats -
    """
    from chuk_lib.data.workbench.chunk import chunked

    out = Out.of(json, quiet)
    unit = unit or ("tokens" if model else "words")
    rows = chunked(
        data,
        size=size,
        overlap=overlap,
        unit=unit,
        tokenizer=optional_tokenizer(model),
        text_field=text_field,
        split=split,
    )
    written = write(out, rows, output, overwrite, dry_run)
    result = {"path": output, "rows": written, "size": size, "overlap": overlap, "unit": unit}
    report(out, result, output, f"{written:,} chunks of up to {size:,} {unit} to {output}", dry_run)
