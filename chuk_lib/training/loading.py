"""What every trainer's `load` is made of: the model that settings name, and the splits of their
data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import mlx.nn as nn

from chuk_lib.data.reader import DataSource, as_sources, has_split, read_stdin
from chuk_lib.data.sources import sources
from chuk_lib.data.tokenizers.template_options import set_template_options
from chuk_lib.errors import ConfigError
from chuk_lib.models import load_model
from chuk_lib.models.config import Dtype, Implementation, LoadConfig, LoRAConfig
from chuk_lib.training.config import TrainerConfig
from chuk_lib.training.templates import with_template

Dataset = TypeVar("Dataset")


def required(config: TrainerConfig, name: str) -> str:
    """A setting that a run cannot do without. Raises ConfigError when nobody gave it."""
    value = getattr(config, name)
    if value is None:
        raise ConfigError(
            f"`{name}` is not given", f"give --{name}, or `{name}:` in a --config file"
        )
    return str(value)


def training_data(config: TrainerConfig) -> DataSource:
    """The rows to train on, as the settings name them. Raises ConfigError when none are given."""
    return sources(required(config, "data"), config.column_map, config.val_size, config.seed)


def readable(config: TrainerConfig) -> DataSource:
    """The rows to train on, for those that read them more than once: those of stdin as a list."""
    source = training_data(config)
    return list(read_stdin()) if source == "-" else source


def held_out(config: TrainerConfig, source: DataSource) -> DataSource | None:
    """Where validation rows come from: `eval_data`, rows that are set aside, or the source's own
    split; None when there are none. Raises ConfigError where two of these are asked for."""
    several = as_sources(source)
    own = several is not None and any(has_split(part.source, "valid") for part in several.parts)
    if config.val_size and (config.eval_data is not None or own):
        there = "`eval_data` is given" if config.eval_data else "the data has validation rows"
        raise ConfigError(f"`val_size` does nothing: {there}", "leave it out")
    if config.eval_data is not None:
        return sources(config.eval_data, config.column_map)
    return source if has_split(source, "valid") else None


def weights_dtype(config: TrainerConfig) -> Dtype:
    """The type of the weights of what is trained: whole models in float32 unless told otherwise,
    because small updates are lost in half-precision weights; under adapters as the device likes it.
    """
    return cast(
        Dtype, "float32" if config.dtype == "auto" and config.lora is None else config.dtype
    )


def load_policy(config: TrainerConfig) -> tuple[nn.Module, Any]:
    """The model to train, with new adapters when the settings ask for them, and its tokenizer."""
    lora = config.lora
    asked = LoadConfig(
        required(config, "model"),
        use_lora=lora is not None,
        lora_config=lora or LoRAConfig(),
        use_4bit=config.load_in_4bit,
        dtype=weights_dtype(config),
        revision=config.revision,
        implementation=cast(Implementation, config.implementation),
        seed=config.seed,
    )
    model, tokenizer = load_model(asked)
    tokenizer = with_template(model, tokenizer, config)
    set_template_options(tokenizer, config.chat_template_kwargs)
    return model, tokenizer


def valid_split(source: DataSource) -> str:
    """Which split of a source is measured: its validation rows, or all when it has but one
    split."""
    return "valid" if has_split(source, "valid") else "train"


def load_splits(
    config: TrainerConfig, source: DataSource, make: Callable[[DataSource, str], Dataset]
) -> tuple[Dataset, Dataset | None]:
    """Training data, and validation data where there is some: `eval_data`, else the source's own.
    `make` reads a split of a source."""
    other = held_out(config, source)
    dataset = make(source, "train")
    return dataset, None if other is None else make(other, valid_split(other))
