"""`chuk data check`, `stats` and `preview`: what is in the data, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.completion import formats
from chuk_cli.data.options import (
    ByOption,
    FormatOption,
    NearOption,
    SourceArgument,
    SplitOption,
    TextFieldOption,
    ThresholdOption,
    TokenizerOption,
    load_tokenizer,
    optional_tokenizer,
)
from chuk_cli.options import (
    JsonOption,
    MapOption,
    ModelOption,
    QuietOption,
    SourcesOption,
    TemplateOptionsOption,
)
from chuk_cli.out import Out, glyph

if TYPE_CHECKING:
    from chuk_lib.data.workbench.check import RowChecker

FEW = 20
"""Problems of one kind that a person is shown when they do not ask for a number."""


def check(
    data: SourceArgument,
    column_map: MapOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            help="Held-out data that must not share rows with DATA; repeatable.",
            metavar="DATA",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore", help="A kind of problem to leave out; repeatable.", metavar="KIND"
        ),
    ] = None,
    near: NearOption = True,
    threshold: ThresholdOption = 0.9,
    by: ByOption = None,
    model: TokenizerOption = None,
    max_length: Annotated[
        int,
        typer.Option(
            "--max-length", help="With --model: report rows of more tokens; 0: none.", min=0
        ),
    ] = 1024,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", help="Problems of a kind to show; 0: all. Unset: 20, JSON all.", min=0
        ),
    ] = None,
    format: FormatOption = None,
    text_field: TextFieldOption = "text",
    chat_template_kwargs: TemplateOptionsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find everything that is wrong with data, with file and line; exit code 1 when there is
    anything.

    Kinds: broken, format, encoding, empty, roles, preference, contradiction, duplicate, near, leak;
    with --model also long and template. Of a folder all splits are checked, and that none holds
    rows or prompts of another. With --json each problem is a line, the last line is the summary.
    Memory: 110 bytes a row, 210 with near matches.

    Examples:
      chuk data check train.jsonl
      chuk data check ./data --model ./my-model --max-length 2048 --ignore near
      chuk data check train.jsonl --against test.jsonl --json | jq 'select(.kind == "leak")'
    """
    from chuk_lib.data.workbench.check import RowChecker

    out = Out.of(json, quiet)
    checker = RowChecker(
        ignore=ignore or (),
        near=near,
        threshold=threshold,
        by=by or (),
        format=format,
        text_field=text_field,
        tokenizer=optional_tokenizer(model, chat_template_kwargs),
        max_length=max_length or None,
    )
    most = limit if limit is not None else 0 if json or quiet else FEW
    for problem in checker.problems(_sources(data, against or [], column_map or [])):
        if most and checker.counts[problem.kind] > most:
            continue
        if json:
            out.line(
                {
                    name: getattr(problem, name)
                    for name in ("kind", "file", "line", "unit", "message", "hint")
                }
            )
        else:
            out.result(
                {}, human=str(problem), quiet=f"{problem.file}:{problem.line}:{problem.kind}"
            )
    _sum_up(out, checker)
    if most and any(count > most for count in checker.counts.values()):
        out.say(f"no more than {most} of a kind are shown; all: `--limit 0`")
    if checker.counts:
        raise typer.Exit(1)


def _sum_up(out: Out, checker: RowChecker) -> None:
    """The counts, and what is worth knowing."""
    if out.json:
        counts, found = dict(checker.counts.most_common()), sum(checker.counts.values())
        out.line({"ok": not found, "rows": checker.rows, "problems": found, "counts": counts})
    elif not out.quiet:
        out.result({}, human=_verdict(checker.rows, checker.counts))
    for note in checker.notes:
        out.warn(note)


def _sources(data: str, against: list[str], columns: list[str]) -> list[tuple[str, Any, str]]:
    from pathlib import Path

    from chuk_lib.data import has_split
    from chuk_lib.data.sources import sources

    splits = (
        [split for split in ("train", "valid", "test") if has_split(data, split)]
        if Path(data).is_dir()
        else []
    )
    source = sources(data, columns)
    own = [(split, source, split) for split in splits] or [(data, source, "train")]
    return [*own, *((name, sources(name, columns), "train") for name in against)]


def _verdict(rows: Mapping[str, int], counts: Mapping[str, int]) -> str:
    from chuk_lib.data.workbench.check import KINDS

    total = ", ".join(f"{count:,} in {name}" for name, count in rows.items())
    if not counts:
        return f"{glyph('✓', 'ok:')} nothing wrong with {sum(rows.values()):,} rows ({total})"
    width = max(map(len, counts))
    lines = [f"{kind:<{width}}  {count:>8,}  {KINDS[kind]}" for kind, count in counts.items()]
    return "\n".join(
        ["", f"{sum(counts.values()):,} problems in {sum(rows.values()):,} rows ({total})", *lines]
    )


