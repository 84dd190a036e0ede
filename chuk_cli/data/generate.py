"""`chuk data generate-math`, `generate` and `tasks`: data made from a seed, with answers that can
be checked."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption, SeedOption
from chuk_cli.out import Out, make_table
from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from chuk_lib.data.generators import TrainingSample

FolderOption = Annotated[
    str, typer.Option("--output", "-o", help="Folder, or - for standard output.", metavar="DIR")
]
ValidOption = Annotated[
    float, typer.Option("--valid", help="Share of the validation split.", min=0)
]
TestOption = Annotated[float, typer.Option("--test", help="Share of the test split.", min=0)]

TypesOption = Annotated[
    str | None,
    typer.Option("--types", help="Comma-separated. Unset: all but addition.", metavar="NAMES"),
]
DifficultyOption = Annotated[
    str,
    typer.Option(
        "--difficulty", help="One level or a range of 1 to 5; digits of addition.", metavar="LEVELS"
    ),
]
MathFormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        help=(
            "completion, messages, tools, text, preference, preference_messages, prompt or"
            " prompt_messages."
        ),
        metavar="NAME",
    ),
]
ReverseAnswersOption = Annotated[
    bool,
    typer.Option("--reverse-answers", help="Addition: write answers with the last digit first."),
]
ReverseNumbersOption = Annotated[
    bool,
    typer.Option(
        "--reverse-numbers", help="Addition: write every number with the last digit first."
    ),
]


def generate_math(
    output: FolderOption,
    samples: Annotated[
        int, typer.Option("--samples", "-n", help="Problems in all splits together.", min=1)
    ] = 10_000,
    types: TypesOption = None,
    difficulty: DifficultyOption = "1-3",
    format: MathFormatOption = "completion",
    reverse_answers: ReverseAnswersOption = False,
    reverse_numbers: ReverseNumbersOption = False,
    valid: ValidOption = 0.05,
    test: TestOption = 0.05,
    seed: SeedOption = 42,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make math problems with exact answers: train.jsonl, valid.jsonl and test.jsonl.

    No problem comes twice, in other words or in another order of its numbers either, so no problem
    is in two splits. Types: arithmetic, fractions, percentages, word_problem, multi_step,
    comparison, addition. Formats: `preference` pairs a right answer with a wrong one of its form
    and length, `prompt` has the answer in a column for rewards, `tools` has calls whose results
    stand in turns of the tool, which are not learned with --assistant-only-loss.

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
    train = (
        "grpo"
        if format.startswith("prompt")
        else "dpo"
        if format.startswith("preference")
        else "sft"
    )
    say = (
        "dry run: nothing was written"
        if dry_run
        else f"next: `chuk train {train} --model MODEL --data {shlex.quote(str(folder))}`"
    )
    out.say(say)


def generate(
    task: Annotated[
        str, typer.Argument(help="A task's name; `chuk data tasks` lists them.", metavar="TASK")
    ],
    output: FolderOption,
    samples: Annotated[
        int, typer.Option("--samples", "-n", help="Problems in all splits together.", min=1)
    ] = 1000,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the task; repeatable.", metavar="NAME=VALUE"),
    ] = None,
    messages: Annotated[
        bool, typer.Option("--messages", help="Write prompts as messages for a chat model.")
    ] = False,
    valid: ValidOption = 0.05,
    test: TestOption = 0.05,
    seed: SeedOption = 42,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make prompts with answers of a reasoning task: train.jsonl, valid.jsonl and test.jsonl.

    Rows have the columns prompt, answer, task and metadata: what the task's own scorer needs. No
    prompt comes twice, so none is in two splits. Needs the package reasoning-gym.

    Examples:
      chuk data generate chain_sum --samples 2000 --output ./sums
      chuk data generate countdown --set max_numbers=4 --messages --output ./countdown
      chuk data generate knights_knaves --samples 3 --output -
    """
    from chuk_lib.data.generators import gym, rows

    out = Out.of(json, quiet)
    folder = None if output == "-" else Path(output)
    if folder is not None:
        rows.check_splits(folder, overwrite)
        rows.split_sizes(samples, valid, test)
    made = gym.problems(task, samples, seed, _settings(set_ or []), messages)
    if folder is None:
        sys.stdout.writelines(rows.to_line(row) for row in made)
        return
    with out.status(f"making {samples:,} problems of {task}"):
        splits = rows.split_rows(list(made), valid, test)
    if not dry_run:
        rows.write_splits(folder, splits, overwrite)
    sizes = {name: len(split) for name, split in splits.items() if split}
    result = {"path": str(folder), "rows": sizes, "task": task, "seed": seed}
    said = f"{folder}: " + ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    out.result(result, human=said, quiet=[str(folder / f"{name}.jsonl") for name in sizes])
    out.say(
        "dry run: nothing was written"
        if dry_run
        else f"next: `chuk train grpo --model MODEL --data {shlex.quote(str(folder))}`"
    )


def tasks(
    task: Annotated[
        str | None, typer.Argument(help="Show the settings of one task.", metavar="TASK")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the reasoning tasks that `generate` makes, or the settings of one.

    Examples:
      chuk data tasks
      chuk data tasks chain_sum
    """
    from chuk_lib.data.generators import gym

    out = Out.of(json, quiet)
    known = gym.tasks()
    if task is None:
        rows = [(name, kind) for name, kind in known.items()]
        out.table("", ["task", "kind"], rows)
        return
    if task not in known:
        next(gym.problems(task, 1))
    settings = gym.settings_of(task)
    table = make_table(
        "", ["setting", "default"], [(name, str(value)) for name, value in settings.items()]
    )
    out.result({"task": task, "settings": settings}, human=table, quiet=list(settings))


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` with values read as YAML: numbers, true and false, lists."""
    import yaml

    from chuk_lib.data.workbench.options import parse_pairs

    try:
        return {name: yaml.safe_load(value) for name, value in parse_pairs(texts, "--set").items()}
    except yaml.YAMLError:
        raise ConfigError(
            "a value of --set cannot be read", "write lists as [1, 2] and text in quotes"
        ) from None


def _levels(text: str) -> tuple[int, int]:
    """`2` or `1-3` as a range."""
    low, _, high = text.partition("-")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise ConfigError(
            f"--difficulty `{text}` is no level", "write it as `1-3`, or `3` for one level"
        ) from None


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
        "difficulty": ", ".join(
            f"{level}: {count:,}" for level, count in result["difficulties"].items()
        ),
        "first row": rows.to_line(first).rstrip(),
    }
    return "\n".join(f"{name:<10}  {value}" for name, value in parts.items())
