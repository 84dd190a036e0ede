"""The files of a run: which are chuk's, how large they are, whether a process trains there, and
taking them away."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from chuk_lib.errors import ModelError, TrainingError

LOCK = ".lock"
OWN = (
    "run.json",
    "config.yaml",
    "origins.json",
    "environment.json",
    "events.jsonl",
    "completions.jsonl",
    "checkpoints",
    "latest",
    "best",
    "data.jsonl",
    "report.html",
    "tensorboard",
    "wandb",
    "ray_token",
    "server.json",
    LOCK,
)
"""Everything that chuk itself writes into a run directory."""

_CHECKPOINT = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint folder as it lies on disk, unverified. `marks` are the pointers that name it:
    latest, best."""

    name: str
    step: int
    bytes: int
    marks: tuple[str, ...]


def is_run(path: Path) -> bool:
    """Whether a folder looks like a run: an event log, or settings beside checkpoints."""
    if (path / "events.jsonl").is_file():
        return True
    return (path / "config.yaml").is_file() and (path / "checkpoints").is_dir()


def is_locked(path: Path) -> bool:
    """Whether a living process trains in the run. The kernel lets its lock go however the process
    ends."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: nobody can be found out
        return False
    finally:
        os.close(descriptor)
    return False


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what vanishes meanwhile counts nothing. Links
    are not followed."""
    try:
        if not path.is_dir() or path.is_symlink():
            return path.lstat().st_size
        with os.scandir(path) as entries:
            return sum(size_of(Path(entry.path)) for entry in entries)
    except OSError:
        return 0


def checkpoints_of(run: Path) -> list[CheckpointFiles]:
    """The checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    marks = {mark: _pointed(run / mark) for mark in ("latest", "best")}
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    found = [(int(match[1]), match[0]) for name in names if (match := _CHECKPOINT.fullmatch(name))]
    return [
        CheckpointFiles(
            name, step, size_of(folder / name), tuple(mark for mark in marks if marks[mark] == name)
        )
        for step, name in sorted(found)
    ]


def _pointed(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def remove_run(run: Path) -> list[str]:
    """Delete what chuk wrote in a run directory, and the folder when nothing else is in it.

    Returns the names of what was not chuk's and stays. Raises ModelError when it is no run,
    TrainingError when a process is training in it: a lock is held while files go, so none can
    begin."""
    if run.is_symlink() or not is_run(run):
        raise ModelError(
            f"`{run}` is not a run directory", "nothing was removed; see `chuk runs ls`"
        )
    descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock_alone(descriptor, run)
        for name in [*OWN, *(entry.name for entry in run.iterdir() if _is_leftover(entry))]:
            _remove(run / name)
        left = sorted(entry.name for entry in run.iterdir())
        if not left:
            run.rmdir()
        return left
    finally:
        os.close(descriptor)


def _lock_alone(descriptor: int, run: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise TrainingError(
            f"a process is training in `{run}`; nothing was removed", "stop it with Ctrl-C first"
        ) from None


def _is_leftover(path: Path) -> bool:
    """What a killed writer leaves: `.config.yaml.partial`."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
