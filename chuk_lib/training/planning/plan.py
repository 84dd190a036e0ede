"""What a training run would be, without running it: data, steps, time and memory; and settings that
fit a budget.

`plan_sft` loads model and data as the run would, measures a few micro-steps on the model's last
blocks, and writes nothing. With a budget it first chooses batch size, accumulation, checkpointing
and packing (`budget`)."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx

from chuk_lib import runtime
from chuk_lib.config.settings import as_dict
from chuk_lib.data.batches import BatchFolder, FolderPlan, is_batch_folder
from chuk_lib.data.batches.show import show_rows
from chuk_lib.data.batching import BatchPlan
from chuk_lib.data.preview import PreviewRow, preview_rows
from chuk_lib.data.reader import DataSource, has_split, read_records
from chuk_lib.data.types import Batch
from chuk_lib.errors import ConfigError
from chuk_lib.models.segments import check_packable
from chuk_lib.training.config import SFTConfig
from chuk_lib.training.fits import loss_words
from chuk_lib.training.jobs import check_start
from chuk_lib.training.language_job import prepare_model, settings_notes
from chuk_lib.training.loading import readable
from chuk_lib.training.planning.budget import Choice, Fit, choose
from chuk_lib.training.planning.dry_run import DryRun
from chuk_lib.training.planning.estimate import MemoryEstimate, StepModel, resident_of
from chuk_lib.training.planning.probe import measure_steps, resized
from chuk_lib.training.planning.room import make_room
from chuk_lib.training.run import check_evaluation
from chuk_lib.training.sft_trainer import (
    SFTAlgorithm,
    SFTTrainer,
    load,
    make_update,
    pad_rounding,
    pad_token_id,
)


def plan_sft(
    config: SFTConfig,
    *,
    origins: Mapping[str, str] | None = None,
    budget: int | str | None = None,
    rows: int = 3,
    overwrite: bool = False,
) -> DryRun:
    """Plan a supervised run. `budget`: bytes, or "auto" for what this machine has; None leaves the
    settings alone.

    Raises what the run itself would raise before its first step, and ConfigError when nothing fits
    the budget."""
    config, output = check_start("sft", config, overwrite)
    source = readable(config)
    if is_batch_folder(source) and budget is not None:
        raise ConfigError(
            f"`--fit` has nothing to choose: the batches in `{source}` are as they were built",
            "build them smaller: `chuk batch build --tokens-per-batch N`",
        )
    trial = _Trial(config, source)
    where = dict(origins or dict.fromkeys(as_dict(config), "given in code"))
    fit = choose(trial, where, budget) if budget is not None else None
    if fit:
        where |= dict.fromkeys(fit.choice.settings(), "--fit")
    room = make_room(trial.trainer, trial.dataset, where) if budget is None else None
    if room:
        trial.config = replace(trial.config, **room.chosen)
        where |= room.origins
    if isinstance(trial.dataset, BatchFolder):
        shown = show_rows(trial.dataset, trial.tokenizer, 1, rows)
    else:
        shown = preview_rows(_first(source, rows), trial.tokenizer, **_rules(trial.config))
    return _describe(trial, where, output, shown, fit, room.warnings if room else ())


def fit_sft(
    config: SFTConfig,
    budget: int | str,
    *,
    origins: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Fit:
    """Settings for `config` that fit a budget, as `plan_sft` would choose them; the model is let go
    again."""
    config, _ = check_start("sft", config, overwrite)
    trial = _Trial(config, readable(config))
    fit = choose(trial, dict(origins or dict.fromkeys(as_dict(config), "given in code")), budget)
    del trial
    gc.collect()
    mx.clear_cache()
    return fit


class _Trial:
    """A loaded model and its data, on which settings are tried. What `choose` asks for is measured
    once."""

    def __init__(self, config: SFTConfig, source: DataSource) -> None:
        trainer, dataset, eval_dataset = load(config, source)
        trainer.check_rows(dataset, eval_dataset)
        check_evaluation(config, eval_dataset is not None)
        adapted = prepare_model(trainer.model, replace(config, gradient_checkpointing=False))
        self.trainer, self.dataset = trainer, dataset
        self.model, self.tokenizer = trainer.model, trainer.tokenizer
        self.config = trainer.complete(adapted, dataset)
        self._models: dict[tuple[bool, bool], StepModel] = {}

    def apply(self, choice: Choice) -> None:
        """Take over settings that were chosen."""
        self.config = replace(self.config, **choice.settings())

    def batch_plan(self, choice: Choice | None = None) -> BatchPlan | FolderPlan:
        """The batches with these settings, or with those chosen."""
        self.trainer.config = replace(self.config, **(choice or Choice.of(self.config)).settings())
        return SFTTrainer.batch_plan(self.trainer, self.dataset)

    def packable(self) -> bool:
        """Whether rows of this model can be packed."""
        try:
            check_packable(self.model)
        except ConfigError:
            return False
        return True

    def largest_batch(self, choice: Choice, rows: int) -> Batch:
        """The micro-batch that needs most: full packed rows, or the longest rows together."""
        if choice.packing:
            return resized(self.batch_plan(choice).batches(0)[0], rows)
        longest = sorted(self.dataset.examples, key=len, reverse=True)[:rows]
        pad = pad_token_id(self.tokenizer)
        rounding = pad_rounding(self.config)
        plan = BatchPlan(
            longest, batch_size=rows, shuffle=False, pad_token_id=pad, pad_to_multiple_of=rounding
        )
        return resized(plan.batches(0)[0], rows)

    def step_model(self, choice: Choice, most_rows: int) -> StepModel:
        """Memory and time with or without checkpointing (in all blocks) and packing, measured for
        up to `most_rows` rows."""
        key = (choice.gradient_checkpointing, choice.packing)
        if key not in self._models:
            self._set_checkpointing(choice.gradient_checkpointing)
            batch = self.largest_batch(choice, min(most_rows, 64))
            algorithm = SFTAlgorithm(
                self.model, self.batch_plan(choice), self.config.loss_type, not runtime.on_cpu()
            )
            to_update = partial(make_update, few_shapes=not runtime.on_cpu())
            probe = measure_steps(algorithm, self.config, batch, most_rows, to_update)
            self._models[key] = StepModel(resident_of(self.model, self.config), probe)
        return self._models[key]

    def memory(self, choice: Choice, most_rows: int) -> MemoryEstimate:
        """The peak of a step with these settings. Where some blocks recompute it lies between all
        and none, by their share."""
        targets = self.largest_batch(choice, choice.batch_size).trained_tokens
        shape = (choice.batch_size, targets, choice.gradient_accumulation_steps)
        found = self.step_model(choice, most_rows).memory(*shape)
        if choice.checkpointing_blocks is None or not choice.gradient_checkpointing:
            return found
        plain = replace(choice, gradient_checkpointing=False, checkpointing_blocks=None)
        share = min(1.0, choice.checkpointing_blocks / len(self.model.layers))
        return found.blended(self.step_model(plain, most_rows).memory(*shape), share)

    def _set_checkpointing(self, on: bool) -> None:
        from chuk_lib.models.recompute import checkpoint_layers, uncheckpoint_layers

        (checkpoint_layers if on else uncheckpoint_layers)(self.model)


def _describe(
    trial: _Trial,
    origins: dict[str, str],
    output: Path,
    rows: Sequence[PreviewRow],
    fit: Fit | None,
    warnings: Sequence[str],
) -> DryRun:
    choice = Choice.of(trial.config)
    if choice.packing:
        check_packable(trial.model)
    plan = trial.batch_plan()
    step_model, memory = (
        trial.step_model(choice, choice.batch_size),
        trial.memory(choice, choice.batch_size),
    )
    width = step_model.probe.width
    slots = trial.dataset.report.tokens / max(1e-9, 1 - plan.padding_share)
    seconds = step_model.seconds(slots / width) / plan.steps_per_epoch
    return DryRun.of(
        trial.config,
        origins,
        output,
        trial.model,
        rows=rows,
        report=trial.dataset.report,
        steps=plan.steps,
        steps_per_epoch=plan.steps_per_epoch,
        epochs=plan.epoch(plan.steps),
        padding=plan.padding_share,
        largest=(min(choice.batch_size, plan.rows), width),
        memory=memory,
        step_seconds=seconds,
        seconds=seconds * plan.steps,
        fit=fit,
        notes=(*_notes(trial, memory), *settings_notes(trial.config, plan.steps), *warnings),
    )


def _notes(trial: _Trial, memory: MemoryEstimate) -> tuple[str, ...]:
    notes = (*trial.trainer.notes(trial.dataset), *loss_words(trial.dataset.report.as_dict()))
    _, available = runtime.memory_use.machine_memory()
    if runtime.on_cpu() and 0 < available + mx.get_active_memory() < memory.total:
        return (
            *notes,
            (
                "this machine has less memory free than the run needs: --fit auto chooses settings"
                " that fit"
            ),
        )
    return notes


def _first(source: DataSource, rows: int) -> list[Any]:
    split = "train" if has_split(source, "train") else "valid"
    return list(islice(read_records(source, split), rows))


def _rules(config: SFTConfig) -> dict[str, Any]:
    return {
        "max_length": config.max_length,
        "completion_only_loss": config.completion_only_loss,
        "assistant_only_loss": config.assistant_only_loss,
        "format": config.format,
        "text_field": config.text_field,
    }
