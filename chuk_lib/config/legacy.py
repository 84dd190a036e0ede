"""The old sectioned YAML (`model:`, `optimizer:`, `checkpoint:`, `training:`, `batch:`) in today's settings.

`TABLE` names every key that the old form had and what became of it: a setting, nothing (with the reason), or a refusal
(with the way out). A file may hold some sections only, such as an optimizer's, and is laid over others as any file.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chuk_lib.config.yaml_lines import Entry, read_entries
from chuk_lib.errors import ConfigError

SECTIONS = ("model", "optimizer", "checkpoint", "training", "batch")
SCHEDULES = {
    "cosine_decay": "cosine", "cosine_annealing": "cosine", "cosine_decay_with_warmup": "cosine",
    "linear_decay": "linear", "warmup": "constant_with_warmup",
}  # fmt: skip


@dataclass(frozen=True)
class Old:
    """What became of an old key. `setting` and `convert` make the new value from (value, the file's values by key);
    without a setting it is left out because of `reason`. `refused(value)` gives the hint when a run without it would
    be another one."""

    setting: str | None = None
    convert: Callable[[Any, Mapping[str, Any]], Any] = lambda value, _: value
    reason: str = ""
    refused: Callable[[Any, Mapping[str, Any]], str] = lambda value, _: ""


@dataclass(frozen=True)
class Mapped:
    """An old key and the setting that it became."""

    entry: Entry
    setting: str
    value: Any


@dataclass(frozen=True)
class Left:
    """An old key that became nothing. `hint` is set when the old run cannot be repeated without it."""

    entry: Entry
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class Translation:
    """An old file in today's settings, in the file's order, and what was left out."""

    mapped: Sequence[Mapped]
    left: Sequence[Left]


def _number(value: Any, _: Mapping[str, Any]) -> float:
    return float(value)


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
    return f"did you mean `{near[0]}`?" if near and value != "exponential_decay" else "use `type: cosine_decay`"


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


_BATCHES = "ready-made batches are data now: `--data FOLDER` trains from them as well as from rows"
_EPOCHS = "checkpoints are counted in steps (`checkpoint_interval`); the last step is always saved"

TABLE: dict[str, tuple[Old, ...]] = {
    "model.name": (Old("model"),),
    "model.tokenizer": (Old(reason="a model's own tokenizer is used", refused=_is_other),),
    "model.load_initial_weights": (Old(reason="a model's weights are always loaded", refused=_from_scratch),),
    "optimizer.name": (Old("optimizer", lambda value, _: str(value).lower()),),
    "optimizer.initial_lr": (Old("learning_rate", _number),),
    "optimizer.lr_schedule.type": (
        Old("lr_scheduler_type", _schedule, "a rate that falls by a factor each step is gone in a few", _no_schedule),
    ),
    "optimizer.lr_schedule.warmup_steps": (Old("warmup_steps"),),
    "optimizer.lr_schedule.minimum": (Old("min_lr_rate", _min_rate, "it needs the peak", _no_minimum),),
    "optimizer.lr_schedule.decay_rate": (Old(reason="only exponential_decay read it"),),
    "optimizer.betas": (Old("adam_beta1", _beta(0)), Old("adam_beta2", _beta(1))),
    "optimizer.eps": (Old("adam_epsilon", _number),),
    "optimizer.weight_decay": (Old("weight_decay", _number),),
    "checkpoint.output_dir": (Old("output"),),
    "checkpoint.frequency_epochs": (Old(reason=_EPOCHS),),
    "checkpoint.frequency_iterations": (Old("checkpoint_interval"),),
    "checkpoint.frequency": (Old(reason=f"never read; it meant epochs, and {_EPOCHS}"),),
    "training.num_epochs": (Old("num_epochs"),),
    "training.total_iterations": (Old("max_steps"),),
    "training.loss_function": (Old(reason="cross-entropy is the default", refused=_other_loss),),
    "training.progress_interval": (Old("log_interval"),),
    "batch.output_dir": (Old(reason=f"it was an input, whatever its name: {_BATCHES}"),),
    "batch.file_prefix": (Old(reason=_BATCHES),),
    "batch.pre_cache_size": (Old(reason="batches are made as they are needed"),),
    "batch.shuffle": (Old("shuffle"),),
    "batch.max_sequence_length": (Old("max_length"),),
}
"""Every key of the old form. A key with two settings (betas) becomes both."""


def is_legacy(entries: Sequence[Entry]) -> bool:
    """Whether the top-level entries of a file are sections of the old form."""
    return any(isinstance(entry.value, dict) and entry.name in SECTIONS for entry in entries)


def translate(path: Path) -> Translation:
    """An old file in today's settings. Raises ConfigError, with file and line, for keys that never existed, values
    that are wrong, and a file that mixes the two forms."""
    entries = read_entries(path, sections=True)
    values = {entry.name: entry.value for entry in entries}
    mapped: list[Mapped] = []
    left: list[Left] = []
    for entry in entries:
        if entry.value is None and any(name.startswith(f"{entry.name}.") for name in TABLE):
            continue
        for old in _lookup(path, entry):
            outcome = _apply(path, entry, old, values)
            if isinstance(outcome, Left):
                left.append(outcome)
            elif outcome.value is not None:
                mapped.append(outcome)
    return Translation(mapped, left)


def refuse_lost(path: Path, translation: Translation) -> None:
    """Raise ConfigError for the first key without which the run would be another one."""
    for item in translation.left:
        if item.hint:
            where = f"`{path.name}:{item.entry.line}`"
            raise ConfigError(
                f"{where}: `{item.entry.name}: {item.entry.value}` is not supported: {item.reason}", item.hint
            )


def deprecation(path: Path, translation: Translation) -> str:
    """The one line that says what to do with an old file."""
    lost = [item.entry.name for item in translation.left]
    without = f", without {', '.join(lost)}" if lost else ""
    return (
        f"`{path.name}` has the old sectioned form: `chuk config migrate {path}` writes the new one "
        f"(flat `name: value` lines){without}"
    )


def migrated(path: Path) -> str:
    """The text of a new file that does what the old one did, with comments on what became of each key."""
    import yaml

    translation = translate(path)
    dumped = [
        (yaml.safe_dump({item.setting: item.value}, allow_unicode=True).strip(), item.entry.name)
        for item in translation.mapped
    ]
    width = max((len(text) for text, _ in dumped), default=0)
    lines = [f"# Made from `{path.name}` by `chuk config migrate`.", ""]
    lines += [f"{text:<{width}}  # {name}" for text, name in dumped]
    if translation.left:
        lines += ["", "# Not taken over:"]
    for item in translation.left:
        what = f"{item.entry.name}: {item.entry.value}"
        hint = f"; {item.hint}" if item.hint else ""
        lines.append(f"#   {what} (line {item.entry.line}): {item.reason}{hint}")
    return "\n".join(lines) + "\n"


def _lookup(path: Path, entry: Entry) -> tuple[Old, ...]:
    if entry.name in TABLE:
        return TABLE[entry.name]
    if len(entry.keys) == 1 and entry.keys[0] not in SECTIONS:
        raise ConfigError(
            f"`{entry.name}` ({path.name}:{entry.line}) stands outside the sections of the old form",
            f"use one form in a file: `chuk config migrate {path}` writes the new one without it",
        )
    near = difflib.get_close_matches(entry.name, TABLE, n=1, cutoff=0.6)
    known = ", ".join(name for name in TABLE if name.startswith(f"{entry.keys[0]}.")) or ", ".join(SECTIONS)
    raise ConfigError(
        f"unknown setting `{entry.name}` in {path.name}:{entry.line}",
        f"did you mean `{near[0]}`?" if near else f"the old form knows: {known}",
    )


def _apply(path: Path, entry: Entry, old: Old, values: Mapping[str, Any]) -> Mapped | Left:
    try:
        hint = old.refused(entry.value, values)
        if hint or old.setting is None:
            return Left(entry, old.reason, hint)
        return Mapped(entry, old.setting, old.convert(entry.value, values) if entry.value is not None else None)
    except (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError):
        raise ConfigError(
            f"`{entry.name}` ({path.name}:{entry.line}) cannot be `{entry.value}`", "correct the value there"
        ) from None
