"""Reward models: a score head on a language model's body, trained on pairs (Bradley and Terry
1952).

A completion's score is read at its last token, so rows that do not fit `max_length` are left out,
not cut. Numbers, defaults and metric names are TRL 1.16's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.data.batching import Rounding
from chuk_lib.data.preference_dataset import PairDataset, PairExample
from chuk_lib.data.reader import DataSource
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.events import Sink
from chuk_lib.models import adapters_of, locate
from chuk_lib.models.value_head import (
    SCORE,
    ScoreModel,
    ends,
    is_reward_model,
    load_reward_model,
    make_score_model,
)
from chuk_lib.training.algorithm import Algorithm, Arrays, Loss, Memory, Update
from chuk_lib.training.config import checked
from chuk_lib.training.evaluation import evaluate_loss
from chuk_lib.training.fits import check_rows
from chuk_lib.training.language_job import complete, language_job, prepare_model
from chuk_lib.training.loading import load_policy, load_splits, required, weights_dtype
from chuk_lib.training.losses.preference import halves, reward_loss
from chuk_lib.training.preference.batches import Batches, Layout
from chuk_lib.training.preference.config import RewardConfig
from chuk_lib.training.preference.trainer import eval_batches, make_batches, notes
from chuk_lib.training.run import Job, Run, RunResult, run_training
from chuk_lib.training.sft_trainer import pad_token_id, rows_of

_TIE = 1e-6
"""Scores that differ by less than this share of their size are equal: the same row at two places of
a batch."""


class RewardAlgorithm(Algorithm):
    """One update a step: scores of both completions of each pair."""

    def __init__(
        self, model: ScoreModel, batches: Batches[PairExample], config: RewardConfig
    ) -> None:
        self.model: ScoreModel = model
        self.batches = batches
        self._config = config

    def updates(self, step: int) -> Iterable[Update]:
        """The one update of a step."""
        pad = self.model.pad_token_id
        yield self.batches.update(
            step, lambda rows, pairs: reward_arrays(pairs, self.batches.layout, pad)
        )

    def loss(self, model: nn.Module, micro_batch: Arrays) -> Loss:
        """Sum over the micro-batch's pairs, weight their number."""
        scores = cast(ScoreModel, model).score(micro_batch["input_ids"], micro_batch["lengths"])
        chosen, rejected = halves(scores)
        margin, size = micro_batch.get("margin"), chosen.size
        losses = reward_loss(chosen, rejected, margin, self._config.center_rewards_coefficient)
        tie = _TIE * (mx.abs(chosen) + mx.abs(rejected))
        metrics = {
            "min_reward": size * scores.min(),
            "mean_reward": size * scores.mean(),
            "max_reward": size * scores.max(),
            "accuracy": (chosen - rejected > tie).astype(mx.float32).sum(),
            "margin": (chosen - rejected).sum(),
        }
        return Loss(losses.sum(), mx.array(size, mx.float32), metrics)

    def where(self, step: int) -> str:
        """The source lines that a step trains on."""
        return self.batches.where(step)

    def memory(self) -> Memory:
        """The head, where adapters are all that a checkpoint has of the weights."""
        return Memory({SCORE: self.model.head.weight} if adapters_of(self.model) else {}, {})

    def recall(self, memory: Memory) -> None:
        """Take it back."""
        if SCORE in memory.arrays:
            self.model.head.weight = memory.arrays[SCORE]


def reward_arrays(pairs: Sequence[PairExample], layout: Layout, pad_token_id: int | None) -> Arrays:
    """`input_ids` (2B, T) int32, rows [chosen; rejected]; `lengths` (2B,) up to the token where the
    score is read; `margin` (B,) float32 when pairs have one."""
    rows = [np.concatenate([pair.prompt, pair.chosen]) for pair in pairs]
    rows += [np.concatenate([pair.prompt, pair.rejected]) for pair in pairs]
    width = max(1, *(len(row) for row in rows))
    ids = np.full((len(rows), Rounding.of(layout.multiple)(width)), layout.pad_token_id, np.int32)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
    arrays = {
        "input_ids": mx.array(ids),
        "lengths": mx.array(ends([row.tolist() for row in rows], pad_token_id)),
    }
    if pairs[0].margin is not None:
        arrays["margin"] = mx.array([pair.value for pair in pairs], mx.float32)
    return arrays


