"""The old sectioned YAML (`model:`, `optimizer:`, `checkpoint:`, `training:`, `batch:`) in today's
settings.

`TABLE` names every key that the old form had and what became of it: a setting, nothing (with the
reason), or a refusal (with the way out). A file may hold some sections only, such as an
optimizer's, and is laid over others as any file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chuk_lib.config.forms.form import Form, Key, number
from chuk_lib.config.yaml_lines import Entry

SECTIONS = ("model", "optimizer", "optimizer.lr_schedule", "checkpoint", "training", "batch")
SCHEDULES = {
    "cosine_decay": "cosine",
    "cosine_annealing": "cosine",
    "cosine_decay_with_warmup": "cosine",
    "linear_decay": "linear",
    "warmup": "constant_with_warmup",
}


def _schedule(value: Any, others: Mapping[str, Any]) -> str:
    name = SCHEDULES[str(value)]
    return "cosine_with_min_lr" if name == "cosine" and _minimum(others) else name


def _minimum(others: Mapping[str, Any]) -> float:
    return float(others.get("optimizer.lr_schedule.minimum") or 0.0)


def _min_rate(value: Any, others: Mapping[str, Any]) -> float:
    return float(f"{float(value) / float(others['optimizer.initial_lr']):.6g}")


def _no_minimum(value: Any, others: Mapping[str, Any]) -> str:
    if float(value) and "optimizer.initial_lr" not in others:
        return "put `initial_lr` into the same file: the floor is now a share of the peak"
    return ""


def _no_schedule(value: Any, _: Mapping[str, Any]) -> str:
    if str(value) in SCHEDULES:
        return ""
    near = difflib.get_close_matches(str(value), SCHEDULES, n=1)
    return (
        f"did you mean `{near[0]}`?"
        if near and value != "exponential_decay"
        else "use `type: cosine_decay`"
    )


def _is_other(value: Any, others: Mapping[str, Any]) -> str:
    same = value is None or value == others.get("model.name")
    return "" if same else "put the tokenizer's files into the model's folder, and leave this out"


def _from_scratch(value: Any, _: Mapping[str, Any]) -> str:
    return "" if value is not False else "make the new model first: `chuk model create`"


def _other_loss(value: Any, _: Mapping[str, Any]) -> str:
    same = str(value).rpartition(".")[2].lower() == "chukloss"
    return "" if same else "leave it out: `loss_type` is nll (cross-entropy) or dft"


def _beta(index: int) -> Callable[[Any, Mapping[str, Any]], float]:
    return lambda value, _: float(value[index])


_BATCHES = "a folder of batches holds one set, whatever its name"
_EPOCHS = "checkpoints are counted in steps (`checkpoint_interval`); the last step is always saved"

TABLE: dict[str, tuple[Key, ...]] = {
    "model.name": (Key("model"),),
    "model.tokenizer": (Key(reason="a model's own tokenizer is used", refused=_is_other),),
    "model.load_initial_weights": (
        Key(reason="a model's weights are always loaded", refused=_from_scratch),
    ),
    "optimizer.name": (Key("optimizer", lambda value, _: str(value).lower()),),
    "optimizer.initial_lr": (Key("learning_rate", number),),
    "optimizer.lr_schedule.type": (
        Key(
            "lr_scheduler_type",
            _schedule,
            "a rate that falls by a factor each step is gone in a few",
            _no_schedule,
        ),
    ),
    "optimizer.lr_schedule.warmup_steps": (Key("warmup_steps"),),
    "optimizer.lr_schedule.minimum": (
        Key("min_lr_rate", _min_rate, "it needs the peak", _no_minimum),
    ),
    "optimizer.lr_schedule.decay_rate": (Key(reason="only exponential_decay read it"),),
    "optimizer.betas": (Key("adam_beta1", _beta(0)), Key("adam_beta2", _beta(1))),
    "optimizer.eps": (Key("adam_epsilon", number),),
    "optimizer.weight_decay": (Key("weight_decay", number),),
    "checkpoint.output_dir": (Key("output"),),
    "checkpoint.frequency_epochs": (Key(reason=_EPOCHS),),
    "checkpoint.frequency_iterations": (Key("checkpoint_interval"),),
    "checkpoint.frequency": (Key(reason=f"never read; it meant epochs, and {_EPOCHS}"),),
    "training.num_epochs": (Key("num_epochs"),),
    "training.total_iterations": (Key("max_steps"),),
    "training.loss_function": (Key(reason="cross-entropy is the default", refused=_other_loss),),
    "training.progress_interval": (Key("log_interval"),),
    "batch.output_dir": (Key("data"),),  # an input of training, whatever its name
    "batch.file_prefix": (Key(reason=_BATCHES),),
    "batch.pre_cache_size": (Key(reason="batches are made as they are needed"),),
    "batch.shuffle": (Key("shuffle"),),
    "batch.max_sequence_length": (Key("max_length"),),
}
"""Every key of the old form. A key with two settings (betas) becomes both."""


def is_legacy(entries: Sequence[Entry]) -> bool:
    """Whether the top-level entries of a file are sections of the old form."""
    return any(isinstance(entry.value, dict) and entry.name in SECTIONS for entry in entries)


FORM = Form(
    name="the old form",
    about="the old sectioned form",
    recognises=lambda names, entries: is_legacy(entries),
    table=TABLE,
    sections=SECTIONS,
)
