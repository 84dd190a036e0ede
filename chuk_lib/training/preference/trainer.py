"""Trainers on preferences: DPO, KTO, ORPO, CPO. The class of the settings says which.

Numbers, defaults and metric names are TRL 1.16's. Losses are sums over pairs divided by the pairs
of the whole accumulation window. Left out: mixture-of-experts auxiliary losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.nn as nn
import numpy as np

from chuk_lib import runtime
from chuk_lib.data.batches import BatchFolder, is_batch_folder
from chuk_lib.data.batching import RowPlan
from chuk_lib.data.labels import label_notes
from chuk_lib.data.preference_dataset import (
    PairDataset,
    PairExample,
    UnpairedDataset,
    UnpairedExample,
)
from chuk_lib.data.reader import DataSource
from chuk_lib.data.report import DataReport
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.data.types import Example
from chuk_lib.errors import ConfigError, DataError
from chuk_lib.events import Sink
from chuk_lib.models import provenance_of
from chuk_lib.training.algorithm import Algorithm
from chuk_lib.training.config import checked
from chuk_lib.training.evaluation import evaluate_loss
from chuk_lib.training.fits import check_rows, length_notes
from chuk_lib.training.language_job import complete, language_job, prepare_model
from chuk_lib.training.loading import load_policy, load_splits
from chuk_lib.training.losses.preference_kinds import DPO_LOSSES
from chuk_lib.training.measuring.exact_match import write_sample
from chuk_lib.training.preference.algorithms import (
    DPOAlgorithm,
    KTOAlgorithm,
    ReferenceFreeAlgorithm,
)
from chuk_lib.training.preference.batches import Batches, Layout, Row, pair_arrays, single_arrays
from chuk_lib.training.preference.config import (
    CPOConfig,
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    PreferenceConfig,
    ReferenceConfig,
)
from chuk_lib.training.preference.reference_logps import RefLogps, live, looked_up, precompute
from chuk_lib.training.reference import Reference
from chuk_lib.training.run import Job, Run, RunResult, run_training, step_math
from chuk_lib.training.sft_trainer import rows_of

NAMES: dict[type[PreferenceConfig], str] = {
    DPOConfig: "dpo",
    KTOConfig: "kto",
    ORPOConfig: "orpo",
    CPOConfig: "cpo",
}
Dataset = PairDataset | UnpairedDataset | BatchFolder


class PreferenceTrainer:
    """Learning from preferences with a loaded model.

    >>> model, tokenizer = load_model("my-model", lora=LoRAConfig())
    >>> config = DPOConfig(beta=0.2)
    >>> PreferenceTrainer(model, tokenizer, config).train(PairDataset("pairs.jsonl", tokenizer))

    The settings' class chooses the algorithm: DPOConfig, ORPOConfig and CPOConfig train on a
    PairDataset, KTOConfig on an UnpairedDataset. Adapters on the model are trained and nothing
    else; without adapters every parameter is (or the last `num_layers` blocks). Raises ConfigError
    when settings are out of bounds, contradict each other, or would have no effect."""

    def __init__(
        self, model: nn.Module, tokenizer: LoadedTokenizer, config: PreferenceConfig | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config: PreferenceConfig = checked(config or DPOConfig())

    @property
    def algorithm(self) -> str:
        """Its name: dpo, kto, orpo or cpo."""
        return NAMES[type(self.config)]

    def train(
        self,
        dataset: Dataset,
        eval_dataset: Dataset | None = None,
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

    def job(self, dataset: Dataset, eval_dataset: Dataset | None = None) -> Job:
        """What `train` runs: settings are complete and what is trained is chosen from here on."""
        self._check_data(dataset)
        _refuse_sorting(self.config)
        check_rows(self.model, self.tokenizer, dataset, eval_dataset)
        adapted = prepare_model(self.model, self.config)
        self.config = complete(self.config, self.model, adapted, dataset.source)
        references = self._references(dataset, eval_dataset)
        batches = self.batches(dataset)
        algorithm = self._algorithm(batches, references.train, references.moving)
        evaluate = (
            self._evaluator(eval_dataset, references.valid) if eval_dataset is not None else None
        )
        return language_job(
            self,
            dataset,
            algorithm,
            batches.plan,
            evaluate=evaluate,
            rows=rows_of(batches.plan),
            notes=(
                *notes(self.model, dataset.report),
                *balance(self.config, dataset),
                *references.notes,
            ),
        )

    def batches(self, dataset: Dataset) -> Batches[Any]:
        """The rows of each step, and how they are laid out."""
        config = self.config
        if isinstance(dataset, BatchFolder):
            plan = dataset.plan(
                accumulation=config.gradient_accumulation_steps,
                num_epochs=config.num_epochs,
                max_steps=config.max_steps,
                seed=config.seed,
                shuffle=config.shuffle,
            )
            return Batches(dataset.examples, plan, Layout.of(config, self.tokenizer))
        return make_batches(dataset.examples, self.config, Layout.of(self.config, self.tokenizer))

    def make_algorithm(self, dataset: Dataset) -> Algorithm:
        """The algorithm over a data set as `train` runs it, the reference being the model as it is
        now."""
        references = self._references(dataset, None)
        return self._algorithm(self.batches(dataset), references.train, references.moving)

    def _check_data(self, dataset: Dataset) -> None:
        wanted = UnpairedDataset if isinstance(self.config, KTOConfig) else PairDataset
        is_built = (
            isinstance(dataset, BatchFolder)
            and dataset.kind == "preference"
            and wanted is PairDataset
        )
        if not isinstance(dataset, wanted) and not is_built:
            raise ConfigError(
                f"{self.algorithm} trains on a {wanted.__name__}, not a {type(dataset).__name__}"
            )

    def _references(self, dataset: Dataset, eval_dataset: Dataset | None) -> _References:
        config = self.config
        if not isinstance(config, ReferenceConfig):
            return _References(_no_reference, _no_reference)
        reference = Reference.of(
            self.model, config.ref_model, self.tokenizer, moves=config.sync_ref_model
        )
        if not config.precompute_ref_log_probs:
            run = live(reference, _ld_alpha(config))
            return _References(run, run, reference)
        train, first = self._table(reference, dataset)
        valid, second = (
            self._table(reference, eval_dataset)
            if eval_dataset is not None
            else (_no_reference, ())
        )
        return _References(train, valid, None, (*first, *second))

    def _table(self, reference: Reference, dataset: Dataset) -> tuple[RefLogps, tuple[str, ...]]:
        config = cast(ReferenceConfig, self.config)
        layout = Layout.of(config, self.tokenizer)
        size = config.precompute_ref_batch_size or config.eval_batch_size or config.batch_size
        make: Any = single_arrays if isinstance(config, KTOConfig) else pair_arrays
        with step_math(config):
            table = precompute(
                reference,
                cast(Sequence[Any], dataset.examples),
                lambda rows: make(rows, layout),
                fingerprint=dataset.fingerprint,
                folder=Path(config.ref_log_probs_cache),
                batch_size=size,
                ld_alpha=_ld_alpha(config),
            )
        did = "read from" if table.was_kept else "kept in"
        return looked_up(table), (
            f"reference log-probs of {len(dataset):,} rows: {did} `{table.path}`",
        )

    def _algorithm(
        self,
        batches: Batches[Any],
        ref_logps: RefLogps,
        reference: Reference | None,
        gradient: bool = True,
    ) -> Algorithm:
        config = self.config
        if isinstance(config, DPOConfig):
            return DPOAlgorithm(self.model, batches, config, ref_logps, reference, gradient)
        if isinstance(config, KTOConfig):
            return KTOAlgorithm(self.model, batches, config, ref_logps, reference, gradient)
        assert isinstance(config, ORPOConfig | CPOConfig)
        return ReferenceFreeAlgorithm(self.model, batches, config, gradient)

    def _evaluator(self, dataset: Dataset, ref_logps: RefLogps) -> Callable[[int], dict[str, Any]]:
        """The loss and metrics over all rows, and what the model writes for one prompt, another
        each time."""
        batches: Batches[Any] = eval_batches(
            cast(Any, dataset.examples), self.config, Layout.of(self.config, self.tokenizer)
        )
        algorithm = self._algorithm(batches, ref_logps, None, gradient=False)

        def evaluate(step: int) -> dict[str, Any]:
            example = as_example(dataset.examples[step % len(dataset)])
            sample = write_sample(self.model, self.tokenizer, example)
            return evaluate_loss(algorithm, batches.plan.steps) | {"sample": sample}

        return evaluate


class _References(NamedTuple):
    """Log-probs of the reference on training and validation data, the reference itself when it may
    move, and notes."""

    train: RefLogps
    valid: RefLogps
    moving: Reference | None = None
    notes: tuple[str, ...] = ()


DPOTrainer = PreferenceTrainer
"""DPO by its own name: the settings are DPOConfig's unless others are given."""


