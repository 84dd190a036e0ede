"""Whole jobs, as the command line runs them: settings in, run directory out.

Cheap checks come first (output folder, data file), the model is loaded once, and the run directory is made only when
model and data are known to be good: a failed start leaves nothing behind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import mlx.nn as nn

from chuk_lib.config.paths import absolute
from chuk_lib.config.settings import Layer, resolve, validate
from chuk_lib.data.batches import BatchFolder, is_batch_folder
from chuk_lib.data.reader import DataSource, has_split, read_stdin
from chuk_lib.data.sft_dataset import SFTDataset
from chuk_lib.errors import ConfigError
from chuk_lib.events import Sink
from chuk_lib.models import load_model
from chuk_lib.models.config import Dtype
from chuk_lib.sinks import make_sinks
from chuk_lib.training import recipes
from chuk_lib.training.checkpoints import list_checkpoints, newest_valid
from chuk_lib.training.config import Config, SFTConfig, TrainerConfig, refuse_idle_settings
from chuk_lib.training.run import Run, RunResult
from chuk_lib.training.run_dir import RunDir, check_output, default_run_path
from chuk_lib.training.sft_trainer import SFTTrainer

_STDIN_COPY = "data.jsonl"
Dataset = TypeVar("Dataset")


def train(
    algorithm: str,
    config: TrainerConfig,
    *,
    origins: Mapping[str, str] | None = None,
    sinks: Sequence[Sink] = (),
    should_stop: Callable[[], bool] = lambda: False,
    overwrite: bool = False,
) -> RunResult:
    """A run of an algorithm of `recipes`, from settings. Data from stdin (`-`) is kept in the run directory.

    Raises ConfigError, ModelError, DataError or TrainingError; nothing is written before the first step can be taken.
    """
    config, output = check_start(algorithm, config, overwrite)
    output = output.resolve()
    settings = absolute(replace(config, output=str(output)))
    source: DataSource = required(config, "data")
    with tempfile.NamedTemporaryFile() as copy:
        is_piped = source == "-"
        if is_piped:
            source, settings = read_stdin(copy), replace(settings, data=str(output / _STDIN_COPY))
        start = recipes.prepare(algorithm, settings, source)

        def open_run() -> Run:
            directory = RunDir.create(output, overwrite)
            if is_piped:
                copy.flush()
                directory.copy_in(Path(copy.name), _STDIN_COPY)
            return Run(directory, dict(origins or {}))

        return start(sinks, should_stop, open_run)


def check_start(algorithm: str, config: Config, overwrite: bool = False) -> tuple[Config, Path]:
    """The checked settings of a run and its folder: what can be refused before anything is loaded, for training and a
    plan of it alike. Raises ConfigError for a setting, the folder, or where `report_to` cannot report."""
    config = validate(config)
    refuse_idle_settings(config)
    output = Path(config.output or default_run_path(algorithm, required(config, "model")))
    check_output(output, overwrite)
    make_sinks(config.report_to)
    return config, output


def train_sft(config: SFTConfig, **options: Any) -> RunResult:
    """Supervised fine-tuning from settings; options and errors as of `train`."""
    return train("sft", config, **options)


def resume(
    run_path: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    sinks: Sequence[Sink] = (),
    should_stop: Callable[[], bool] = lambda: False,
    allow_changed: bool = False,
) -> RunResult:
    """Go on exactly where a run stopped, from its newest valid checkpoint; at the start when it has none yet.

    `changes` are settings to change on the way (`max_steps`, `num_epochs`). Raises ModelError when there is no run or
    no valid checkpoint; DataError, ModelError or ConfigError when data, base weights, reference, tokenizer, reward
    files or the rows that come next are not what they were, unless `allow_changed`: then it is said in warnings.
    """
    directory = RunDir.open(run_path.resolve())
    try:
        warnings: list[str] = []
        is_begun = bool(list_checkpoints(directory.path))
        checkpoint = newest_valid(directory.path, warnings.append) if is_begun else None
        layers = [Layer("config.yaml", directory.read_config()), Layer("the command line", changes or {})]
        config = resolve(recipes.config_class(directory.algorithm), layers).value
        start = recipes.prepare(directory.algorithm, config, required(config, "data"))
        run = Run(directory, {}, checkpoint, allow_changed, warnings, tuple(changes or ()))
        return start(sinks, should_stop, lambda: run)
    finally:
        directory.close()


def prepare_sft(config: SFTConfig, source: DataSource) -> recipes.Start:
    """A supervised run, ready to start."""
    return recipes.starter(*load_sft(config, source))


def load_policy(config: TrainerConfig) -> tuple[nn.Module, Any]:
    """The model to train, with new adapters when the settings ask for them, and its tokenizer.

    What is trained whole is loaded in float32: small updates are lost in half-precision weights.
    """
    dtype = "float32" if config.dtype == "auto" and config.lora is None else config.dtype
    return load_model(
        required(config, "model"), config.lora, dtype=cast(Dtype, dtype), revision=config.revision, seed=config.seed
    )


def load_splits(
    config: TrainerConfig, source: DataSource, make: Callable[[DataSource, str], Dataset]
) -> tuple[Dataset, Dataset | None]:
    """Training data, and validation data where there is some: `eval_data`, else the source's own. `make` reads a split
    of a source."""
    dataset = make(source, "train")
    if config.eval_data is None and not has_split(source, "valid"):
        return dataset, None
    other = config.eval_data or source
    return dataset, make(other, "valid" if has_split(other, "valid") else "train")


def load_sft(
    config: SFTConfig, source: DataSource
) -> tuple[SFTTrainer, SFTDataset | BatchFolder, SFTDataset | BatchFolder | None]:
    """Model, training data and validation data of a run. A folder that `chuk batch build` made is trained on as it was
    built. Raises ModelError and DataError as loading does, ConfigError for settings that contradict such a folder."""
    model, tokenizer = load_policy(config)
    eval_dataset: SFTDataset | BatchFolder | None = None
    if is_batch_folder(source):
        folder = BatchFolder(cast(str, source), tokenizer)
        if config.eval_data is not None:
            eval_dataset = _eval_data(config, config.eval_data, tokenizer)
        return SFTTrainer(model, tokenizer, folder.settle(config)), folder, eval_dataset
    dataset = SFTDataset(source, tokenizer, split="train", **_data_settings(config))
    if config.text_field != "text" and dataset.report.format != "text":
        raise ConfigError(
            f"`text_field` does nothing: the rows are {dataset.report.format}", "leave it out, or set format=text"
        )
    if config.eval_data is not None or has_split(source, "valid"):
        eval_dataset = _eval_data(config, config.eval_data or source, tokenizer)
    return SFTTrainer(model, tokenizer, config), dataset, eval_dataset


def _eval_data(config: SFTConfig, source: DataSource, tokenizer: Any) -> SFTDataset | BatchFolder:
    if is_batch_folder(source):
        return BatchFolder(cast(str, source), tokenizer)
    split = "valid" if has_split(source, "valid") else "train"
    return SFTDataset(source, tokenizer, split=split, **(_data_settings(config) | {"packing": False}))


def _data_settings(config: SFTConfig) -> dict[str, Any]:
    return {
        "max_length": config.max_length, "completion_only_loss": config.completion_only_loss,
        "assistant_only_loss": config.assistant_only_loss, "packing": config.packing,
        "packing_strategy": config.packing_strategy, "format": config.format, "text_field": config.text_field,
    }  # fmt: skip


def required(config: TrainerConfig, name: str) -> str:
    """A setting that a run cannot do without. Raises ConfigError when nobody gave it."""
    value = getattr(config, name)
    if value is None:
        raise ConfigError(f"`{name}` is not given", f"give --{name}, or `{name}:` in a --config file")
    return str(value)
