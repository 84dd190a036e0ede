"""Samples as rows of a data file, in the shapes that trainers read, and split without overlap."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chuk_lib.data.generators.math_generator import write_jsonl
from chuk_lib.data.generators.problems import TOOL_SCHEMA, TrainingSample
from chuk_lib.errors import ConfigError
from chuk_lib.utils.paths import check_folder, make_folder

SPLITS = ("train", "valid", "test")
REVERSALS = ("nothing", "answers", "numbers")


def to_row(sample: TrainingSample, format: str, reverse: str = "nothing") -> dict[str, Any]:
    """One row, with the columns `answer`, `problem_type`, `difficulty` and `problem_id` at its end.

    `reverse` is one of REVERSALS and holds for addition: `answers` writes the answer's last digit
    first, the order in which carries run; `numbers` reverses the summands too, so that every digit
    stands at the same distance from those that it follows from, which a model of two layers learns
    in a few hundred steps. `answer` keeps its order. Raises ConfigError for an unknown format and
    for what cannot be reversed."""
    check_format(format)
    problem = sample.problem
    if reverse != "nothing":
        sample = _reversed(sample, format, reverse)
    return {
        **FORMATS[format](sample),
        "answer": problem.answer_exact,
        "problem_type": problem.problem_type,
        "difficulty": problem.difficulty,
        "problem_id": problem.id,
    }


def check_format(format: str) -> None:
    """Raise ConfigError for a format that there is not."""
    if format not in FORMATS:
        raise ConfigError(f"unknown format `{format}`", f"formats: {', '.join(FORMATS)}")


def _reversed(sample: TrainingSample, format: str, reverse: str) -> TrainingSample:
    if reverse not in REVERSALS:
        raise ConfigError(f"unknown reversal `{reverse}`", f"one of: {', '.join(REVERSALS)}")
    problem = sample.problem
    if problem.problem_type != "addition" or format == "tools":
        raise ConfigError(
            "only `addition` can be reversed, and not as tool calls", "use `--types addition`"
        )
    if reverse == "numbers":
        turned = re.sub(r"\d+", lambda found: found[0][::-1], problem.problem_text)
        problem = replace(problem, problem_text=turned)
    wrong = tuple(text[::-1] for text in sample.incorrect_responses)
    right = sample.correct_response[::-1]
    return replace(sample, problem=problem, correct_response=right, incorrect_responses=wrong)


def _completion(sample: TrainingSample) -> dict[str, Any]:
    return {"prompt": sample.problem.problem_text, "completion": sample.correct_response}


def _messages(sample: TrainingSample) -> dict[str, Any]:
    asked = {"role": "user", "content": sample.problem.problem_text}
    return {"messages": [asked, {"role": "assistant", "content": sample.correct_response}]}


def _tools(sample: TrainingSample) -> dict[str, Any]:
    """Each step is a call by the assistant and a result in the tool's own turn, which is not the
    assistant's text."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": sample.problem.problem_text}]
    for call in sample.correct_trace:
        made = {
            "type": "function",
            "function": {"name": call.tool_name, "arguments": call.tool_args},
        }
        messages.append({"role": "assistant", "content": "", "tool_calls": [made]})
        messages.append({"role": "tool", "name": call.tool_name, "content": call.tool_result})
    messages.append({"role": "assistant", "content": f"ANSWER: {sample.problem.answer_exact}"})
    return {"messages": messages, "tools": [TOOL_SCHEMA]}


def _text(sample: TrainingSample) -> dict[str, Any]:
    between = "" if sample.problem.problem_type == "addition" else "\n"
    return {"text": f"{sample.problem.problem_text}{between}{sample.correct_response}"}


def _preference(sample: TrainingSample) -> dict[str, Any]:
    chosen, rejected = sample.correct_response, sample.incorrect_responses[0]
    return {"prompt": sample.problem.problem_text, "chosen": chosen, "rejected": rejected}


def _preference_messages(sample: TrainingSample) -> dict[str, Any]:
    """The wrong answer is the one of the right one's form that is nearest to it in length."""
    right = sample.correct_response
    wrong = min(sample.incorrect_responses[:2], key=lambda text: abs(len(text) - len(right)))
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in (right, wrong))
    return {**_prompt_messages(sample), "chosen": chosen, "rejected": rejected}


def _prompt(sample: TrainingSample) -> dict[str, Any]:
    return {"prompt": sample.problem.problem_text}


def _prompt_messages(sample: TrainingSample) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": sample.problem.problem_text}]}


FORMATS: dict[str, Callable[[TrainingSample], dict[str, Any]]] = {
    "completion": _completion,
    "messages": _messages,
    "tools": _tools,
    "text": _text,
    "preference": _preference,
    "preference_messages": _preference_messages,
    "prompt": _prompt,
    "prompt_messages": _prompt_messages,
}


def to_line(row: dict[str, Any]) -> str:
    """A row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def split_sizes(count: int, valid: float, test: float) -> list[int]:
    """Rows of train, valid and test. Raises ConfigError when nothing is left to train on."""
    if not (valid >= 0 and test >= 0 and valid + test < 1):
        raise ConfigError(
            f"shares of {valid:g} and {test:g} leave nothing to train on",
            "together they stay below 1",
        )
    held_out = [max(1, round(count * share)) if share else 0 for share in (valid, test)]
    train = count - sum(held_out)
    if train < 1:
        raise ConfigError(
            f"{count} samples are too few for {sum(held_out)} held-out ones", "ask for more samples"
        )
    return [train, *held_out]


def split_rows(
    rows: Sequence[dict[str, Any]], valid: float, test: float
) -> dict[str, list[dict[str, Any]]]:
    """Rows by split, in order; `valid` and `test` are shares. A share above 0 gets at least one
    row.

    No two samples of one generator share a problem, so no two splits do. Raises ConfigError when
    nothing is left to train on."""
    sizes = split_sizes(len(rows), valid, test)
    ends = [sizes[0], sizes[0] + sizes[1], len(rows)]
    return {
        name: list(rows[start:end])
        for name, start, end in zip(SPLITS, [0, *ends], ends, strict=False)
    }


def write_splits(
    folder: Path, splits: dict[str, list[dict[str, Any]]], overwrite: bool = False
) -> None:
    """Write `train.jsonl`, `valid.jsonl` and `test.jsonl`; a split without rows has no file
    afterwards.

    Raises ConfigError when one of the files exists and `overwrite` is false.
    """
    check_splits(folder, overwrite)
    make_folder(folder)
    for name in SPLITS:
        path = folder / f"{name}.jsonl"
        if splits.get(name):
            write_jsonl(path, splits[name])
        else:
            path.unlink(missing_ok=True)


def check_splits(folder: Path, overwrite: bool) -> None:
    """Raise ConfigError when split files must not be written to `folder`. Changes nothing."""
    check_folder(folder)
    taken = [name for name in SPLITS if (folder / f"{name}.jsonl").exists()]
    if taken and not overwrite:
        raise ConfigError(
            f"`{folder / taken[0]}.jsonl` exists",
            "choose another --output, or replace the files with --overwrite",
        )
