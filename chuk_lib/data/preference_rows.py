"""What preference rows mean, before any token is made: prompts, chosen and rejected completions,
labels.

Without `prompt`, `question` (Intel/orca_dpo_pairs) or Alpaca's `instruction` is the user's turn;
`system`, `tools` and other columns beside them go along to the renderer.

Every complaint names the row and the column as the file has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from chuk_lib.data import conversation
from chuk_lib.data import messages as chat
from chuk_lib.data.alpaca import alpaca_ask
from chuk_lib.data.conversation import string
from chuk_lib.data.types import Record, Source, kind_of
from chuk_lib.errors import DataError

PAIR_EXAMPLE = '{"prompt": "…", "chosen": "…", "rejected": "…"}'
UNPAIRED_EXAMPLE = '{"prompt": "…", "completion": "…", "label": true}'
_LABELS: dict[Any, bool] = {
    True: True,
    False: False,
    "true": True,
    "false": False,
    "1": True,
    "0": False,
}

Value = str | list[dict[str, Any]]
"""Text, or messages."""


@dataclass(frozen=True)
class PreferencePair:
    """A row as two records of prompt and completion, and the margin that it asks for, if any."""

    chosen: Record
    rejected: Record
    margin: float | None = None


@dataclass(frozen=True)
class Unpaired:
    """A row as a record of prompt and completion, and whether the completion is good."""

    record: Record
    label: bool


def read_pair(record: Record, has_template: bool = True) -> PreferencePair:
    """The pair that a record holds; `has_template` as in `asked`. Raises DataError."""
    columns, source = asked(record, ("chosen", "rejected"), has_template), record.source
    for name in ("chosen", "rejected"):
        if columns.get(name) is None:
            raise DataError(f"{source} has no `{name}`", f"a preference row is {PAIR_EXAMPLE}")
    chosen, rejected = _value(columns, "chosen", source), _value(columns, "rejected", source)
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise DataError(
            f"{source}: one of `chosen` and `rejected` is text, the other messages",
            "make both the same",
        )
    if chosen == rejected:
        raise DataError(
            f"{source}: `chosen` and `rejected` are equal",
            "nothing can be learned from it: remove the row",
        )
    prompt, chosen, rejected = _with_prompt(columns, chosen, rejected, source)
    beside = _beside(columns)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        _check_learned(side, name, source)
    return PreferencePair(
        Record({"prompt": prompt, "completion": chosen, **beside}, source),
        Record({"prompt": prompt, "completion": rejected, **beside}, source),
        _margin(columns, source),
    )


def read_unpaired(records: Iterable[Record], has_template: bool = True) -> Iterator[Unpaired]:
    """Rows with a label as they come, or those that pairs are made of: the chosen ones, then the
    rejected ones."""
    bad: list[Unpaired] = []
    is_paired: bool | None = None
    for record in records:
        columns = record.columns
        is_paired = (
            "completion" not in columns and "chosen" in columns if is_paired is None else is_paired
        )
        if not is_paired:
            yield _read_labelled(record, has_template)
            continue
        pair = read_pair(record, has_template)
        yield Unpaired(pair.chosen, True)
        bad.append(Unpaired(pair.rejected, False))
    yield from bad


def _read_labelled(record: Record, has_template: bool) -> Unpaired:
    columns, source = asked(record, ("completion",), has_template), record.source
    for name in ("prompt", "completion", "label"):
        if columns.get(name) is None:
            raise DataError(
                f"{source} has no `{name}`", f"a row is {UNPAIRED_EXAMPLE}, or {PAIR_EXAMPLE}"
            )
    label = columns["label"]
    known = (
        _LABELS.get(label.strip().lower() if isinstance(label, str) else label)
        if _is_plain(label)
        else None
    )
    if known is None:
        raise DataError(
            f"{source}: `label` should be true or false, not {_shown(label)}",
            f"a row is {UNPAIRED_EXAMPLE}",
        )
    prompt, completion = _value(columns, "prompt", source), _value(columns, "completion", source)
    if isinstance(prompt, list) != isinstance(completion, list):
        raise DataError(
            f"{source}: one of `prompt` and `completion` is text, the other messages",
            "make both the same",
        )
    _check_learned(completion, "completion", source)
    return Unpaired(
        Record({"prompt": prompt, "completion": completion, **_beside(columns)}, source), known
    )


def asked(record: Record, answers: tuple[str, ...], has_template: bool = True) -> dict[str, Any]:
    """The columns of a row with its question as `prompt`, where there is none: the text of
    `question`, or `instruction` with its `input`, to which the columns `answers` are answers in
    text. With a chat template it is a user's turn after those of `history` and the answers are the
    assistant's, without one all stays text."""
    columns = record.columns
    name = next(
        (name for name in ("question", "instruction") if isinstance(columns.get(name), str)), None
    )
    plain = all(isinstance(columns.get(answer), str) for answer in answers)
    if columns.get("prompt") is not None or name is None or not plain:
        return columns
    ask = columns[name] if name == "question" else alpaca_ask(columns, record.source)
    if not has_template:
        return {**columns, "prompt": ask}
    turns = [*conversation.history(columns, record.source), {"role": "user", "content": ask}]
    said = {answer: [{"role": "assistant", "content": columns[answer]}] for answer in answers}
    return {key: value for key, value in columns.items() if key != "history"} | {
        "prompt": turns,
        **said,
    }


