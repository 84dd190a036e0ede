"""`chuk batch inspect`, `show`, `analyze`, `verify` and `bench`: what is in a folder of batches,
and if it is sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli import humanize
from chuk_cli.batch.options import FolderArgument, SplitOption, TokenizerOption, tokenizer_of
from chuk_cli.options import JsonOption, ModelOption, QuietOption
from chuk_cli.out import Out, make_table

if TYPE_CHECKING:
    from chuk_lib.data.batches.folder import BatchFolder

FilesOption = Annotated[int, typer.Option("--files", "-n", help="Files to list; 0: all.", min=0)]


def inspect(
    folder: FolderArgument,
    files: FilesOption = 10,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what a folder of batches holds and what it was built from.

    The quiet output is the digest of the manifest, or the fingerprint of the files where there is
    none.

    Examples:
      chuk batch inspect ./batches
      chuk batch inspect ./batches --files 0 --json
    """
    from dataclasses import asdict

    from chuk_lib.data.batches import BatchFolder

    out = Out.of(json, quiet)
    found = BatchFolder(folder)
    listed = found.files[: files or None]
    manifest = found.manifest
    result: dict[str, Any] = {
        "path": str(folder),
        "kind": found.kind,
        "files": len(found.files),
        "report": found.report.as_dict(),
        "fingerprint": found.fingerprint,
        "listed": [asdict(entry) for entry in listed],
    }
    if manifest is not None:
        result |= {
            "digest": manifest.digest,
            "settings": manifest.settings,
            "tokenizer": asdict(manifest.tokenizer),
            "sources": [asdict(entry) for entry in manifest.sources],
        }
    out.result(
        result, human=_inspection(found, result), quiet=result.get("digest", found.fingerprint)
    )


def _inspection(found: BatchFolder, result: dict[str, Any]) -> Any:
    from rich.console import Group

    report, manifest = found.report, found.manifest
    parts = {
        "path": f"{found.source} ({found.kind})",
        "format": f"{report.format}: {report.how}" if report.format else report.how,
        "loss on": report.loss_on,
        "tokens": (
            f"{report.tokens:,}, {report.trained_tokens:,} learned, longest row {report.longest:,}"
        ),
        "files": (
            f"{len(found.files):,}, {humanize.size(sum(entry.bytes for entry in found.files))}"
        ),
    }
    if manifest is not None:
        sources = ", ".join(
            f"{entry.name} ({humanize.size(entry.bytes)})" for entry in manifest.sources
        )
        made = manifest.settings
        size = (
            f"{made['tokens_per_batch']:,} tokens"
            if made.get("tokens_per_batch")
            else f"{made['batch_size']} rows"
        )
        parts |= {
            "source": sources,
            "batches": (
                f"{size} each, packing {made.get('packing') or 'off'}, seed {made.get('seed')}"
            ),
            "edges": ", ".join(map(str, made.get("edges", []))),
            "tokenizer": (
                f"{manifest.tokenizer.fingerprint} ({manifest.tokenizer.vocab_size:,} tokens)"
            ),
            "digest": manifest.digest[:16],
        }
    text = "\n".join(f"{name:<9}  {value}" for name, value in parts.items())
    columns = ["file", "rows", "length", "documents", "tokens", "learned", "bytes"]
    names = ("name", "rows", "length", "documents", "tokens", "trained_tokens", "bytes")
    rows = [[entry[name] for name in names] for entry in result["listed"]]
    more = len(found.files) - len(rows)
    return Group(
        text,
        "",
        make_table("", columns, rows),
        f"{more:,} more: --files 0 lists all" if more else "",
    )


