"""`chuk tokenizer info`, `vocab`, `compare`, `fingerprint` and `bench`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.options import JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out, make_table
from chuk_cli.tokenizer.options import (
    DataOption,
    FieldOption,
    RowsOption,
    TokenizerArgument,
    load,
    texts,
)
from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from chuk_lib.data.tokenizers.facts import TokenizerInfo, VocabularyEntry
    from chuk_lib.data.tokenizers.measure import TokenCounts
    from chuk_lib.data.tokenizers.protocol import Tokenizer


def info(
    tokenizer: TokenizerArgument, json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Show kind, size, special tokens, chat template and fingerprints of a tokenizer.

    Examples:
      chuk tokenizer info ./my-model
      chuk tokenizer info ./tokenizer/tokenizer.json --json
    """
    from chuk_lib.data.tokenizers.facts import describe_tokenizer

    out = Out.of(json, quiet)
    found = describe_tokenizer(load(tokenizer))
    lines = dict(_info_lines(found))
    width = max(map(len, lines))
    human = "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
    out.result(asdict(found), human=human, quiet=str(found.vocabulary))


def _info_lines(found: TokenizerInfo) -> Iterator[tuple[str, str]]:
    yield "kind", found.model + ("" if found.fast else " (slow: pure Python)")
    yield "vocabulary", f"{found.vocabulary:,} tokens, {found.added:,} of them added"
    for role, (token, number) in found.special.items():
        note = ", put before plain text" if role == "bos" and found.adds_bos else ""
        yield role, f"{token} ({number}){note}"
    yield "ends a turn", ", ".join(map(str, found.end_ids)) or "nothing"
    yield "longest", f"{found.max_length:,} tokens" if found.max_length else "no limit"
    yield "template", _template_line(found)
    yield "fingerprint", found.fingerprint
    if found.template_fingerprint:
        yield "of template", found.template_fingerprint


def _template_line(found: TokenizerInfo) -> str:
    if found.template is None:
        return "none"
    parts = [
        "with generation markers" if found.markers else "no generation markers",
        "tools" if found.tools else "no tools",
        "thinking" if found.thinking else "no thinking",
    ]
    return f"{'its own' if found.template == 'own' else found.template}: {', '.join(parts)}"


def vocab(
    tokenizer: TokenizerArgument,
    search: Annotated[
        str | None, typer.Argument(help="Text that tokens must hold.", metavar="SEARCH")
    ] = None,
    regex: Annotated[
        bool, typer.Option("--regex", help="The search is a regular expression.")
    ] = False,
    special: Annotated[bool, typer.Option("--special", help="Special tokens only.")] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", help="Tokens to show; 0: all.", min=0)
    ] = 50,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Export all that are found to this file.", metavar="FILE"
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="Of the export: json, csv, or legacy (chuk's predecessor).",
            metavar="NAME",
        ),
    ] = "json",
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List, search or export the vocabulary.

    Examples:
      chuk tokenizer vocab ./my-model hello
      chuk tokenizer vocab ./my-model --special
      chuk tokenizer vocab ./my-model --output vocab.csv --format csv
    """
    from chuk_lib.data.tokenizers import facts

    out = Out.of(json, quiet)
    if output is not None and output.exists() and not overwrite:
        raise ConfigError(
            f"`{output}` exists", "choose another --output, or replace it with --overwrite"
        )
    loaded = load(tokenizer)
    entries: Iterator[VocabularyEntry] = facts.vocabulary(loaded)
    if search is not None:
        entries = facts.search(entries, search, regex)
    found = [entry for entry in entries if entry.special or not special]
    if output is not None:
        _write(output, facts.export(loaded, found, format))
        out.result(
            {"path": str(output), "tokens": len(found)},
            human=f"{output}: {len(found):,} tokens",
            quiet=str(output),
        )
        return
    shown = found[:limit] if limit else found
    table = make_table("", ["id", "token", "text", ""], [_vocab_row(entry) for entry in shown])
    out.result(
        [asdict(entry) for entry in shown], human=table, quiet=[entry.token for entry in shown]
    )
    if len(shown) < len(found):
        out.say(f"{len(found) - len(shown):,} more; show them with `--limit 0`")


def _vocab_row(entry: VocabularyEntry) -> list[Any]:
    return [str(entry.id), entry.token, repr(entry.text), "special" if entry.special else ""]


def _write(path: Path, text: str) -> None:
    from chuk_lib.utils.paths import unwritable, write_whole

    try:
        write_whole(path, text)
    except OSError as error:
        raise unwritable(path, error) from None


def compare(
    first: Annotated[str, typer.Argument(help="A tokenizer.", metavar="TOKENIZER")],
    second: Annotated[str, typer.Argument(help="Another one.", metavar="OTHER")],
    text: Annotated[
        list[str] | None, typer.Argument(help="Texts to encode.", metavar="TEXT")
    ] = None,
    data: DataOption = None,
    text_field: FieldOption = None,
    rows: RowsOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare two tokenizers on the same text: tokens, bytes a token, unknowns, round trips, speed.

    Quiet output is the number of tokens of each. Speeds of short texts or a busy machine mean
    little.

    Examples:
      chuk tokenizer compare ./my-model ./other "The quick brown fox"
      chuk tokenizer compare ./my-model ./tokenizer --data train.jsonl
    """
    from chuk_lib.data.tokenizers import fingerprint, measure
    from chuk_lib.data.tokenizers.protocol import unwrap

    out = Out.of(json, quiet)
    if bool(text) == bool(data):
        raise ConfigError("give texts, or a source of them with --data", "one of the two")
    loaded = [load(first), load(second)]
    with out.status(f"encoding {data or 'the text'} with both"):
        found = measure.compare(loaded, texts(data, text_field, rows) if data else text or ())
    names, prints = (first, second), [fingerprint(each) for each in loaded]
    result = {
        "tokenizers": [
            {
                "tokenizer": name,
                "fingerprint": print,
                "vocabulary": len(unwrap(each)),
                **tally.as_dict(),
            }
            for name, print, each, tally in zip(names, prints, loaded, found, strict=True)
        ],
        "same": prints[0] == prints[1],
    }
    shown = [_pieces(each, text or []) for each in loaded] if text else None
    out.result(
        result,
        human=_comparison(names, result, found, shown),
        quiet=[str(tally.tokens) for tally in found],
    )