def _beside(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: columns[name] for name in conversation.BESIDE if columns.get(name) is not None}


def _check_learned(side: Value, name: str, source: Source) -> None:
    if isinstance(side, list):
        chat.refuse_unlearned(side, name, source)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _shown(value: Any) -> str:
    return f"`{value}`" if _is_plain(value) else kind_of(value)


def _value(columns: Mapping[str, Any], name: str, source: Source) -> Value:
    if isinstance(columns[name], list):
        return chat.parse(columns[name], name, source)
    return string(columns, name, source)


def _with_prompt(
    columns: Mapping[str, Any], chosen: Value, rejected: Value, source: Source
) -> tuple[Value, ...]:
    """Prompt, chosen and rejected apart. A prompt in text beside messages is a copy of what those
    begin with."""
    prompt = columns.get("prompt")
    is_chat = isinstance(chosen, list)
    if prompt is not None and isinstance(prompt, list) == is_chat:
        return _value(columns, "prompt", source), chosen, rejected
    if prompt is not None and not is_chat:
        raise DataError(f"{source}: `prompt` holds messages, `chosen` text", "make them the same")
    if prompt is not None and not isinstance(prompt, str):
        raise DataError(
            f"{source}: `prompt` should be text or messages, not {kind_of(prompt)}",
            f"as in {PAIR_EXAMPLE}",
        )
    start = _common(chosen, rejected)
    if is_chat and start == 0:
        hint = "give a `prompt`, or both as whole conversations"
        raise DataError(f"{source}: `chosen` and `rejected` begin with different messages", hint)
    return chosen[:start], chosen[start:], rejected[start:]


def _common(chosen: Value, rejected: Value) -> int:
    """How many characters or messages are the prompt: those that both begin with, without a last
    space and without the last of all, so that something is left of both."""
    size = min(len(chosen), len(rejected))
    start = next((at for at in range(size) if chosen[at] != rejected[at]), max(0, size - 1))
    return start - 1 if start and isinstance(chosen, str) and chosen[start - 1] == " " else start


def _margin(columns: Mapping[str, Any], source: Source) -> float | None:
    given = columns.get("margin")
    if given is None:
        return None
    try:
        margin = float(given) if not isinstance(given, bool) else math.nan
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise DataError(
            f"{source}: `margin` should be a number, not {_shown(given)}", "or leave the column out"
        )
    return margin
