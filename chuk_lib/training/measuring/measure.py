"""Measuring a model on a data source: its answers to held-out prompts, the loss on the same rows,
and rewards of what it samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import mlx.nn as nn
import numpy as np

from chuk_lib import runtime
from chuk_lib.data.batching import BatchPlan
from chuk_lib.data.formats import Chat, Recogniser
from chuk_lib.data.prompt_dataset import PromptDataset, split_prompt
from chuk_lib.data.reader import has_split, read_records
from chuk_lib.data.sft_dataset import SFTDataset
from chuk_lib.data.sources import sources
from chuk_lib.data.tokenizers.encoder import Encoder
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.data.tokenizers.template_options import set_template_options
from chuk_lib.data.types import Example, Record
from chuk_lib.errors import ConfigError, DataError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.prompts import context_length, limit_words, window_limit
from chuk_lib.inference.vocabulary import check_tokens
from chuk_lib.models import load_model, provenance_of
from chuk_lib.models.config import Implementation
from chuk_lib.rewards import RewardSet, load_rewards
from chuk_lib.training.evaluation import evaluate_loss
from chuk_lib.training.measuring.bootstrap import Difference, paired_difference
from chuk_lib.training.measuring.exact_match import (
    Answer,
    exact_match,
    longest_target,
    prompt_and_target,
)
from chuk_lib.training.measuring.rewards import RewardMeasurement, measure_rewards
from chuk_lib.training.online.episode import PLAYED, MakePlayer
from chuk_lib.training.sft_trainer import SFTAlgorithm, pad_token_id

_SPLITS = ("test", "valid", "train")
_MAX_TOKENS = 256
_GREEDY = SamplingConfig(seed=0)


@dataclass(frozen=True)
class Question:
    """What is measured, and how.

    By default: greedy answers and exact match. With rewards, several samples, `ks` or anything of
    sampling: `samples` completions of each prompt, scored by `rewards` (exact_match when there is
    none), and pass@k for each of `ks` (1 and `samples`). `temperature` None is greedy for one
    sample and 1 for more. `max_tokens` None is four more than the longest target, or 256 for
    rewards. Prompts of more than `max_prompt_length` tokens are left out and counted.
    `column_map`: columns under other names (prompt=question). `template_options`: what the chat
    template is told, as JSON. `implementation`: whose code runs the model, as in `load_model`.
    `make_player` makes who answers the prompts in the model's name, with tools; rewards find each
    play's environment in the column `environments`."""

    data: str
    split: str | None = None
    max_rows: int | None = None
    max_tokens: int | None = None
    batch_size: int = 32
    rewards: tuple[str, ...] = ()
    reward_errors: str = "raise"
    samples: int = 1
    ks: tuple[int, ...] = ()
    pass_score: float = 1.0
    temperature: float | None = None
    sampling: SamplingConfig = _GREEDY
    max_prompt_length: int | None = None
    implementation: Implementation = "auto"
    make_player: MakePlayer | None = None
    column_map: tuple[str, ...] = ()
    template_options: str | None = None

    @property
    def scores(self) -> bool:
        """Whether completions are scored by rewards: when anything of rewards or sampling was asked
        for."""
        usual = self.sampling == _GREEDY and not self.chosen_temperature
        asked = self.rewards or self.ks or self.make_player
        return bool(asked) or self.samples > 1 or not usual

    @property
    def chosen_temperature(self) -> float:
        """What `temperature` None stands for."""
        return self.temperature if self.temperature is not None else float(self.samples > 1)