def _pieces(tokenizer: Tokenizer, given: list[str]) -> str:
    from chuk_lib.data.tokenizers.protocol import unwrap

    hf = unwrap(tokenizer)
    ids = [
        token
        for each in given
        for token in hf(each, add_special_tokens=False, verbose=False)["input_ids"]
    ]
    return "|".join(hf.decode([token]) for token in ids)


def _comparison(
    names: tuple[str, str],
    result: dict[str, Any],
    found: list[TokenCounts],
    shown: list[str] | None,
) -> Any:
    sizes = [each["vocabulary"] for each in result["tokenizers"]]
    rows: list[list[Any]] = [
        ["vocabulary", *(f"{size:,}" for size in sizes)],
        ["tokens", *(f"{tally.tokens:,}" for tally in found)],
        ["bytes a token", *(f"{tally.bytes_per_token:.2f}" for tally in found)],
        ["tokens used", *(f"{len(tally.used):,}" for tally in found)],
        ["coverage", *(f"{100 * tally.coverage:.2f} %" for tally in found)],
        ["unknown tokens", *(f"{tally.unknown:,}" for tally in found)],
        ["texts changed", *(f"{tally.changed:,} of {tally.texts:,}" for tally in found)],
        ["MB/s", *(f"{tally.megabytes_per_second:.1f}" for tally in found)],
        ["ids", *(("the same", "") if result["same"] else ("different", ""))],
    ]
    if shown is not None:
        rows.append(["pieces", *shown])
    return make_table("", ["", *names], rows)


def fingerprint(
    tokenizer: TokenizerArgument, json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Print a hash of what decides ids: tokenizers with equal hashes give equal ids.

    It covers vocabulary, merges, normalization and added tokens, not the chat template, whose hash
    --json adds.

    Examples:
      chuk tokenizer fingerprint ./my-model
      chuk tokenizer fingerprint ./my-model --json
    """
    from chuk_lib.data import tokenizers

    out = Out.of(json, quiet)
    loaded = load(tokenizer)
    found, of_template = tokenizers.fingerprint(loaded), tokenizers.template_fingerprint(loaded)
    out.result(
        {"fingerprint": found, "template_fingerprint": of_template}, human=found, quiet=found
    )


def bench(
    tokenizer: TokenizerArgument,
    data: DataOption = None,
    text_field: FieldOption = None,
    rows: RowsOption = 1000,
    seconds: Annotated[
        float, typer.Option("--seconds", help="How long to measure.", min=0.1)
    ] = 3.0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure how fast a tokenizer encodes and decodes. Without --data it reads a few lines many
    times.

    Quiet output is the speed of encoding many texts at once, in MB/s.

    Examples:
      chuk tokenizer bench ./my-model --data train.jsonl
      chuk tokenizer bench ./my-model --seconds 10 --json
    """
    from chuk_lib.data.tokenizer_doctor.examine import TEXTS
    from chuk_lib.data.tokenizers import measure

    out = Out.of(json, quiet)
    loaded = load(tokenizer)
    given = (
        texts(data, text_field, rows)
        if data
        else (" ".join(TEXTS) * 4 for _ in range(rows or 1000))
    )
    with out.status(f"encoding for about {seconds:g} seconds"):
        speed = measure.bench(loaded, given, seconds)
    lines = {
        "texts at once": (
            f"{speed.batch_megabytes_per_second:.2f} MB/s, {speed.batch_tokens_per_second:,.0f}"
            " tokens/s"
        ),
        "one by one": f"{speed.single_megabytes_per_second:.2f} MB/s",
        "decoding": f"{speed.decode_tokens_per_second:,.0f} tokens/s",
        "measured on": f"{speed.megabytes:.3f} MB, {speed.tokens:,} tokens",
    }
    human = "\n".join(f"{name:<13}  {value}" for name, value in lines.items())
    out.result(asdict(speed), human=human, quiet=f"{speed.batch_megabytes_per_second:.3f}")