def show(
    folder: FolderArgument,
    model: ModelOption,
    file: Annotated[
        int, typer.Option("--file", "-f", help="Which file, counted from 1.", min=1)
    ] = 1,
    rows: Annotated[int, typer.Option("--rows", "-n", help="Rows to show.", min=1)] = 3,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show rows of a file as text, with the learned tokens marked.

    Learned tokens stand between ⟦ and ⟧. The quiet output is the text alone.

    Examples:
      chuk batch show ./batches --model ./my-model
      chuk batch show ./batches --model ./my-model --file 12 --rows 8
    """
    from dataclasses import asdict

    from chuk_cli.preview import draw_rows
    from chuk_lib.data.batches import BatchFolder
    from chuk_lib.data.batches.show import show_rows

    out = Out.of(json, quiet)
    tokenizer = tokenizer_of(model)
    shown = show_rows(BatchFolder(folder, tokenizer), tokenizer, file, rows)
    text = ["".join(part.text for part in row.fragments) for row in shown]
    out.result({"rows": [asdict(row) for row in shown]}, human=draw_rows(shown), quiet=text)


def analyze(folder: FolderArgument, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Say what is padding and what was cut off, by padded length.

    The quiet output is the share of positions that are padding, in per cent.

    Examples:
      chuk batch analyze ./batches
      chuk batch analyze ./batches --json
    """
    from dataclasses import asdict

    from chuk_lib.data.batches import BatchFolder
    from chuk_lib.data.batches.measure import analyze as measure

    out = Out.of(json, quiet)
    found = BatchFolder(folder)
    buckets = measure(found)
    report = found.report
    slots, tokens = (
        sum(bucket.slots for bucket in buckets),
        sum(bucket.tokens for bucket in buckets),
    )
    lost = int(found.manifest.report.get("lost_tokens", 0)) if found.manifest is not None else 0
    result = {
        "files": len(found.files),
        "slots": slots,
        "tokens": tokens,
        "padding": round(1 - tokens / slots, 6),
        "bytes": sum(bucket.bytes for bucket in buckets),
        "truncated_rows": report.truncated,
        "lost_tokens": lost,
        "lost_share": round(lost / max(1, tokens + lost), 6),
        "dropped_rows": report.dropped,
        "buckets": [asdict(bucket) | {"padding": round(bucket.padding, 6)} for bucket in buckets],
    }
    columns = ["length", "files", "rows", "tokens", "learned", "padding %", "bytes"]
    cells = [
        [b.length, b.files, b.rows, b.tokens, b.trained_tokens, f"{100 * b.padding:.2f}", b.bytes]
        for b in buckets
    ]
    cells.append(
        [
            "all",
            result["files"],
            sum(b.rows for b in buckets),
            tokens,
            sum(b.trained_tokens for b in buckets),
            f"{100 * (1 - tokens / slots):.2f}",
            result["bytes"],
        ]
    )
    out.result(
        result, human=make_table("", columns, cells), quiet=f"{100 * (1 - tokens / slots):.2f}"
    )
    out.say(
        f"cut off: {lost:,} tokens of {report.truncated:,} rows; {report.dropped:,} rows had"
        " nothing to learn"
    )


def verify(
    folder: FolderArgument,
    model: TokenizerOption = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="The source, to compare.", metavar="DATA")
    ] = None,
    split: SplitOption = "train",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check every file against the manifest, and the manifest against a tokenizer and the source.

    Exit code 1 when there is a problem; each is named with its file.

    Examples:
      chuk batch verify ./batches
      chuk batch verify ./batches --model ./my-model --data train.jsonl
    """
    from chuk_lib.data.batches.verify import verify as check

    out = Out.of(json, quiet)
    problems = check(folder, tokenizer_of(model), data, split)
    human = "\n".join(problems) if problems else f"`{folder}` is as it was built"
    out.result(
        {"path": str(folder), "sound": not problems, "problems": problems},
        human=human,
        quiet=problems,
    )
    if problems:
        out.say(f"{len(problems):,} problems")
        raise typer.Exit(1)


def bench(
    folder: FolderArgument,
    rounds: Annotated[
        int, typer.Option("--rounds", help="How often to read; the best counts.", min=1)
    ] = 3,
    files: FilesOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure how fast the files of a folder load.

    The quiet output is tokens a second.

    Examples:
      chuk batch bench ./batches
      chuk batch bench ./batches --files 100 --rounds 5
    """
    from dataclasses import asdict

    from chuk_lib.data.batches import BatchFolder
    from chuk_lib.data.batches.measure import load_speed

    out = Out.of(json, quiet)
    speed = load_speed(BatchFolder(folder), rounds, files or None)
    result = asdict(speed) | {
        "files_per_second": round(speed.files / speed.seconds, 1),
        "tokens_per_second": round(speed.tokens_per_second),
        "bytes_per_second": round(speed.bytes / speed.seconds),
    }
    text = (
        f"{speed.files:,} files in {speed.seconds:.3f} s (first round {speed.first_seconds:.3f} s):"
        f" {result['files_per_second']:,.0f} files, {humanize.count(result['tokens_per_second'])}"
        f" tokens, {humanize.size(result['bytes_per_second'])} a second"
    )
    out.result(result, human=text, quiet=str(result["tokens_per_second"]))