def _refuse_sorting(config: PreferenceConfig) -> None:
    """Raise ConfigError for losses of a whole micro-batch where a process has a share of it."""
    names = config.loss_type if isinstance(config, DPOConfig) else ()
    sorting = [name for name in names if DPO_LOSSES[name].sorts]
    if sorting and runtime.this_world().size > 1:
        raise ConfigError(
            f"loss_type={sorting[0]} sorts the ratios of a whole micro-batch, of which each of"
            " several processes has a part",
            "train in one process, or with another loss",
        )


def load(
    config: PreferenceConfig, source: DataSource
) -> tuple[PreferenceTrainer, Dataset, Dataset | None]:
    """Trainer, training data and validation data of a run. Raises ConfigError, ModelError and
    DataError."""
    model, tokenizer = load_policy(config)
    dataset, eval_dataset = load_data(config, source, tokenizer)
    return PreferenceTrainer(model, tokenizer, config), dataset, eval_dataset


def load_data(
    config: PreferenceConfig, source: DataSource, tokenizer: LoadedTokenizer
) -> tuple[Any, Any]:
    """Training data and validation data (or None) of a run. Raises DataError."""
    kind: Any = UnpairedDataset if isinstance(config, KTOConfig) else PairDataset
    if is_batch_folder(source):
        folder = BatchFolder(cast(str, source), tokenizer)
        if folder.kind != "preference" or kind is UnpairedDataset:
            raise DataError(
                f"`{source}` holds {folder.kind} batches",
                "build pairs: `chuk batch build --kind preference`",
            )
        valid = (
            kind(config.eval_data, tokenizer, max_length=config.max_length)
            if config.eval_data
            else None
        )
        return folder, valid
    return load_splits(
        config,
        source,
        lambda part, split: kind(part, tokenizer, split=split, max_length=config.max_length),
    )