@dataclass(frozen=True)
class Measurement:
    """One model's results. `answers` to every row and `by_type` (correct, rows) per `problem_type`
    column when exact match was asked for, `metrics` as `eval_…` when the data has targets, `scored`
    when rewards were. `left_out` prompts were longer than `max_prompt_length`; `notes` are what is
    to be known of the model and of how rows were rendered."""

    model: str
    data: str
    answers: Sequence[Answer]
    by_type: dict[str, tuple[int, int]]
    metrics: dict[str, float]
    scored: RewardMeasurement | None = None
    ks: tuple[int, ...] = ()
    left_out: int = 0
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """How many prompts there were."""
        return (
            len(self.answers)
            if self.scored is None
            else len(self.scored.played.episodes) // self.scored.samples
        )

    @property
    def correct(self) -> int:
        """How many were answered exactly."""
        return sum(answer.correct for answer in self.answers)

    @property
    def exact_match(self) -> float | None:
        """Correct answers as a share of all; None when rewards were measured instead."""
        return self.correct / len(self.answers) if self.answers else None

    def values(self) -> dict[str, np.ndarray]:
        """Numbers per prompt, float64 (P,), for comparison with another model."""
        if self.scored is None:
            return {
                "exact_match": np.array([answer.correct for answer in self.answers], np.float64)
            }
        return self.scored.values() | {f"pass@{k}": self.scored.pass_at(k) for k in self.ks}

    def completions(self) -> Iterator[dict[str, Any]]:
        """Everything that the model wrote, with what it is worth."""
        rows = (vars(answer) | {"correct": answer.correct} for answer in self.answers)
        for row in rows if self.scored is None else self.scored.rows():
            yield {"model": self.model, **row}

    def as_dict(self) -> dict[str, Any]:
        """Plain data: shares, counts, metrics, and up to 20 wrong answers; with rewards their means
        and pass@k."""
        head: dict[str, Any] = {
            "model": self.model,
            "data": self.data,
            "rows": self.rows,
            "metrics": self.metrics,
            "notes": list(self.notes),
        }
        head |= {"left_out": self.left_out} if self.left_out else {}
        if self.scored is not None:
            return head | self.scored.as_dict(self.ks)
        wrong = [answer for answer in self.answers if not answer.correct][:20]
        return head | {
            "correct": self.correct,
            "exact_match": self.exact_match,
            "by_type": {
                name: {"correct": correct, "rows": rows}
                for name, (correct, rows) in self.by_type.items()
            },
            "wrong": [vars(answer) for answer in wrong],
        }


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
    """Exact match and loss of a model on (the first `max_rows` rows of) a data source; see
    `answer`."""
    question = Question(
        data, split=split, max_rows=max_rows, max_tokens=max_tokens, batch_size=batch_size
    )
    return answer(read_question(question), model_source, adapter)


@dataclass(frozen=True)
class Prepared:
    """A question with its rows read and its rewards loaded: for one model, or for several."""

    question: Question
    records: list[Record]
    rewards: RewardSet | None
    ks: tuple[int, ...]


def read_question(question: Question) -> Prepared:
    """Read the rows and load the rewards, before any model.

    Raises DataError as reading does, for rows without a prompt and for a column that a reward
    misses, and ConfigError for a split that the source does not have and for rewards and settings
    that cannot be."""
    data, ks = question.data, _checked_ks(question)
    if question.split is not None and not has_split(data, question.split):
        names = ", ".join(_SPLITS)
        raise ConfigError(
            f"`{data}` has no {question.split} split", f"leave --split out, or one of: {names}"
        )
    rewards = None
    if question.scores:
        limit = question.max_tokens or _MAX_TOKENS
        specs = question.rewards or ("exact_match",)
        rewards = load_rewards(specs, on_error=question.reward_errors, max_completion_length=limit)
    split = question.split or next((name for name in _SPLITS if has_split(data, name)), "train")
    source = sources(data, question.column_map)
    records = list(islice(read_records(source, split), question.max_rows))
    if rewards is not None:
        given = () if question.make_player is None else (PLAYED,)
        known = (*split_prompt(records[0])[1], *records[0].columns, *given)
        rewards.check_columns(known, str(records[0].source))
    return Prepared(question, records, rewards, ks)


def answer(prepared: Prepared, model_source: str, adapter: str | None = None) -> Measurement:
    """Load a model and measure it. Conversations are measured on their last assistant turn.

    Raises ModelError and DataError as loading does, and TrainingError when a reward fails.
    """
    question = prepared.question
    model, tokenizer = load_model(
        model_source, adapter=adapter, implementation=question.implementation
    )
    set_template_options(tokenizer, question.template_options)
    rows, said = _examples(prepared, tokenizer)
    examples = _fitting(rows, model, tokenizer, question.max_prompt_length)
    notes = (*provenance_of(model).notes, *said)
    if prepared.rewards is None:
        answers = exact_match(model, tokenizer, examples, max_tokens=question.max_tokens)
        metrics, by_type = (
            _loss(question, model, tokenizer, examples),
            _by_type(prepared.records, answers),
        )
        left_out = len(rows) - len(examples)
        return Measurement(
            model_source, question.data, answers, by_type, metrics, left_out=left_out, notes=notes
        )
    longest = longest_target(examples) + 4 if examples and not question.rewards else _MAX_TOKENS
    sampling = replace(
        question.sampling,
        temperature=question.chosen_temperature,
        max_tokens=question.max_tokens or longest,
    )
    prompts = PromptDataset(
        prepared.records, tokenizer, max_prompt_length=question.max_prompt_length
    )
    scored = measure_rewards(
        model,
        tokenizer,
        prompts,
        prepared.rewards,
        sampling,
        samples=question.samples,
        pass_score=question.pass_score,
        player=question.make_player and question.make_player(model, tokenizer),
    )
    metrics = _loss(question, model, tokenizer, examples)
    notes = (*provenance_of(model).notes, *prompts.report.notes)
    return Measurement(
        model_source,
        question.data,
        (),
        {},
        metrics,
        scored,
        prepared.ks,
        prompts.report.dropped,
        notes,
    )


