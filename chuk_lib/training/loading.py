"""What every trainer's `load` is made of: the model that settings name, and the splits of their
data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import mlx.nn as nn

from chuk_lib.data.reader import DataSource, has_split
from chuk_lib.errors import ConfigError
from chuk_lib.models import load_model
from chuk_lib.models.config import Dtype, Implementation, LoadConfig, LoRAConfig
from chuk_lib.training.config import TrainerConfig

Dataset = TypeVar("Dataset")


def required(config: TrainerConfig, name: str) -> str:
    """A setting that a run cannot do without. Raises ConfigError when nobody gave it."""
    value = getattr(config, name)
    if value is None:
        raise ConfigError(
            f"`{name}` is not given", f"give --{name}, or `{name}:` in a --config file"
        )
    return str(value)


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
    return load_model(asked)


def valid_split(source: DataSource) -> str:
    """Which split of a source is measured: its validation rows, or all when it has but one
    split."""
    return "valid" if has_split(source, "valid") else "train"


def load_splits(
    config: TrainerConfig, source: DataSource, make: Callable[[DataSource, str], Dataset]
) -> tuple[Dataset, Dataset | None]:
    """Training data, and validation data where there is some: `eval_data`, else the source's own.
    `make` reads a split of a source."""
    dataset = make(source, "train")
    if config.eval_data is None and not has_split(source, "valid"):
        return dataset, None
    other = config.eval_data or source
    return dataset, make(other, valid_split(other))
