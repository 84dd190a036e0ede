"""What a run depends on, and whether it is still that when the run goes on: data, weights,
tokenizer, reference, reward files, and the rows that come next.

A checkpoint keeps a fingerprint of each (`inputs`), the settings it was trained with, and one of
the rows of the steps around it. What leads to another result is refused by name, or told when the
user allows it; a changed setting is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chuk_lib import __version__, runtime
from chuk_lib.config.paths import names_of, reward_paths
from chuk_lib.errors import ChukError, ConfigError, DataError, ModelError
from chuk_lib.models import locate
from chuk_lib.models.headers import weight_files
from chuk_lib.utils.identity import fingerprint

_NOT_WEIGHTS = ("optimizer.safetensors", "memory.safetensors")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_WORDS = {
    "data": "training data",
    "model": "base weights (`model`)",
    "tokenizer": "tokenizer",
    "ref_model": "reference (`ref_model`)",
    "schema": "JSON schema (`schema`)",
    "value_model": "values to begin with (`value_model`)",
}
_NO_RESULT = (
    "model",
    "data",
    "eval_data",
    "output",
    "report_to",
    "keep_checkpoints",
    "checkpoint_minutes",
    "log_interval",
)
"""Settings that are told apart by what they lead to, or that lead to nothing."""


def model_files(source: str) -> list[Path]:
    """The weight files that a local source stands for, adapters included; none for a hub id. Raises
    ModelError."""
    if not Path(source).expanduser().exists():
        return []
    found = locate(source, local_only=True)
    folders = [found.folder, *([found.adapter_folder] if found.adapter_folder else [])]
    return [path for folder in folders for path in files_of(folder)]


def files_of(folder: Path) -> list[Path]:
    """The files with a model's or an adapter's weights in a folder."""
    base = weight_files(folder) if (folder / "config.json").is_file() else []
    others = [
        path for path in sorted(folder.glob("*.safetensors")) if path.name not in _NOT_WEIGHTS
    ]
    return base or others


def fingerprint_model(source: str) -> str:
    """64 digits of the weights that a local source stands for; the name of one on the hub. Raises
    ModelError."""
    files = model_files(source)
    return fingerprint(files) if files else source


def fingerprint_settings(config: Any, skip: Sequence[str] = ()) -> dict[str, str]:
    """Fingerprints of the models and reward files that settings name, by what they are. Raises
    ModelError for a model that is not there, OSError for a file that cannot be read."""
    named = {
        name: getattr(config, name) for name in names_of(type(config), "model") if name not in skip
    }
    found = {
        name: fingerprint_model(str(value))
        for name, value in named.items()
        if value not in (None, "copy")
    }
    if schema := getattr(config, "schema", None):
        found["schema"] = fingerprint([Path(schema).expanduser()])
    for path, what in reward_paths(getattr(config, "rewards", ())):
        is_file = what == "file"
        found[f"reward {path}"] = (
            fingerprint([Path(path).expanduser()]) if is_file else fingerprint_model(path)
        )
    return found


@dataclass(frozen=True)
class Inputs:
    """Fingerprints by name. Those of the base weights are made in a thread while the first steps
    run: reading a large file takes seconds."""

    known: Mapping[str, str]
    weights: Callable[[], dict[str, str]]

    def all(self) -> dict[str, str]:
        """All of them."""
        return {**self.known, **self.weights()}


def inputs_of(config: Any, provenance: Any, data: str) -> Inputs:
    """What a run depends on, with the data's own fingerprint. `provenance` says where the policy
    was read."""
    folders = [
        provenance.folder,
        *([provenance.adapter_folder] if provenance.adapter_folder else []),
    ]

    def weights() -> dict[str, str]:
        parts = {"model": [path for folder in folders for path in files_of(folder)]}
        parts["tokenizer"] = [
            path for name in _TOKENIZER if (path := provenance.folder / name).is_file()
        ]
        return {name: _readable(files) for name, files in parts.items()}

    thread = ThreadPoolExecutor(1, "chuk-identity")
    soon = thread.submit(weights)
    thread.shutdown(wait=False)
    return Inputs({"data": data, **fingerprint_settings(config, skip=("model",))}, soon.result)


def _readable(files: Sequence[Path]) -> str:
    try:
        return fingerprint(files)
    except OSError:  # gone while the run goes on with what it has read
        return "unreadable"


def rows_around(rows: Callable[[int], Sequence[int]] | None, step: int) -> str | None:
    """16 digits of the rows that the step before `step` took and of those that come next."""
    if rows is None:
        return None
    taken = [sorted(rows(at)) for at in (step - 1, step) if at >= 0]
    return hashlib.sha256(json.dumps(taken).encode()).hexdigest()[:16]


def compare(
    state: Mapping[str, Any],
    now: Mapping[str, Any],
    run: Path,
    step: int,
    *,
    chosen: Sequence[str],
    allowed: bool,
) -> list[str]:
    """Warnings about what changed since a checkpoint, whose `state` and today's `now` have
    `inputs`, `settings` and `rows`. Settings that were `chosen` on the way are no news.

    Raises DataError, ModelError or ConfigError for what leads to another result, unless that is
    `allowed`. A state from before there was such a record is held against the data alone, and a
    warning says so."""
    before = state.get("inputs") or {"data": state.get("fingerprint")}
    changed = [name for name in before if before[name] != now["inputs"].get(name)]
    settings = _differences(state.get("settings") or {}, now["settings"], chosen)
    moved = state.get("rows") is not None and "data" not in changed and state["rows"] != now["rows"]
    refusals = [_changed_input(name, run) for name in changed]
    refusals += [_moved_rows(settings, run, step)] if moved else []
    if refusals and not allowed:
        raise refusals[0]
    told = [error.message for error in refusals]
    told += (
        [f"settings changed since step {step:,}: {'; '.join(settings)}"]
        if settings and not moved
        else []
    )
    if "inputs" not in state:
        told.append(
            "the checkpoint is from an older chuk: only its data was compared, not weights,"
            " rewards, settings"
        )
    return told


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], chosen: Sequence[str]
) -> list[str]:
    names = [name for name in changed_settings(old, new) if name not in (*_NO_RESULT, *chosen)]
    return [f"{name} was {_shown(old[name])}, now {_shown(new[name])}" for name in names]


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of settings that have another value."""
    return [name for name in old if name in new and old[name] != new[name]]


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"…{text[-59:]}"


