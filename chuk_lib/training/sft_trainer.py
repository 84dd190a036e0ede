"""Supervised fine-tuning: next-token cross-entropy on the tokens that the data marks as learned.

Numbers are TRL's: the loss is a sum over target tokens divided by the targets of the whole
accumulation window. Evaluations measure the plain cross-entropy: without label smoothing, noise and
auxiliary loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib import runtime
from chuk_lib.data.batches import BatchFolder, FolderPlan, is_batch_folder
from chuk_lib.data.batching import GPU_ROUNDING, BatchPlan, Rounding, RowPlan
from chuk_lib.data.reader import DataSource
from chuk_lib.data.sft_dataset import SFTDataset
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.data.types import Batch
from chuk_lib.errors import ConfigError
from chuk_lib.events import Sink
from chuk_lib.models import provenance_of
from chuk_lib.models.heads import OutputHead, input_embedding, output_head
from chuk_lib.models.randomness import noisy
from chuk_lib.models.routers import Routers, routers_of
from chuk_lib.models.segments import check_packable
from chuk_lib.training.algorithm import Algorithm, Arrays, Loss, Update
from chuk_lib.training.config import SFTConfig, TrainerConfig, checked
from chuk_lib.training.evaluation import evaluate_loss
from chuk_lib.training.fits import check_rows, length_notes
from chuk_lib.training.language_job import complete, language_job, prepare_model
from chuk_lib.training.loading import held_out, load_policy, valid_split
from chuk_lib.training.losses.cross_entropy import sft_loss
from chuk_lib.training.measuring.exact_match import write_sample
from chuk_lib.training.run import Job, Join, Run, RunResult, run_training
from chuk_lib.training.utils.fused_head import StatOptions
from chuk_lib.training.utils.log_probs import target_stats


@dataclass(frozen=True)
class Extras:
    """What is added to the plain cross-entropy: label smoothing, noise on the embedding's vectors
    (NEFTune's alpha), and the routers' load-balancing loss with its coefficient."""

    label_smoothing: float = 0.0
    embedding: nn.Module | None = None
    noise_alpha: float = 0.0
    routers: Routers | None = None
    aux_coef: float = 0.0

    @classmethod
    def of(cls, model: nn.Module, config: SFTConfig) -> Extras:
        """Those that the settings ask for. Raises ConfigError where the model has no place for
        one."""
        embedding, alpha = input_embedding(model), config.neftune_noise_alpha or 0.0
        if alpha and embedding is None:
            raise ConfigError("`neftune_noise_alpha`: this model's embedding was not found")
        coef = config.router_aux_loss_coef
        routers = routers_of(model) if coef else None
        return cls(config.label_smoothing_factor, embedding, alpha, routers, coef)


class SFTAlgorithm(Algorithm):
    """One update a step: the batch plan's window, and `sft_loss` over its target tokens.

    `few_shapes` rounds the number of targets up, so that a compiled step is compiled for few of
    them. `gradient=False` makes an algorithm for evaluation, whose loss has no gradient."""

    def __init__(
        self,
        model: nn.Module,
        plan: BatchPlan | FolderPlan,
        loss_type: str = "nll",
        few_shapes: bool = False,
        gradient: bool = True,
        extras: Extras = Extras(),
    ) -> None:
        self.model = model
        self.plan = plan
        self._loss_type = loss_type
        self._few_shapes = few_shapes
        self._options = StatOptions(gradient=gradient, gap=extras.label_smoothing > 0)
        self._extras = extras
        self._head: OutputHead = output_head(model)

    def updates(self, step: int) -> Iterable[Update]:
        """The one update of a step."""
        yield make_update(
            self.plan.batches(step), self._few_shapes, self._extras.routers is not None
        )

    def loss(self, model: nn.Module, micro_batch: Arrays) -> Loss:
        """Sum over the micro-batch's N target tokens, weight N."""
        extras = self._extras
        with ExitStack() as forward:
            if extras.embedding is not None and extras.noise_alpha:
                forward.enter_context(noisy(extras.embedding, extras.noise_alpha))
            if extras.routers is not None:
                forward.enter_context(extras.routers.recorded())
            stats = target_stats(
                self._head,
                model,
                micro_batch["input_ids"],
                micro_batch["positions"],
                micro_batch["targets"],
                micro_batch.get("segment_ids"),
                self._options,
            )
        smoothing = extras.label_smoothing
        loss = sft_loss(stats, self._loss_type, micro_batch.get("weights"), smoothing)
        if extras.routers is None:
            return loss
        # The engine divides by the window's weight; `aux_share` makes a mean over its micro-batches
        # of that.
        aux = extras.routers.loss(micro_batch["real"]) * micro_batch["aux_share"]
        total = loss.total + extras.aux_coef * aux
        return Loss(total, loss.weight, {**loss.metrics, "aux_loss": aux})

    def where(self, step: int) -> str:
        """The source lines that a step trains on."""
        rows = sorted({row for batch in self.plan.batches(step) for row in batch.rows})
        sources = [str(self.plan.examples[row].source or f"row {row}") for row in rows]
        more = f" and {len(sources) - 4} more" if len(sources) > 4 else ""
        return ", ".join(sources[:4]) + more


def make_update(batches: Sequence[Batch], few_shapes: bool = False, routed: bool = False) -> Update:
    """Device arrays and counts of one accumulation window. Micro-batches without a target are left
    out. `routed`: with what a load-balancing loss reads, `real` (B, T) and `aux_share`."""
    counts = {
        "tokens": sum(batch.tokens for batch in batches),
        "trained_tokens": sum(batch.trained_tokens for batch in batches),
        "slots": sum(batch.input_ids.size for batch in batches),
        "rows": sum(len(batch.rows) for batch in batches),
    }
    learned = [batch for batch in batches if batch.trained_tokens]
    mine, idle = _dealt(learned)
    made = [to_arrays(batch, few_shapes) for batch in mine]
    if routed:
        share = counts["trained_tokens"] / max(1, len(learned)) / runtime.this_world().size
        for arrays, batch in zip(made, mine, strict=True):
            real = np.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]
            arrays["real"] = mx.array(real.astype(np.float32))
            arrays["aux_share"] = mx.array(share, mx.float32)
    return Update(made, float(counts["trained_tokens"]), counts, idle)


