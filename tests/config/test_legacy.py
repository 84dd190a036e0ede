"""The old sectioned form: every key it had, what it became, and what is said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from chuk_cli.settings import resolve_settings
from chuk_lib.config.forms import legacy, translated
from chuk_lib.config.forms.form import migrated
from chuk_lib.config.settings import settings_of
from chuk_lib.errors import ConfigError
from chuk_lib.training.config import SFTConfig, refuse_idle_settings
from tests.conftest import RunChuk

WHOLE = """\
model: {name: my-org/tiny, tokenizer: my-org/tiny, load_initial_weights: true}
optimizer:
  name: AdamW
  initial_lr: 2e-5
  lr_schedule: {type: cosine_decay, warmup_steps: 20, minimum: 2e-6, decay_rate: 0.1}
  betas: [0.9, '0.95']
  eps: 1e-8
  weight_decay: 5e-2
checkpoint: {output_dir: ./runs/old, frequency_epochs: 1, frequency_iterations: 200, frequency: 50}
training: {num_epochs: 2, total_iterations: 800, loss_function: core.utils.loss.chukloss, progress_interval: 5}
batch: {output_dir: ./batches, file_prefix: demo, pre_cache_size: 4, shuffle: False, max_sequence_length: 512}
"""

SPECIFIED = {
    "model.name",
    "model.tokenizer",
    "model.load_initial_weights",
    "optimizer.name",
    "optimizer.initial_lr",
    "optimizer.lr_schedule.type",
    "optimizer.lr_schedule.warmup_steps",
    "optimizer.lr_schedule.minimum",
    "optimizer.lr_schedule.decay_rate",
    "optimizer.betas",
    "optimizer.eps",
    "optimizer.weight_decay",
    "checkpoint.output_dir",
    "checkpoint.frequency_epochs",
    "checkpoint.frequency_iterations",
    "checkpoint.frequency",
    "training.num_epochs",
    "training.total_iterations",
    "training.loss_function",
    "training.progress_interval",
    "batch.output_dir",
    "batch.file_prefix",
    "batch.pre_cache_size",
    "batch.shuffle",
    "batch.max_sequence_length",
}


def old_file(folder: Path, text: str, name: str = "old.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def resolved(path: Path) -> tuple[SFTConfig, list[str]]:
    """The settings of an old file, and what is said about it."""
    told: list[str] = []
    config: SFTConfig = resolve_settings(SFTConfig, [path], warn=told.append).value
    refuse_idle_settings(config)
    return config, told


def test_the_table_has_every_key_and_each_has_a_home_or_a_reason() -> None:
    assert set(legacy.TABLE) == SPECIFIED
    for olds in legacy.TABLE.values():
        assert all(
            old.setting in settings_of(SFTConfig) if old.setting else old.reason for old in olds
        )


def test_a_whole_file_in_todays_settings(tmp_path: Path) -> None:
    config, told = resolved(old_file(tmp_path, WHOLE))
    changed = {name: getattr(config, name) for name in resolved_names(tmp_path / "old.yaml")}
    assert changed == {
        "model": "my-org/tiny",
        "data": "./batches",
        "optimizer": "adamw",
        "learning_rate": 2e-5,
        "lr_scheduler_type": "cosine_with_min_lr",
        "min_lr_rate": 0.1,
        "warmup_steps": 20,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.05,
        "output": "./runs/old",
        "checkpoint_interval": 200,
        "num_epochs": 2,
        "max_steps": 800,
        "log_interval": 5,
        "shuffle": False,
        "max_length": 512,
    }
    (line,) = told
    assert "chuk config migrate" in line
    assert "batch.file_prefix" in line


def resolved_names(path: Path) -> list[str]:
    return [
        name
        for name, origin in resolve_settings(SFTConfig, [path]).origins.items()
        if origin != "default"
    ]


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    origins = resolve_settings(SFTConfig, [old_file(tmp_path, WHOLE)]).origins
    assert (origins["learning_rate"], origins["min_lr_rate"], origins["seed"]) == (
        "old.yaml:4",
        "old.yaml:5",
        "default",
    )


SCHEDULES = {
    "cosine_decay": "cosine",
    "cosine_annealing": "cosine",
    "cosine_decay_with_warmup": "cosine",
    "linear_decay": "linear",
    "warmup": "constant_with_warmup",
}


@pytest.mark.parametrize(("old", "new"), SCHEDULES.items())
def test_schedules_have_new_names(tmp_path: Path, old: str, new: str) -> None:
    path = old_file(
        tmp_path,
        f"optimizer:\n  initial_lr: 1e-4\n  lr_schedule:\n    type: {old}\n    minimum: 0.0\n",
    )
    config = resolve_settings(SFTConfig, [path]).value
    assert (config.lr_scheduler_type, config.min_lr_rate) == (new, 0.0)


def test_a_fragment_lies_over_a_base_in_either_form(tmp_path: Path) -> None:
    fragment = old_file(tmp_path, "optimizer:\n  initial_lr: 0.01\n  eps: 1e-5\n", "fragment.yaml")
    for base in (
        "batch_size: 3\nlr: 1e-5\n",
        "training:\n  num_epochs: 7\noptimizer:\n  initial_lr: 1\n",
    ):
        config = resolve_settings(SFTConfig, [old_file(tmp_path, base), fragment]).value
        assert (config.learning_rate, config.adam_epsilon) == (0.01, 1e-5)
        assert config.batch_size == 3 or config.num_epochs == 7


BAD = {
    "unknown key": (
        "optimizer:\n  nmae: AdamW\n",
        ["`optimizer.nmae`", "old.yaml:2"],
        "optimizer.name",
    ),
    "unknown nested key": (
        "optimizer:\n  lr_schedule:\n    warmup: 3\n",
        ["old.yaml:3"],
        "warmup_steps",
    ),
    "unknown section": ("model: {name: a}\ntokens:\n  size: 3\n", ["`tokens`", "old.yaml:2"], ""),
    "both forms": ("model: {name: a}\nbatch_size: 3\n", ["`batch_size`", "old.yaml:2"], "migrate"),
    "not a number": ("optimizer:\n  initial_lr: fast\n", ["old.yaml:2", "`fast`"], ""),
    "one beta": ("optimizer:\n  betas: [0.9]\n", ["old.yaml:2"], ""),
    "out of bounds": ("checkpoint:\n  frequency_iterations: 0\n", ["old.yaml:2", "at least 1"], ""),
    "not an optimizer": ("optimizer:\n  name: Adagrad\n", ["old.yaml:2", "adagrad"], ""),
    "exponential": (
        "optimizer:\n  lr_schedule: {type: exponential_decay}\n",
        ["old.yaml:2"],
        "cosine_decay",
    ),
    "unknown schedule": (
        "optimizer:\n  lr_schedule: {type: cosine_deca}\n",
        ["old.yaml:2"],
        "`cosine_decay`",
    ),
    "floor without peak": (
        "optimizer:\n  lr_schedule: {minimum: 1e-6}\n",
        ["old.yaml:2"],
        "initial_lr",
    ),
    "other tokenizer": (
        "model: {name: a, tokenizer: b}\n",
        ["`model.tokenizer: b`", "old.yaml:1"],
        "folder",
    ),
    "from scratch": (
        "model: {name: a, load_initial_weights: false}\n",
        ["old.yaml:1"],
        "chuk model create",
    ),
    "other loss": ("training:\n  loss_function: my.own.loss\n", ["old.yaml:2"], "loss_type"),
    "twice": ("model:\n  name: a\n  name: b\n", ["line 3"], ""),
}


@pytest.mark.parametrize(("text", "parts", "hint"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_told_with_file_and_line(
    tmp_path: Path, text: str, parts: list[str], hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(old_file(tmp_path, text))
    assert all(part in caught.value.message for part in parts), caught.value.message
    assert hint in caught.value.hint, caught.value.hint


def test_a_migrated_file_is_flat_and_means_the_same(tmp_path: Path) -> None:
    old = old_file(tmp_path, WHOLE)
    new = old_file(tmp_path, migrated(translated(old, SFTConfig)), "new.yaml")
    values: dict[str, Any] = yaml.safe_load(new.read_text())
    assert not any(isinstance(value, dict) for value in values.values())
    assert resolved(new) == (resolved(old)[0], [])
    text = new.read_text()
    left = [item.entry.name for item in translated(old, SFTConfig).left]
    assert len(left) == 8
    assert all(f"#   {name}: " in text for name in left)
    assert all(name in text for name in SPECIFIED)


def test_migration_names_what_cannot_be_taken_over(tmp_path: Path) -> None:
    old = old_file(tmp_path, "model: {name: a, tokenizer: b}\nbatch: {output_dir: ./batches}\n")
    text = migrated(translated(old, SFTConfig))
    assert "model.tokenizer: b (line 1)" in text
    assert "put the tokenizer's files into the model's folder" in text
    assert yaml.safe_load(text)["data"] == "./batches"


def test_training_takes_an_old_file_and_says_so_once(
    run_chuk: RunChuk, tiny_model_dir: Path, tmp_path: Path
) -> None:
    text = (
        f"model: {{name: '{tiny_model_dir}'}}\ntraining: {{total_iterations: 2, progress_interval:"
        " 1}\n"
    )
    text += "checkpoint: {output_dir: run}\nbatch: {output_dir: ./train.jsonl, file_prefix: x}\n"
    old_file(tmp_path, text)
    done = run_chuk("train", "sft", "--config", "old.yaml")
    assert (done.returncode, done.stderr.count("migrate")) == (1, 1)
    assert "`./train.jsonl` does not exist" in done.stderr
    (tmp_path / "train.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n' * 8)
    done = run_chuk("train", "sft", "--config", "old.yaml")
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    assert done.stderr.count("old sectioned form") == 1
    done = run_chuk(
        "train", "sft", "--config", "old.yaml", "--data", "train.jsonl", "--overwrite", "--json"
    )
    (warning,) = done.stderr.splitlines()
    assert warning.startswith('{"warning"')
