"""The one place where a language model becomes a `Job`: what is trained, saved and restored,
fingerprinted, and said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import mlx.nn as nn
from mlx.utils import tree_flatten

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError
from chuk_lib.models import load_trained_weights, provenance_of, save_pretrained, set_trainable
from chuk_lib.models.lora import count_parameters
from chuk_lib.models.randomness import switch_dropout_off
from chuk_lib.training.algorithm import Algorithm
from chuk_lib.training.by_size import count_weights, scaled_rate
from chuk_lib.training.config import Config, TrainerConfig
from chuk_lib.training.fits import loss_words
from chuk_lib.training.identity import inputs_of
from chuk_lib.training.run import Evaluate, Job
from chuk_lib.training.schedulers import warmup_of


class Trainer(Protocol):
    """What a language model's job is made of."""

    model: nn.Module
    tokenizer: LoadedTokenizer

    @property
    def algorithm(self) -> str:
        """The algorithm's name."""

    @property
    def config(self) -> TrainerConfig:
        """All settings, complete."""


def language_job(
    trainer: Trainer,
    dataset: Any,
    algorithm: Algorithm,
    plan: Any,
    *,
    notes: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    chosen: Mapping[str, str] | None = None,
    **more: Any,
) -> Job:
    """A job on a trainer's model. `plan` has `steps` and `epoch(step)`; `dataset` its length,
    `fingerprint` and `report`; `more` are fields of the job, such as `rows` and `updates_per_step`.
    """
    model, config, report = trainer.model, trainer.config, dataset.report.as_dict()
    left_out = loss_words(report)
    updates = plan.steps * more.get("updates_per_step", 1)

    def save(folder: Path) -> None:
        save_pretrained(model, trainer.tokenizer, folder)

    def restore(folder: Path) -> None:
        load_trained_weights(model, folder)

    return Job(
        algorithm=algorithm,
        name=trainer.algorithm,
        steps=plan.steps,
        epoch=plan.epoch,
        save=save,
        restore=restore,
        inputs=inputs_of(config, provenance_of(model), dataset.fingerprint),
        state={"fingerprint": dataset.fingerprint, "conversational": dataset.report.conversational},
        about=about_config(config) | about_model(model) | {"rows": len(dataset), "report": report},
        fast_math=not config.gradient_checkpointing,
        notes=notes,
        warnings=(*left_out, *settings_notes(config, updates)),
        left_out=left_out,
        evaluate=evaluate,
        chosen=chosen or {},
        **more,
    )


def about_config(config: TrainerConfig) -> dict[str, Any]:
    """What a run was begun with, and how many passes over the data were planned."""
    return {"model": config.model, "data": config.data, "epochs": config.num_epochs}


def about_model(model: nn.Module) -> dict[str, Any]:
    """How many parameters a model has, how many of them are trained, and their types."""
    every, trained = count_parameters(model)
    leaves = (leaf for _, leaf in tree_flatten(model.trainable_parameters()))
    kinds = {str(leaf.dtype).removeprefix("mlx.core.") for leaf in leaves}
    return {
        "parameters": every,
        "trainable_parameters": trained,
        "dtype": ", ".join(sorted(kinds)),
    }


def complete(config: Config, model: nn.Module, adapted: bool, source: str) -> Config:
    """Fill in what was left open, so that `config.yaml` alone repeats the run."""
    rate = config.learning_rate or usual_rate(config, model, adapted)
    name = config.model or provenance_of(model).source
    return replace(config, learning_rate=rate, model=name, data=config.data or source)


def usual_rate(config: TrainerConfig, model: nn.Module, adapted: bool) -> float:
    """The learning rate when nobody gave one: the trainer's usual one, for the size of this
    model."""
    rate = config.usual_rates[adapted]
    return scaled_rate(rate, count_weights(model), config.rate_power) if config.rate_power else rate


def prepare_model(model: nn.Module, config: TrainerConfig) -> bool:
    """Choose what is trained: adapters when the model has them, else everything or the last blocks.

    Returns whether adapters are trained. Raises ConfigError when settings ask for what is not
    there."""
    adapted = provenance_of(model).lora is not None
    if config.lora is not None and not adapted:
        raise ConfigError(
            "the settings ask for LoRA but the model has no adapters",
            "load it with `lora=config.lora`",
        )
    if _without_dropout(config):
        switch_dropout_off(model)
    set_trainable(model, lora=adapted, num_layers=None if adapted else config.num_layers)
    if config.gradient_checkpointing:
        from chuk_lib.models import checkpoint_layers

        checkpoint_layers(model, config.checkpointing_blocks)
    return adapted


def _without_dropout(config: TrainerConfig) -> bool:
    return bool(getattr(config, "disable_dropout", False))  # SFT has no such setting


def settings_notes(config: TrainerConfig, updates: int) -> tuple[str, ...]:
    """What the user should know about the settings of a run of `updates`: a peak of the learning
    rate that it never comes to, dropout that is switched off."""
    notes = []
    warmup = warmup_of(config.warmup_steps, config.warmup_ratio, updates)
    if config.lr_scheduler_type != "constant" and 0 < updates <= warmup:
        notes.append(
            f"the warmup takes {warmup:,} updates and the run has {updates:,}: the learning rate"
            f" never gets to {config.learning_rate or 0:g}; lower warmup_steps"
        )
    if config.lora is not None and config.lora.dropout and _without_dropout(config):
        notes.append(
            f"lora_dropout={config.lora.dropout:g} does nothing: this trainer switches dropout off,"
            " as TRL does; disable_dropout=false keeps it"
        )
    return tuple(notes)