class RewardTrainer:
    """Training a reward model on a loaded language model or reward model.

    >>> model, tokenizer = load_model("my-model")
    >>> pairs = PairDataset("pairs.jsonl", tokenizer, keep_ends=True)
    >>> RewardTrainer(model, tokenizer, RewardConfig()).train(pairs)

    A language model gets a new score head, drawn from the seed. The head is always trained; with
    adapters on the model nothing else but these. Raises ConfigError as the other trainers do."""

    algorithm = "reward"

    def __init__(
        self, model: nn.Module, tokenizer: LoadedTokenizer, config: RewardConfig | None = None
    ) -> None:
        self.config = checked(config or RewardConfig())
        self.tokenizer = tokenizer
        if not isinstance(model, ScoreModel):
            model = make_score_model(model, self.config.seed, pad_token_id(tokenizer))
        self.model: ScoreModel = model

    def train(
        self,
        dataset: PairDataset,
        eval_dataset: PairDataset | None = None,
        *,
        sinks: Sequence[Sink] = (),
        should_stop: Callable[[], bool] = lambda: False,
        open_run: Callable[[], Run] | None = None,
    ) -> RunResult:
        """Train, and leave a run directory behind (`config.output`, else a new one under
        `runs/`)."""
        job = self.job(dataset, eval_dataset)
        return run_training(
            job, self.config, sinks=sinks, should_stop=should_stop, open_run=open_run
        )

    def job(self, dataset: PairDataset, eval_dataset: PairDataset | None = None) -> Job:
        """What `train` runs: settings are complete and what is trained is chosen from here on."""
        check_rows(self.model, self.tokenizer, dataset, eval_dataset)
        adapted = prepare_model(self.model, self.config)
        self.model.head.unfreeze()
        self.config = complete(self.config, self.model, adapted, dataset.source)
        algorithm = self.make_algorithm(dataset)
        plan = algorithm.batches.plan
        evaluate = self._evaluator(eval_dataset) if eval_dataset is not None else None
        return language_job(
            self,
            dataset,
            algorithm,
            plan,
            evaluate=evaluate,
            rows=rows_of(plan),
            notes=notes(self.model, dataset.report, "leave them out"),
        )

    def make_algorithm(self, dataset: PairDataset) -> RewardAlgorithm:
        """The algorithm over a data set as `train` runs it."""
        layout = Layout.of(self.config, self.tokenizer)
        return RewardAlgorithm(
            self.model, make_batches(dataset.examples, self.config, layout), self.config
        )

    def _evaluator(self, dataset: PairDataset) -> Callable[[int], dict[str, Any]]:
        batches = eval_batches(
            dataset.examples, self.config, Layout.of(self.config, self.tokenizer)
        )
        algorithm = RewardAlgorithm(self.model, batches, self.config)
        return lambda step: evaluate_loss(algorithm, batches.plan.steps)


def load(
    config: RewardConfig, source: DataSource
) -> tuple[RewardTrainer, PairDataset, PairDataset | None]:
    """Trainer, training data and validation data of a run. Raises ConfigError, ModelError and
    DataError."""
    model, tokenizer = load_start(config)
    dataset, eval_dataset = load_data(config, source, tokenizer)
    return RewardTrainer(model, tokenizer, config), dataset, eval_dataset


def load_start(config: RewardConfig) -> tuple[nn.Module, Any]:
    """What a run begins with: a reward model to go on with, or a language model."""
    name = required(config, "model")
    found = locate(name, revision=config.revision)
    if not is_reward_model(found.adapter_folder or found.folder):
        return load_policy(config)
    return load_reward_model(
        name, lora=config.lora, dtype=weights_dtype(config), revision=config.revision
    )


def load_data(
    config: RewardConfig, source: DataSource, tokenizer: LoadedTokenizer
) -> tuple[PairDataset, PairDataset | None]:
    """Training data and validation data (or None) of a run. Raises DataError."""
    limit = config.max_length
    return load_splits(
        config,
        source,
        lambda part, split: PairDataset(
            part, tokenizer, split=split, max_length=limit, keep_ends=True
        ),
    )
