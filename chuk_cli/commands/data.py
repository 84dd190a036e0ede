"""`chuk data`: make data and look at it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.options import JsonOption, OverwriteOption, QuietOption, SeedOption
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
        bool, typer.Option("--reverse-answers", help="Write the answers of addition with the last digit first.")
    ] = False,
    valid: Annotated[float, typer.Option("--valid", help="Share of the validation split.", min=0)] = 0.05,
    test: Annotated[float, typer.Option("--test", help="Share of the test split.", min=0)] = 0.05,
    seed: SeedOption = 42,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make math problems with exact answers: train.jsonl, valid.jsonl and test.jsonl.

    No problem comes twice, in other words or in another order of its numbers either, so no problem is in two splits.
    Types: arithmetic, fractions, percentages, word_problem, multi_step, comparison, addition.

    Examples:
      chuk data generate-math --samples 10000 --output ./math
      chuk data generate-math --types addition --difficulty 3 --reverse-answers --output ./sums
      chuk data generate-math --samples 5 --format tools --output -
    """
    from chuk_lib.data.generators import MathProblemGenerator, rows

    out = Out.of(json, quiet)
    folder = None if output == "-" else Path(output)
    if folder is not None:
        rows.check_splits(folder, overwrite)
    names = [name.strip() for name in types.split(",") if name.strip()] if types else None
    made = MathProblemGenerator(seed).generate_batch(samples, _levels(difficulty), names)
    table = [rows.to_row(sample, format, reverse_answers) for sample in made]
    if folder is None:
        sys.stdout.writelines(rows.to_line(row) for row in table)
        return
    splits = rows.split_rows(table, valid, test)
    rows.write_splits(folder, splits, overwrite)
    sizes = {name: len(split) for name, split in splits.items() if split}
    result = {"path": str(folder), "rows": sizes, "format": format, "seed": seed, **_tally(made)}
    paths = [str(folder / f"{name}.jsonl") for name in sizes]
    out.result(result, human=_summary(result, table[0]), quiet=paths)
    out.say(f"next: `chuk train sft --model MODEL --data {folder}`")


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
    levels = Counter(str(sample.problem.difficulty) for sample in samples)
    return {"types": dict(sorted(types.items())), "difficulties": dict(sorted(levels.items(), key=lambda kv: int(kv[0])))}


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
