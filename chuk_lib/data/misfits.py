"""What to do with rows that fit no format, and with answers that a row calls bad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chuk_lib.data.types import Record
from chuk_lib.errors import DataError
from chuk_lib.utils.paths import shell_word

_ASKS = ("prompt", "question", "problem", "query", "instruction", "input", "ask", "user")
_ANSWERS = (
    "completion",
    "answer",
    "solution",
    "response",
    "output",
    "target",
    "reply",
    "assistant",
)
_LABELLED = (
    "messages",
    "sharegpt",
    "prompt_completion",
    "prompt_response",
    "alpaca",
    "input_output",
    "question_answer",
    "problem_solution",
)


def misfit_hint(record: Record) -> str:
    """The command that makes a format of a row's columns, where they tell which; else ""."""
    names = {name.lower(): name for name in record.columns if isinstance(name, str)}
    if "chosen" in names and "rejected" in names:
        return (
            "these are preference rows: `chuk train dpo --dry-run` shows them as training sees"
            " them, `chuk data convert --to prompt_completion` takes the chosen answers"
        )
    ask = next((names[name] for name in _ASKS if name in names), None)
    answer = next((names[name] for name in _ANSWERS if name in names and names[name] != ask), None)
    if ask is None or answer is None:
        return ""
    renamed = [
        f"--rename {old}={new}"
        for old, new in ((ask, "prompt"), (answer, "completion"))
        if old != new
    ]
    source = record.source.name if record.source.name not in ("rows", "stdin") else "FILE"
    return (
        f"name them: chuk data convert {shell_word(source)} {' '.join(renamed)} --output"
        " renamed.jsonl"
    )


def refuse_bad_answer(format: str, columns: Mapping[str, Any], source: object) -> None:
    """Raise DataError for a row whose `label` says that its answer is bad: supervised training
    would learn it."""
    if format not in _LABELLED or "label" not in columns:
        return
    label = str(columns["label"]).strip().lower()
    if label == "false" or (label == "0" and format == "prompt_completion"):
        raise DataError(
            f"{source}: `label` says that the answer is bad, and supervised training would"
            " learn it",
            "`chuk train kto` learns from labels; to keep the good answers: chuk data filter"
            f" --match 'label=(?i)^(true|1)$'; if `label` means something else: --format {format},"
            f" or --set format={format}",
        )


def refuse_bad_reference(columns: Mapping[str, Any], source: object) -> None:
    """Raise DataError for a row of prompts whose completion would become the answer that rewards
    compare with, though its `label` says that it is bad."""
    label = str(columns.get("label")).strip().lower()
    if "completion" in columns and "answer" not in columns and label in ("false", "0"):
        raise DataError(
            f"{source}: `label` says that the completion is bad, and rewards would take it for the"
            " right answer",
            "leave both out: chuk data convert --drop completion --drop label; or keep the good"
            " ones: chuk data filter --match 'label=(?i)^(true|1)$'",
        )
