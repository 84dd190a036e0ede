"""Whether data fits the model that it is to train, looked at before anything runs; and what to say
of rows that were cut or left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.nn as nn
import numpy as np

from chuk_lib.data.preference_dataset import PairExample, UnpairedExample
from chuk_lib.data.prompt_dataset import PromptRow
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import DataError
from chuk_lib.inference.prompts import made_for_length, window_limit
from chuk_lib.inference.vocabulary import check_tokens
from chuk_lib.models.honoured import window_words


def check_rows(
    model: nn.Module, tokenizer: LoadedTokenizer, *datasets: Any, max_length: int | None = None
) -> None:
    """Raise DataError for rows with tokens that the model's embedding lacks, and for rows longer
    than it is right for.

    A data set that is None is passed over. `max_length`: rows are joined to this length and see
    each other."""
    for dataset in datasets:
        if dataset is None:
            continue
        named = (
            (str(row.source or f"row {at + 1}"), ids_of(row)) for at, row in enumerate(dataset)
        )
        check_tokens(model, tokenizer, named)
        _check_window(model, dataset, max_length)


def ids_of(row: Any) -> np.ndarray:
    """All token ids of an example, a pair, an unpaired completion or a prompt."""
    if isinstance(row, PairExample | UnpairedExample):
        return np.concatenate([row.prompt, *row.completions])
    return np.asarray(row.ids if isinstance(row, PromptRow) else row.input_ids)


def _check_window(model: nn.Module, dataset: Any, joined: int | None) -> None:
    window = window_limit(model)
    longest = max(dataset.report.longest, joined or 0)
    if window is None or longest <= window:
        return
    rows = next((row for row in dataset if len(row) > window), None)
    where = (
        f"{rows.source}: the row has {len(rows):,} tokens"
        if rows is not None
        else f"rows have {longest:,} tokens"
    )
    raise DataError(f"{where}: {window_words(window)}", f"--max-length {window} keeps to it")


def length_notes(model: nn.Module, longest: int, what: str = "cut them") -> tuple[str, ...]:
    """What to say of rows of up to `longest` tokens that go beyond what the model was made for.
    `what` `max_length` would do to them."""
    limit = made_for_length(model)
    if limit is None or longest <= limit:
        return ()
    return (
        (
            f"rows have up to {longest:,} tokens, the model was made for {limit:,}: they are"
            f" trained whole; --max-length {limit} would {what}"
        ),
    )


def loss_words(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What became of rows that were not taken whole, from a data report as JSON has it."""
    rows, limit = report.get("rows"), report.get("max_length")
    found = []
    if report.get("truncated"):
        found.append(
            f"{report['truncated']:,} of {rows:,} rows are cut at max_length ({limit:,} tokens)"
        )
    if report.get("dropped") and "max_prompt_length" in report:
        longest = report["max_prompt_length"]
        found.append(
            f"{report['dropped']:,} of {rows:,} prompts are left out: they have more than"
            f" {longest:,} tokens"
        )
    elif report.get("dropped"):
        why = (
            "nothing is left of them to learn"
            if limit is None
            else f"max_length ({limit:,}) leaves nothing to learn"
        )
        found.append(f"{report['dropped']:,} of {rows:,} rows are left out: {why}")
    return tuple(found)