def _changed_input(name: str, run: Path) -> ChukError:
    if name == "data":
        return DataError(
            f"the training data is not what `{run}` was trained on so far",
            "put the old data back, or go on with --allow-changed-data",
        )
    if name == "player":
        return ConfigError(
            f"another player than before would answer the prompts of `{run}`",
            "resume it from Python as it was trained, with `make_player`",
        )
    what = _WORDS.get(name) or f"reward `{name.removeprefix('reward ')}`"
    kind = ConfigError if name == "schema" or name.startswith("reward ") else ModelError
    return kind(
        f"the {what} changed since `{run}` was trained so far",
        "put it back, or go on with --allow-changed",
    )


def _moved_rows(settings: Sequence[str], run: Path, step: int) -> ChukError:
    why = "; ".join(settings) or "the settings of the data's order changed"
    return ConfigError(
        f"`{run}` would not go on at the right row: {why}. After step {step:,} rows would be"
        " skipped or come again",
        "put it back (batch_size and gradient_accumulation_steps may change when their product"
        " stays), or go on with --allow-changed",
    )


def agree(
    world: runtime.World, inputs: Inputs, settings: Mapping[str, Any], step: int, steps: int
) -> None:
    """Raise TrainingError unless every process of a run is about to train the same: `settings` and
    `inputs`, from step `step` to `steps`."""
    facts = {"chuk": __version__, "first step": step, "number of steps": steps}
    facts |= {
        f"setting {name}": repr(value) for name, value in settings.items() if name != "output"
    }
    facts |= {f"{name} (fingerprint)": value for name, value in inputs.all().items()}
    world.check_same(facts, "settings, data and models")