def _dealt(batches: Sequence[Batch]) -> tuple[Sequence[Batch], bool]:
    """This process's rows of each micro-batch, of those with a target; see `World.deal`."""
    world = runtime.this_world()
    if world.size == 1:
        return batches, False
    targets = [np.flatnonzero(batch.loss_mask.any(axis=1)) for batch in batches]
    parts = [[(at, int(row)) for row in rows] for at, rows in enumerate(targets)]
    mine, idle = world.deal(parts)
    return [batches[part[0][0]].take([row for _, row in part]) for part in mine], idle


def to_arrays(batch: Batch, few_shapes: bool = False) -> Arrays:
    """A batch as the loss reads it: `input_ids` (B, T), flat `positions` (N,) whose next token is a
    target, the `targets` (N,) themselves, and `segment_ids` (B, T) when rows are packed. With
    `few_shapes` N is rounded up to a sixteenth of B·T and `weights` (N,) are 0 where nothing is
    learned."""
    rows, columns = np.nonzero(batch.loss_mask)
    width = batch.input_ids.shape[1]
    positions, targets = (
        (rows * width + columns - 1).astype(np.int32),
        batch.input_ids[rows, columns],
    )
    arrays = {"input_ids": mx.array(batch.input_ids)}
    if few_shapes:
        extra = -len(targets) % max(16, batch.input_ids.size // 16)
        positions, targets = (np.pad(part, (0, extra)) for part in (positions, targets))
        arrays["weights"] = mx.array((np.arange(len(targets)) < len(rows)).astype(np.float32))
    arrays |= {"positions": mx.array(positions), "targets": mx.array(targets)}
    if batch.segment_ids is not None:
        arrays["segment_ids"] = mx.array(batch.segment_ids)
    return arrays


class SFTTrainer:
    """Supervised fine-tuning of a loaded model.

    >>> model, tokenizer = load_model("my-model", lora=LoRAConfig(rank=8, alpha=16))
    >>> config = SFTConfig(epochs=3)
    >>> SFTTrainer(model, tokenizer, config).train(SFTDataset("train.jsonl", tokenizer))

    Adapters on the model are trained and nothing else; without adapters every parameter is (or the
    last `num_layers` blocks). Raises ConfigError when a setting is out of bounds or would have no
    effect."""

    algorithm = "sft"

    def __init__(
        self, model: nn.Module, tokenizer: LoadedTokenizer, config: SFTConfig | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = checked(config or SFTConfig())

    def train(
        self,
        dataset: SFTDataset | BatchFolder,
        eval_dataset: SFTDataset | BatchFolder | None = None,
        *,
        sinks: Sequence[Sink] = (),
        should_stop: Callable[[], bool] = lambda: False,
        open_run: Callable[[], Run] | None = None,
        join: Join | None = None,
    ) -> RunResult:
        """Train, and leave a run directory behind (`config.output`, else a new one under
        `runs/`). `join` makes the run one of the workers of a parameter server."""
        if self.config.parameter_server is not None and join is None:
            raise ConfigError(
                "the settings name a parameter server, and nothing joins it",
                "give `join=chuk_lib.distributed.join`",
            )
        if self.config.parameter_server is not None and runtime.this_world().size > 1:
            raise ConfigError(
                "a worker of a parameter server is one process",
                "start another instead of `--nproc`",
            )
        job = self.job(dataset, eval_dataset)
        if join is not None and self.config.parameter_server is not None:
            job, should_stop = join(job, self.config, should_stop)
        return run_training(
            job, self.config, sinks=sinks, should_stop=should_stop, open_run=open_run
        )

    def job(
        self,
        dataset: SFTDataset | BatchFolder,
        eval_dataset: SFTDataset | BatchFolder | None = None,
    ) -> Job:
        """What `train` runs: settings are complete and what is trained is chosen from here on."""
        self.check_rows(dataset, eval_dataset)
        adapted = prepare_model(self.model, self.config)
        self.config = self.complete(adapted, dataset)
        if self.config.packing:
            check_packable(self.model)
        plan = self.batch_plan(dataset)
        evaluate = self._evaluator(eval_dataset) if eval_dataset is not None else None
        algorithm = SFTAlgorithm(
            self.model,
            plan,
            self.config.loss_type,
            few_shapes=not runtime.on_cpu(),
            extras=Extras.of(self.model, self.config),
        )
        return language_job(
            self,
            dataset,
            algorithm,
            plan,
            notes=self.notes(dataset),
            evaluate=evaluate,
            rows=rows_of(plan),
        )

    def batch_plan(self, dataset: SFTDataset | BatchFolder) -> BatchPlan | FolderPlan:
        """Which rows each step trains on."""
        config = self.config
        if isinstance(dataset, BatchFolder):
            return dataset.plan(
                accumulation=config.gradient_accumulation_steps,
                num_epochs=config.num_epochs,
                max_steps=config.max_steps,
                seed=config.seed,
                shuffle=config.shuffle,
            )
        return BatchPlan(
            dataset.examples,
            batch_size=config.batch_size,
            accumulation=config.gradient_accumulation_steps,
            num_epochs=config.num_epochs,
            max_steps=config.max_steps,
            seed=config.seed,
            shuffle=config.shuffle,
            group_by_length=config.group_by_length,
            max_length=config.max_length,
            packing=config.packing_strategy if config.packing else None,
            pad_token_id=pad_token_id(self.tokenizer),
            pad_to_multiple_of=pad_rounding(config),
        )

    def complete(self, adapted: bool, dataset: SFTDataset | BatchFolder) -> SFTConfig:
        """Fill in what was left open, so that `config.yaml` alone repeats the run."""
        done = complete(self.config, self.model, adapted, dataset.source)
        server = done.parameter_server
        if server is None:
            return done
        # Found again from another folder; the rate is the server's.
        server = str(Path(server).resolve()) if Path(server).is_dir() else server
        return replace(done, parameter_server=server, learning_rate=None)

    def notes(self, dataset: SFTDataset | BatchFolder) -> tuple[str, ...]:
        """What the user should know about this model and data together."""
        long = length_notes(self.model, dataset.report.longest)
        return (*provenance_of(self.model).notes, *dataset.report.notes, *long)

    def check_rows(self, *datasets: SFTDataset | BatchFolder | None) -> None:
        """Raise DataError for rows that this model cannot run, or would run wrongly."""
        config = self.config
        joined = (
            config.max_length if config.packing and config.packing_strategy == "wrapped" else None
        )
        check_rows(self.model, self.tokenizer, *datasets, max_length=joined)

    def _evaluator(self, dataset: SFTDataset | BatchFolder) -> Callable[[int], dict[str, Any]]:
        """The loss over all rows, and one row's answer, another row each time."""
        plan = self._eval_plan(dataset)
        algorithm = SFTAlgorithm(self.model, plan, few_shapes=not runtime.on_cpu(), gradient=False)

        def evaluate(step: int) -> dict[str, Any]:
            example = dataset[step % len(dataset)]
            return evaluate_loss(algorithm, plan.steps) | {
                "sample": write_sample(self.model, self.tokenizer, example)
            }

        return evaluate

    def _eval_plan(self, dataset: SFTDataset | BatchFolder) -> BatchPlan:
        size = self.config.eval_batch_size or self.config.batch_size
        by_length = sorted(dataset.examples, key=len)
        return BatchPlan(
            by_length,
            batch_size=size,
            shuffle=False,
            group_by_length=False,
            pad_token_id=pad_token_id(self.tokenizer),
            pad_to_multiple_of=pad_rounding(self.config),
        )


def load(
    config: SFTConfig, source: DataSource
) -> tuple[SFTTrainer, SFTDataset | BatchFolder, SFTDataset | BatchFolder | None]:
    """Model, training data and validation data of a run. A folder that `chuk batch build` made is
    trained on as it was built. Raises ModelError and DataError as loading does, ConfigError for
    settings that contradict such a folder."""
    model, tokenizer = load_policy(config)
    eval_dataset: SFTDataset | BatchFolder | None = None
    if is_batch_folder(source):
        folder = BatchFolder(cast(str, source), tokenizer)
        if config.chat_template_kwargs is not None:
            raise ConfigError(
                f"`chat_template_kwargs` does nothing: `{source}` holds tokens",
                "leave it out, or train on the rows",
            )
        if config.eval_data is not None:
            eval_dataset = _eval_data(config, config.eval_data, tokenizer)
        return SFTTrainer(model, tokenizer, folder.settle(config)), folder, eval_dataset
    dataset = SFTDataset(source, tokenizer, split="train", **_data_settings(config))
    if config.text_field != "text" and dataset.report.format != "text":
        raise ConfigError(
            f"`text_field` does nothing: the rows are {dataset.report.format}",
            "leave it out, or set format=text",
        )
    other = held_out(config, source)
    eval_dataset = None if other is None else _eval_data(config, other, tokenizer)
    return SFTTrainer(model, tokenizer, config), dataset, eval_dataset


def _eval_data(
    config: SFTConfig, source: DataSource, tokenizer: LoadedTokenizer
) -> SFTDataset | BatchFolder:
    if is_batch_folder(source):
        return BatchFolder(cast(str, source), tokenizer)
    return SFTDataset(
        source,
        tokenizer,
        split=valid_split(source),
        **(_data_settings(config) | {"packing": False}),
    )


def _data_settings(config: SFTConfig) -> dict[str, Any]:
    return {
        "max_length": config.max_length,
        "completion_only_loss": config.completion_only_loss,
        "assistant_only_loss": config.assistant_only_loss,
        "packing": config.packing,
        "packing_strategy": config.packing_strategy,
        "format": config.format,
        "text_field": config.text_field,
    }


def rows_of(plan: BatchPlan | FolderPlan | RowPlan) -> Callable[[int], list[int]]:
    """The rows of a step in one list; of a folder of batches its files."""
    if isinstance(plan, FolderPlan):
        return plan.files
    return lambda step: [row for part in plan.micro_batches(step) for row in part]


def pad_rounding(config: TrainerConfig) -> Rounding:
    """How padded lengths are rounded: as set, else to few lengths on a GPU and not at all on a
    CPU."""
    given = getattr(config, "pad_to_multiple_of", None)  # rollouts have no such setting
    return Rounding.of(given or (None if runtime.on_cpu() else GPU_ROUNDING))


def pad_token_id(tokenizer: LoadedTokenizer) -> int:
    """The id that fills rows up. Its value never matters: padding is neither seen nor learned."""
    pad = tokenizer.pad_token_id
    return pad if pad is not None else (tokenizer.eos_token_id or 0)
