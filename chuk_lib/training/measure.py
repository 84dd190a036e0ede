"""Measuring a model on a data source: load both, answer, compare, and compute the loss on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chuk_lib import runtime
from chuk_lib.data.batching import BatchPlan
from chuk_lib.data.reader import has_split, read_records
from chuk_lib.data.sft_dataset import SFTDataset
from chuk_lib.errors import ConfigError
from chuk_lib.models import load_model
from chuk_lib.training.evaluation import evaluate_loss
from chuk_lib.training.exact_match import Answer, exact_match
from chuk_lib.training.sft_trainer import SFTAlgorithm, pad_token_id

_SPLITS = ("test", "valid", "train")


@dataclass(frozen=True)
class Measurement:
    """Answers to every row, `by_type` (correct, rows) per `problem_type` column, and `eval_…` metrics."""

    model: str
    data: str
    answers: Sequence[Answer]
    by_type: dict[str, tuple[int, int]]
    metrics: dict[str, float]

    @property
    def rows(self) -> int:
        """How many were answered."""
        return len(self.answers)

    @property
    def correct(self) -> int:
        """How many exactly."""
        return sum(answer.correct for answer in self.answers)

    @property
    def exact_match(self) -> float:
        """Correct answers as a share of all."""
        return self.correct / self.rows

    def as_dict(self) -> dict[str, Any]:
        """Plain data: shares, counts, metrics, and up to 20 wrong answers."""
        wrong = [answer for answer in self.answers if not answer.correct][:20]
        return {
            "model": self.model, "data": self.data, "rows": self.rows, "correct": self.correct,
            "exact_match": self.exact_match, "metrics": self.metrics,
            "by_type": {name: {"correct": correct, "rows": rows} for name, (correct, rows) in self.by_type.items()},
            "wrong": [vars(answer) for answer in wrong],
        }  # fmt: skip


def measure(
    model_source: str,
    data: str,
    *,
    adapter: str | None = None,
    split: str | None = None,
    max_rows: int | None = None,
    max_tokens: int | None = None,
    batch_size: int = 32,
) -> Measurement:
    """Exact match and loss of a model on (the first `max_rows` rows of) a data source.

    Conversations are measured on their last assistant turn. Raises ModelError and DataError as loading does, and
    ConfigError for a split that the source does not have.
    """
    if split is not None and not has_split(data, split):
        raise ConfigError(f"`{data}` has no {split} split", f"leave --split out, or one of: {', '.join(_SPLITS)}")
    split = split or next((name for name in _SPLITS if has_split(data, name)), "train")
    model, tokenizer = load_model(model_source, adapter=adapter)
    chats = any("messages" in record.columns or "conversations" in record.columns for record in _first(data, split))
    dataset = SFTDataset(data, tokenizer, split=split, max_length=None, assistant_only_loss=chats)
    examples = dataset.examples[:max_rows]
    answers = exact_match(model, tokenizer, examples, max_tokens=max_tokens)
    plan = BatchPlan(
        sorted(examples, key=len), batch_size=batch_size, shuffle=False, pad_token_id=pad_token_id(tokenizer)
    )
    with runtime.fast_math():
        metrics = evaluate_loss(SFTAlgorithm(model, plan, gradient=False), plan.steps)
    return Measurement(model_source, data, answers, _by_type(data, split, answers), metrics)


def _first(data: str, split: str) -> list[Any]:
    return [next(iter(read_records(data, split)))]


def _by_type(data: str, split: str, answers: Sequence[Answer]) -> dict[str, tuple[int, int]]:
    kinds = {str(record.source): record.columns.get("problem_type") for record in read_records(data, split)}
    counts: dict[str, tuple[int, int]] = {}
    for answer in answers:
        kind = kinds.get(answer.source)
        if isinstance(kind, str):
            correct, rows = counts.get(kind, (0, 0))
            counts[kind] = (correct + answer.correct, rows + 1)
    return dict(sorted(counts.items()))
