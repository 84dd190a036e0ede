"""A run as a table: one row a logged step, evaluations joined to the step at which they were
taken."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chuk_lib.errors import ConfigError
from chuk_lib.runs.log import Log
from chuk_lib.runs.summary import metrics_of

FORMATS = (".csv", ".parquet")


def rows_of(log: Log) -> list[dict[str, Any]]:
    """Rows by step: `step`, `time` (seconds since the epoch), `elapsed` (seconds of training), then
    all metrics."""
    rows: dict[int, dict[str, Any]] = {}
    for event, elapsed in zip(log.events, log.elapsed, strict=True):
        if event.kind in ("step", "eval"):
            row = rows.setdefault(
                event.step, {"step": event.step, "time": event.time, "elapsed": round(elapsed, 3)}
            )
            row |= metrics_of(event)
    return [rows[step] for step in sorted(rows)]


def export(log: Log, output: Path) -> int:
    """Write the table as `output`'s ending says, whole or not at all. Returns the number of rows.

    Raises ConfigError for another ending.
    """
    ending = output.suffix.lower()
    if ending not in FORMATS:
        raise ConfigError(
            f"`--output {output}` does not end in {' or '.join(FORMATS)}",
            "the ending chooses the format",
        )
    rows = rows_of(log)
    columns = list(
        dict.fromkeys(["step", "time", "elapsed", *(name for row in rows for name in row)])
    )
    partial = output.with_name(f".{output.name}.partial")
    try:
        (_write_csv if ending == ".csv" else _write_parquet)(partial, rows, columns)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return len(rows)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]], columns: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    kinds = {"step": pyarrow.int64()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in columns])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), path)
