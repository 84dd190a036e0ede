"""Checkpoints: written beside, flushed to disk, renamed; checksummed, and verified when read.

A checkpoint `step_000020` holds the state after 20 finished steps: weights (a model or adapter
folder that other tools read), `optimizer.safetensors`, `memory.safetensors` when the algorithm
keeps more (a value head, a moving reference), and `state.json`, which has the step, the counters of
the run and the checksum of every other file. A kill at any moment leaves the previous checkpoints
whole and at most a `.partial-…` folder behind."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten

from chuk_lib.errors import ModelError, TrainingError
from chuk_lib.runtime.gpu_errors import gpu_error
from chuk_lib.training.algorithm import Memory
from chuk_lib.training.run_dir import RunDir
from chuk_lib.utils.paths import shell_word, sync
from chuk_lib.utils.seals import STATE, is_as_sealed, seal, seal_of

_NAME = re.compile(r"step_(\d{6,})")
_OPTIMIZER = "optimizer.safetensors"
_MEMORY = "memory.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk that was verified: its folder, its step, and the state the engine kept
    in it."""

    folder: Path
    step: int
    state: dict[str, Any]


def save_checkpoint(
    run: RunDir,
    step: int,
    write_weights: Callable[[Path], None],
    optimizer_state: Any,
    state: dict[str, Any],
    memory: Memory = Memory({}, {}),
) -> Path:
    """Write checkpoint `step` and make it the latest. Returns its folder.

    Raises TrainingError when the disk refuses (full, read-only): what was there before stays as it
    was."""
    folder = run.checkpoints / f"step_{step:06d}"
    partial = run.checkpoints / f".partial-{folder.name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_weights(partial)
        mx.save_safetensors(str(partial / _OPTIMIZER), dict(tree_flatten(optimizer_state)))
        if memory.arrays:
            mx.save_safetensors(str(partial / _MEMORY), memory.arrays)
        files = {path.name: _sealed(path) for path in sorted(partial.iterdir())}
        content = {"version": 1, "step": step, **state, "memory": memory.values, "files": files}
        sealed = {**content, "sha256": seal_of(content)}
        (partial / STATE).write_text(json.dumps(sealed, indent=2) + "\n", encoding="utf-8")
        sync(partial / STATE)
        sync(partial)
        flush_drive(partial / STATE)
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.unlink(missing_ok=True)  # what is no folder is no checkpoint
        partial.rename(folder)
        sync(run.checkpoints)
        run.point("latest", folder)
    except (OSError, RuntimeError) as error:  # MLX reports a failed write as RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        if gpu_error(error) is not None:  # what was computed last fails when it is written
            raise
        raise TrainingError(
            f"cannot write checkpoint `{folder}`: {getattr(error, 'strerror', None) or error}",
            f"make room or mend the disk, then `chuk train resume {shell_word(run.path)}`",
        ) from None
    return folder


class CheckpointClock:
    """When a checkpoint is due by time alone, `minutes` after the last (0: never). Such a one is
    `passing`: the next takes its place. `checkpoint` is the one that a run goes on from."""

    def __init__(self, minutes: float, checkpoint: Checkpoint | None = None) -> None:
        self._seconds, self._saved = 60 * minutes, time.monotonic()
        self._passing = (
            checkpoint.folder.name if checkpoint and checkpoint.state.get("passing") else None
        )
        self.is_due = False
        """Whether the checkpoint that is written now was asked for by time alone."""

    def is_overdue(self) -> bool:
        """Whether the last checkpoint is too long ago; the engine asks when nothing else wants
        one."""
        self.is_due = self._seconds > 0 and time.monotonic() - self._saved >= self._seconds
        return self.is_due

    def saved(self, name: str) -> str | None:
        """Checkpoint `name` was written; returns the one whose place it takes, if any."""
        gone = self._passing if self._passing != name else None
        self._passing = name if self.is_due else None
        self._saved, self.is_due = time.monotonic(), False
        return gone


def list_checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first, unverified."""
    folder = run / "checkpoints"
    found = (
        [entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name)]
        if folder.is_dir()
        else []
    )
    return sorted(found, key=lambda entry: int(entry.name.removeprefix("step_")))


def verify_checkpoint(folder: Path) -> Checkpoint:
    """Read `state.json` and check every file against it. Raises ModelError that names the damaged
    file."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        files, step, seal_of_state = dict(state["files"]), int(state["step"]), state.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"checkpoint `{folder}` is damaged: `{STATE}` is missing or unreadable"
        ) from None
    if seal_of_state != seal_of(state) or _OPTIMIZER not in files:
        raise ModelError(f"checkpoint `{folder}` is damaged: `{STATE}` is not as it was written")
    for name, written in files.items():
        path = folder / Path(name).name
        if not is_as_sealed(path, written):
            raise ModelError(f"checkpoint `{folder}` is damaged: `{name}` is not as it was written")
    return Checkpoint(folder, step, state)


def newest_valid(run: Path, warn: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint that verifies; each damaged one is passed over with a warning.

    Raises ModelError when none is left.
    """
    for folder in reversed(list_checkpoints(run)):
        try:
            return verify_checkpoint(folder)
        except ModelError as error:
            warn(error.message)
    raise ModelError(
        f"`{run}` has no valid checkpoint to resume from", "start the run again with --overwrite"
    )


def load_optimizer_state(checkpoint: Checkpoint) -> dict[str, mx.array]:
    """The arrays of the tree that `save_checkpoint` was given, by path."""
    return cast("dict[str, mx.array]", mx.load(str(checkpoint.folder / _OPTIMIZER)))


def load_memory(checkpoint: Checkpoint) -> Memory:
    """What the algorithm kept beside the trained weights."""
    path = checkpoint.folder / _MEMORY
    arrays = cast("dict[str, mx.array]", mx.load(str(path))) if path.exists() else {}
    return Memory(arrays, dict(checkpoint.state.get("memory") or {}))


def prune(run: Path, keep: int | None, best: str | None, passing: str | None = None) -> None:
    """Remove the oldest checkpoints beyond `keep`, and `passing`, one that was there in case of a
    failure only; never the best one. Leftovers of killed writers go too."""
    for leftover in (run / "checkpoints").glob(".partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if passing is not None and passing != best:
        shutil.rmtree(run / "checkpoints" / passing, ignore_errors=True)
    if keep is None:
        return
    for folder in list_checkpoints(run)[:-keep]:
        if folder.name != best:
            shutil.rmtree(folder, ignore_errors=True)


def _sealed(path: Path) -> dict[str, Any]:
    sync(path)
    return seal(path)


def flush_drive(path: Path) -> None:
    """On macOS have the drive write what it was given so far: `fsync` there ends at the drive's own
    memory, which a power cut empties. Once for all files of a checkpoint, before older ones go.
    Elsewhere `fsync` has done it."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is None:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        # A network volume that knows no such thing: its server has what fsync sent.
        with suppress(OSError):
            fcntl.fcntl(handle, full)
    finally:
        os.close(handle)