def stats(
    data: SourceArgument,
    column_map: MapOption = None,
    model: TokenizerOption = None,
    assistant_only_loss: Annotated[
        bool, typer.Option("--assistant-only-loss", help="Count only assistant turns as trained.")
    ] = False,
    format: FormatOption = None,
    text_field: TextFieldOption = "text",
    split: SplitOption = "train",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Count rows, columns, roles, scripts of letters, lengths and, with a model, tokens and how
    many are trained.

    Memory holds 16 bytes a row. The quiet output is the number of rows.

    Examples:
      chuk data stats train.jsonl
      chuk data stats chats.jsonl --model ./my-model --assistant-only-loss
      chuk data stats HuggingFaceH4/ultrachat_200k --split train_sft --json
    """
    from chuk_lib.data import read_records
    from chuk_lib.data.sources import sources
    from chuk_lib.data.workbench.stats import Stats

    out = Out.of(json, quiet)
    counter = Stats(
        format=format,
        text_field=text_field,
        tokenizer=optional_tokenizer(model),
        assistant_only=assistant_only_loss,
    )
    with out.status(f"reading {data}"):
        rows = read_records(sources(data, column_map or ()), split)
        result = counter.read(rows).as_dict()
    out.result({"path": data, **result}, human=_table(data, result), quiet=str(result["rows"]))


def _table(data: str, result: dict[str, Any]) -> str:
    parts = {
        "data": data,
        "format": result["format"],
        "rows": f"{result['rows']:,}",
        "columns": ", ".join(
            name if count == result["rows"] else f"{name} ({count:,})"
            for name, count in result["columns"].items()
        ),
        "characters": f"{result['characters']:,}; {_spread(result['characters_a_row'])}",
        "scripts": (
            ", ".join(f"{name} {100 * share:.1f} %" for name, share in result["scripts"].items())
            or "none"
        ),
    }
    if "roles" in result:
        parts["roles"] = ", ".join(f"{name} {count:,}" for name, count in result["roles"].items())
        parts["messages"] = ", ".join(
            f"{count} in {rows:,} rows" for count, rows in result["messages_a_row"].items()
        )
    bins = result["characters_a_row"]["bins"]
    if "tokens" in result:
        parts["tokens"] = f"{result['tokens']:,}; {_spread(result['tokens_a_row'])}"
        parts["trained"] = (
            f"{result['trained_tokens']:,} tokens ({100 * result['trained_share']:.1f} %)"
        )
        bins = result["tokens_a_row"]["bins"]
    unit = "tokens" if "tokens" in result else "characters"
    most = max((item["rows"] for item in bins), default=1)
    lines = [f"{name:<10}  {value}" for name, value in parts.items()]
    for item in bins:
        bar = glyph("█", "#") * max(1 if item["rows"] else 0, round(30 * item["rows"] / most))
        lines.append(
            f"{'':<10}  up to {item['up_to']:>7,} {unit}  {item['rows']:>9,} rows  {bar}".rstrip()
        )
    return "\n".join(lines)


def _spread(lengths: dict[str, Any]) -> str:
    return (
        f"a row {lengths['mean']:,} on average, median {lengths['median']:,}, longest"
        f" {lengths['max']:,}"
    )


def preview(
    data: SourcesOption,
    model: ModelOption,
    column_map: MapOption = None,
    rows: Annotated[int, typer.Option("--rows", "-n", help="Rows to show.", min=0)] = 3,
    split: Annotated[
        str,
        typer.Option(
            "--split", help="train, valid, test or the data's own name for one.", metavar="NAME"
        ),
    ] = "train",
    max_length: Annotated[
        int, typer.Option("--max-length", help="Cut rows at this many tokens; 0: never.", min=0)
    ] = 1024,
    completion_only_loss: Annotated[
        bool | None,
        typer.Option(
            "--completion-only-loss/--no-completion-only-loss",
            help="Learn completions only. Unset: yes when rows have a prompt and a completion.",
        ),
    ] = None,
    assistant_only_loss: Annotated[
        bool,
        typer.Option("--assistant-only-loss", help="Learn every assistant turn and nothing else."),
    ] = False,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Record format; unset: recognised.",
            metavar="NAME",
            autocompletion=formats,
        ),
    ] = None,
    text_field: Annotated[
        str, typer.Option("--text-field", help="Column of plain text.", metavar="NAME")
    ] = "text",
    chat_template_kwargs: TemplateOptionsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show rows as training sees them, with the learned tokens marked, and count the whole split.

    Learned tokens stand between ⟦ and ⟧. Only the tokenizer of the model is loaded. The quiet
    output is the fingerprint of the data: equal data, tokenizer and settings give an equal
    fingerprint.

    Examples:
      chuk data preview --data train.jsonl --model ./my-model
      chuk data preview --data ./math --model ./my-model --split valid --rows 10
      chuk data preview --data chats.jsonl --model ./my-model --assistant-only-loss --json
    """
    from dataclasses import asdict, replace

    from chuk_cli.preview import draw
    from chuk_lib.data import SFTDataset, preview_rows, read_records
    from chuk_lib.data.sources import sources

    out = Out.of(json, quiet)
    named = ",".join(data)
    records = list(read_records(sources(named, column_map or ()), split))
    tokenizer = load_tokenizer(model, chat_template_kwargs)
    rules: dict[str, Any] = {
        "max_length": max_length or None,
        "completion_only_loss": completion_only_loss,
        "assistant_only_loss": assistant_only_loss,
        "format": format,
        "text_field": text_field,
    }
    with out.status(f"rendering {len(records):,} rows"):
        shown = preview_rows(records, tokenizer, rows=rows, **rules)
        dataset = SFTDataset(records, tokenizer, split=split, **rules)
    report = replace(dataset.report, source=named)
    result = {
        **report.as_dict(),
        "fingerprint": dataset.fingerprint,
        "preview": [asdict(row) for row in shown],
    }
    out.result(result, human=draw(shown, report), quiet=dataset.fingerprint)
    for note in report.notes:
        out.warn(note)
