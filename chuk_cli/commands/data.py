"""`chuk data`: make data and look at it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.options import DataOption, DryRunOption, JsonOption, ModelOption, OverwriteOption, QuietOption, SeedOption
from chuk_cli.out import Out
from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from chuk_lib.data.generators import TrainingSample

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def data() -> None:
    """Make, check and look at data."""


@app.command("generate-math")
def generate_math(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder, or - for standard output.", metavar="DIR")],
    samples: Annotated[int, typer.Option("--samples", "-n", help="Problems in all splits together.", min=1)] = 10_000,
    types: Annotated[
        str | None,
        typer.Option("--types", help="Comma-separated. Unset: all but addition.", metavar="NAMES"),
    ] = None,
    difficulty: Annotated[
        str, typer.Option("--difficulty", help="One level or a range of 1 to 5; digits of addition.", metavar="LEVELS")
    ] = "1-3",
    format: Annotated[
        str, typer.Option("--format", help="completion, messages, tools, text or preference.", metavar="NAME")
    ] = "completion",
    reverse_answers: Annotated[
        bool, typer.Option("--reverse-answers", help="Addition: write answers with the last digit first.")
    ] = False,
    reverse_numbers: Annotated[
        bool, typer.Option("--reverse-numbers", help="Addition: write every number with the last digit first.")
    ] = False,
    valid: Annotated[float, typer.Option("--valid", help="Share of the validation split.", min=0)] = 0.05,
    test: Annotated[float, typer.Option("--test", help="Share of the test split.", min=0)] = 0.05,
    seed: SeedOption = 42,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make math problems with exact answers: train.jsonl, valid.jsonl and test.jsonl.

    No problem comes twice, in other words or in another order of its numbers either, so no problem is in two splits.
    Types: arithmetic, fractions, percentages, word_problem, multi_step, comparison, addition.

    Examples:
      chuk data generate-math --samples 10000 --output ./math
      chuk data generate-math --types addition --difficulty 3 --reverse-numbers --output ./sums
      chuk data generate-math --samples 5 --format tools --output -
    """
    from chuk_lib.data.generators import MathProblemGenerator, rows

    out = Out.of(json, quiet)
    folder = None if output == "-" else Path(output)
    rows.check_format(format)
    if folder is not None:
        rows.check_splits(folder, overwrite)
        rows.split_sizes(samples, valid, test)
    names = [name.strip() for name in types.split(",") if name.strip()] if types else None
    made = MathProblemGenerator(seed).generate_batch(samples, _levels(difficulty), names)
    reverse = "numbers" if reverse_numbers else "answers" if reverse_answers else "nothing"
    table = [rows.to_row(sample, format, reverse) for sample in made]
    if folder is None:
        sys.stdout.writelines(rows.to_line(row) for row in table)
        return
    splits = rows.split_rows(table, valid, test)
    if not dry_run:
        rows.write_splits(folder, splits, overwrite)
    sizes = {name: len(split) for name, split in splits.items() if split}
    result = {"path": str(folder), "rows": sizes, "format": format, "seed": seed, **_tally(made)}
    paths = [str(folder / f"{name}.jsonl") for name in sizes]
    out.result(result, human=_summary(result, table[0]), quiet=paths)
    out.say("dry run: nothing was written" if dry_run else f"next: `chuk train sft --model MODEL --data {folder}`")


@app.command()
def preview(
    data: DataOption,
    model: ModelOption,
    rows: Annotated[int, typer.Option("--rows", "-n", help="Rows to show.", min=0)] = 3,
    split: Annotated[str, typer.Option("--split", help="train, valid or test.", metavar="NAME")] = "train",
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
        bool, typer.Option("--assistant-only-loss", help="Learn every assistant turn and nothing else.")
    ] = False,
    format: Annotated[
        str | None, typer.Option("--format", help="Record format; unset: recognised.", metavar="NAME")
    ] = None,
    text_field: Annotated[str, typer.Option("--text-field", help="Column of plain text.", metavar="NAME")] = "text",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show rows as training sees them, with the learned tokens marked, and count the whole split.

    Learned tokens stand between ⟦ and ⟧. Only the tokenizer of the model is loaded. The quiet output is the
    fingerprint of the data: equal data, tokenizer and settings give an equal fingerprint.

    Examples:
      chuk data preview --data train.jsonl --model ./my-model
      chuk data preview --data ./math --model ./my-model --split valid --rows 10
      chuk data preview --data chats.jsonl --model ./my-model --assistant-only-loss --json
    """
    from dataclasses import asdict, replace

    from chuk_cli.preview import draw
    from chuk_lib.data import SFTDataset, preview_rows, read_records

    out = Out.of(json, quiet)
    records = list(read_records(data, split))
    tokenizer = _tokenizer(model)
    rules: dict[str, Any] = {
        "max_length": max_length or None, "completion_only_loss": completion_only_loss,
        "assistant_only_loss": assistant_only_loss, "format": format, "text_field": text_field,
    }  # fmt: skip
    with out.status(f"rendering {len(records):,} rows"):
        shown = preview_rows(records, tokenizer, rows=rows, **rules)
        dataset = SFTDataset(records, tokenizer, split=split, **rules)
    report = replace(dataset.report, source=data)
    result = {**report.as_dict(), "fingerprint": dataset.fingerprint, "preview": [asdict(row) for row in shown]}
    out.result(result, human=draw(shown, report), quiet=dataset.fingerprint)
    for note in report.notes:
        out.warn(note)


def _tokenizer(model: str) -> Any:
    """A folder with tokenizer files, or the tokenizer of whatever else names a model."""
    from chuk_lib.data.tokenizers.loader import load_tokenizer

    if (Path(model) / "tokenizer.json").is_file():
        return load_tokenizer(model)
    from chuk_lib.models.sources import locate

    return load_tokenizer(locate(model).folder)


def _levels(text: str) -> tuple[int, int]:
    """`2` or `1-3` as a range."""
    low, _, high = text.partition("-")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise ConfigError(f"--difficulty `{text}` is no level", "write it as `1-3`, or `3` for one level") from None


def _tally(samples: list[TrainingSample]) -> dict[str, dict[str, int]]:
    """How many samples of each type and difficulty were made."""
    from collections import Counter

    types = Counter(sample.problem.problem_type for sample in samples)
    levels = Counter(sample.problem.difficulty for sample in samples)
    difficulties = {str(level): number for level, number in sorted(levels.items())}
    return {"types": dict(sorted(types.items())), "difficulties": difficulties}


def _summary(result: dict[str, Any], first: dict[str, Any]) -> str:
    from chuk_lib.data.generators import rows

    parts = {
        "path": result["path"],
        "rows": ", ".join(f"{count:,} {name}" for name, count in result["rows"].items()),
        "types": ", ".join(f"{name} {count:,}" for name, count in result["types"].items()),
        "difficulty": ", ".join(f"{level}: {count:,}" for level, count in result["difficulties"].items()),
        "first row": rows.to_line(first).rstrip(),
    }
    return "\n".join(f"{name:<10}  {value}" for name, value in parts.items())