def notes(model: nn.Module, report: DataReport, what: str = "cut them") -> tuple[str, ...]:
    """What the user should know about this model and data together. `what` `max_length` would do to
    longer rows."""
    return (*provenance_of(model).notes, *report.notes, *length_notes(model, report.longest, what))


def balance(config: PreferenceConfig, dataset: Dataset) -> tuple[str, ...]:
    """KTO: what to say when good and bad answers do not balance."""
    if not isinstance(config, KTOConfig) or not isinstance(dataset, UnpairedDataset):
        return ()
    good = sum(one.label for one in dataset.examples)
    return label_notes(
        good, len(dataset) - good, config.desirable_weight, config.undesirable_weight
    )


def make_batches(examples: Sequence[Row], config: PreferenceConfig, layout: Layout) -> Batches[Row]:
    """The batches of training."""
    plan = RowPlan(
        [len(example) for example in examples],
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation_steps,
        num_epochs=config.num_epochs,
        max_steps=config.max_steps,
        seed=config.seed,
        shuffle=config.shuffle,
        group_by_length=config.group_by_length,
        pad_to_multiple_of=layout.multiple,
    )
    return Batches(examples, plan, layout)


def eval_batches(examples: Sequence[Row], config: PreferenceConfig, layout: Layout) -> Batches[Row]:
    """Every row once, rows of similar length together; KTO keeps the order of the file, which its
    KL depends on."""
    is_ordered = isinstance(config, KTOConfig)
    plan = RowPlan(
        [len(one) for one in examples],
        batch_size=config.eval_batch_size or config.batch_size,
        shuffle=not is_ordered,
        group_by_length=not is_ordered,
        pad_to_multiple_of=layout.multiple,
    )
    return Batches(examples, plan, layout)


def as_example(row: PairExample | UnpairedExample) -> Example:
    """A prompt with its (chosen) completion, as supervised learning has it."""
    completion = row.completions[0]
    mask = np.arange(len(row.prompt) + len(completion)) >= len(row.prompt)
    return Example(np.concatenate([row.prompt, completion]), mask, source=row.source)


def _ld_alpha(config: ReferenceConfig) -> float | None:
    return config.ld_alpha if isinstance(config, DPOConfig) else None


def _no_reference(rows: Sequence[int], arrays: Any) -> Any:
    raise AssertionError("this loss has no reference")