def compare(ours: Measurement, theirs: Measurement) -> dict[str, Difference]:
    """Differences of the means per prompt, ours − theirs, by metric, with 95 % intervals.

    Raises ConfigError when not the same number of prompts was left out.
    """
    if ours.left_out != theirs.left_out:
        raise ConfigError(
            f"{ours.left_out:,} prompts are left out for one model, {theirs.left_out:,} for the"
            " other",
            "their tokenizers differ: choose a --max-prompt-length that leaves out the same",
        )
    other = theirs.values()
    found = {name: paired_difference(values, other[name]) for name, values in ours.values().items()}
    return {name: difference for name, difference in found.items() if difference is not None}


def _checked_ks(question: Question) -> tuple[int, ...]:
    ks = question.ks or tuple(sorted({1, question.samples}))
    wrong = [k for k in ks if not 1 <= k <= question.samples]
    if wrong:
        hint = f"write --samples {max(wrong)}" if max(wrong) > 0 else "k is 1 or more"
        raise ConfigError(f"pass@{wrong[0]} cannot be told from {question.samples} samples", hint)
    if question.samples > 1 and question.chosen_temperature == 0:
        raise ConfigError(
            f"{question.samples} samples at temperature 0 are all the same", "raise --temperature"
        )
    return ks


def _examples(
    prepared: Prepared, tokenizer: LoadedTokenizer
) -> tuple[list[Example], tuple[str, ...]]:
    """The rows with their targets, and what is said of them; none when rewards are measured on
    prompts that have no targets."""
    first = prepared.records[0]
    if prepared.question.make_player is not None:  # what is played is no target written at once
        return [], ()
    if prepared.rewards is not None and not _has_target(first, tokenizer):
        return [], ()
    chats = "messages" in first.columns or "conversations" in first.columns
    dataset = SFTDataset(prepared.records, tokenizer, max_length=None, assistant_only_loss=chats)
    return dataset.examples, dataset.report.notes


def _fitting(
    examples: list[Example], model: nn.Module, tokenizer: LoadedTokenizer, longest: int | None
) -> list[Example]:
    """The examples whose prompts have at most `longest` tokens. Raises DataError naming file and
    line for a prompt that fills the model's context, a row longer than a window, and a token that
    the embedding lacks."""
    prompts = [len(prompt_and_target(example)[0]) for example in examples]
    kept = [
        one
        for one, length in zip(examples, prompts, strict=True)
        if longest is None or length <= longest
    ]
    if examples and not kept:
        raise DataError(
            f"all {len(examples):,} prompts have more than {longest} tokens",
            "raise --max-prompt-length",
        )
    check_tokens(model, tokenizer, ((str(one.source), one.input_ids) for one in kept))
    limit, window = context_length(model), window_limit(model)
    for example in kept:
        length = len(prompt_and_target(example)[0])
        if (limit is not None and length >= limit) or (
            window is not None and len(example) > window
        ):
            longest = limit - 1 if limit is not None and length >= limit else length - 1
            raise DataError(
                f"{example.source}: the prompt has {length:,} tokens, its row {len(example):,};"
                f" {limit_words(model)}",
                f"shorten it, or leave such prompts out: --max-prompt-length {longest}",
            )
    return kept


def _has_target(record: Record, tokenizer: LoadedTokenizer) -> bool:
    try:
        row = Recogniser(has_template=Encoder(tokenizer).has_template)(record)
    except DataError:
        return False
    return not isinstance(row, Chat) or row.messages[-1]["role"] == "assistant"


def _loss(
    question: Question, model: nn.Module, tokenizer: LoadedTokenizer, examples: Sequence[Example]
) -> dict[str, float]:
    """The loss, its metrics and the perplexity exp(loss) over all targets; nothing where there are
    none."""
    if not examples:
        return {}
    pad, size = pad_token_id(tokenizer), question.batch_size
    plan = BatchPlan(sorted(examples, key=len), batch_size=size, shuffle=False, pad_token_id=pad)
    with runtime.computing():
        metrics = evaluate_loss(SFTAlgorithm(model, plan, gradient=False), plan.steps)
    return metrics | {"eval_perplexity": math.exp(min(metrics["eval_loss"], 700.0))}


def _by_type(records: Sequence[Record], answers: Sequence[Answer]) -> dict[str, tuple[int, int]]:
    kinds = {str(record.source): record.columns.get("problem_type") for record in records}
    counts: dict[str, tuple[int, int]] = {}
    for one in answers:
        kind = kinds.get(one.source)
        if isinstance(kind, str):
            correct, rows = counts.get(kind, (0, 0))
            counts[kind] = (correct + one.correct, rows + 1)
    return dict(sorted(counts.items()))
