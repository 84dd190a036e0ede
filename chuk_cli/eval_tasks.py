"""`chuk eval --tasks`: multiple-choice questions, alone or beside another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from chuk_cli.humanize import number
from chuk_cli.out import Out, make_table
from chuk_lib.errors import ConfigError
from chuk_lib.models.config import Implementation

if TYPE_CHECKING:
    from chuk_lib.training.measuring.tasks import TaskQuestion, TaskResult

Models = Sequence[tuple[str, str | None]]


_BESIDE = (
    "--data",
    "--split",
    "--max-prompt-length",
    "--output",
    "--reward",
    "--temperature",
    "--k",
    "--stop",
    "--max-tokens",
    "--samples",
    "--env",
    "--tool",
    "--mcp",
    "--map",
    "--chat-template-kwargs",
)


def refuse_beside_tasks(*values: object) -> None:
    """Raise ConfigError for the first of these options (in the order of `_BESIDE`) that is given:
    it means nothing beside `--tasks`."""
    for name, value in zip(_BESIDE, values, strict=True):
        if value is not None:
            raise ConfigError(f"`{name}` means nothing beside `--tasks`", "leave one of them out")


def eval_tasks(
    out: Out, names: str, models: Models, rows: int | None, batch: int, implementation: str
) -> None:
    """Read all tasks, then ask one model after the other, and tell what came of it."""
    from chuk_lib.training.measuring.harness import MARK
    from chuk_lib.training.measuring.tasks import read_task

    given = [name for part in names.split(",") if (name := part.strip())]
    if any(name.startswith(MARK) for name in given):
        _eval_harness(out, given, models, rows, batch, implementation)
        return
    tasks = {name: read_task(name, rows) for part in names.split(",") if (name := part.strip())}
    if not tasks:
        raise ConfigError("`--tasks` names none", "such as --tasks arc_easy,sciq")
    found = [_asked(out, tasks, one, batch, implementation) for one in models]
    records = [result.record() for result in found[0]]
    if len(found) > 1:
        for record, ours, theirs in zip(records, *found, strict=True):
            record |= _beside(ours, theirs)
    data = {"model": models[0][0], "against": models[1][0] if len(models) > 1 else None}
    accuracies = [f"{record['accuracy']:.4f}" for record in records]
    out.result(data | {"tasks": records}, human=_table(records), quiet=accuracies)
    for record in records:
        if record["left_out"]:
            out.warn(f"{record['task']}: {record['left_out']:,} questions do not fit the context")


def _eval_harness(
    out: Out, given: Sequence[str], models: Models, rows: int | None, batch: int, how: str
) -> None:
    """Tasks of lm-evaluation-harness, by its own metrics."""
    from chuk_lib.models import load_model
    from chuk_lib.runtime import computing
    from chuk_lib.training.measuring.harness import MARK, measure_harness

    if other := next((name for name in given if not name.startswith(MARK)), None):
        raise ConfigError(f"`{other}` is none of lm-evaluation-harness", "measure it by itself")
    if len(models) > 1:
        raise ConfigError("tasks of lm-evaluation-harness take one model", "leave out --against")
    (source, adapter), names = models[0], [name.removeprefix(MARK) for name in given]
    with out.status(f"Loading `{source}` …"):
        loaded, tokenizer = load_model(
            source, adapter=adapter, implementation=cast(Implementation, how)
        )
    with out.status(f"{len(names)} tasks"), computing():
        found = measure_harness(loaded, tokenizer, names, rows, batch)
    lines = [
        [one.task, one.questions, name, number(value), _error_of(one.metrics, name)]
        for one in found
        for name, value in one.metrics.items()
        if not name.endswith("_stderr")
    ]
    records = [asdict(one) for one in found]
    table = make_table("", ["task", "questions", "metric", "value", "±"], lines)
    quiet = [f"{line[3]}" for line in lines]
    out.result({"model": source, "tasks": records}, human=table, quiet=quiet)


def _error_of(metrics: Mapping[str, float], name: str) -> str:
    error = metrics.get(f"{name}_stderr")
    return "-" if error is None else number(error)


def _asked(
    out: Out,
    tasks: Mapping[str, list[TaskQuestion]],
    model: tuple[str, str | None],
    batch: int,
    implementation: str,
) -> list[TaskResult]:
    from chuk_lib.models import load_model
    from chuk_lib.runtime import computing
    from chuk_lib.training.measuring.tasks import measure_task

    with out.status(f"Loading `{model[0]}` …"):
        loaded, tokenizer = load_model(
            model[0], adapter=model[1], implementation=cast(Implementation, implementation)
        )
    found = []
    for name, asked in tasks.items():
        with out.status(f"{name}: {len(asked):,} questions"), computing():
            found.append(measure_task(loaded, tokenizer, name, asked, batch))
    return found


def _beside(ours: TaskResult, theirs: TaskResult) -> dict[str, Any]:
    """What the second model got, and the difference with its interval where both were asked the
    same questions."""
    from chuk_lib.training.measuring.bootstrap import paired_difference

    told: dict[str, Any] = {"against_accuracy": float(theirs.right.mean())}
    if len(ours.right) == len(theirs.right):
        found = paired_difference(ours.right.astype(float), theirs.right.astype(float))
        if found is not None:
            told |= {"difference": found.difference, "low": found.low, "high": found.high}
    return told


def _table(records: Sequence[Mapping[str, Any]]) -> Any:
    columns = ["task", "questions", "accuracy", "±", "per char", "±", "chance"]
    rows = [
        [
            record["task"],
            record["questions"],
            *(number(record[name]) for name in ("accuracy", "accuracy_error")),
            *(number(record[name]) for name in ("accuracy_per_char", "accuracy_per_char_error")),
            number(record["chance"]),
        ]
        for record in records
    ]
    if "against_accuracy" in records[0]:
        columns += ["against", "difference", "95 % interval"]
        for row, record in zip(rows, records, strict=True):
            low, high = record.get("low"), record.get("high")
            row += [
                number(record["against_accuracy"]),
                "-" if low is None else f"{record['difference']:+.4f}",
                "-" if low is None else f"{low:+.4f} … {high:+.4f}",
            ]
    return make_table("", columns, rows)
