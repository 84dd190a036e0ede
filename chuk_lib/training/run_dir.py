"""What a run leaves behind, and the rules of the folder.

    run.json  config.yaml  origins.json  environment.json  events.jsonl  completions.jsonl
    checkpoints/step_000020/…  latest  best

`latest` and `best` are text files that hold a checkpoint's name. The folder is a model for
`--model`. One process at a time may train in it (a lock that the kernel lets go when the process
dies, however it dies)."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from chuk_lib.errors import ConfigError, ModelError, TrainingError
from chuk_lib.runs.files import LOCK, OWN
from chuk_lib.utils.paths import check_folder, make_folder, shell_word, write_whole
from chuk_lib.utils.text import first_line

_SETTINGS, _ABOUT = "config.yaml", "run.json"


class RunDir:
    """The folder of one run. Make it with `create` or `open`; `close` lets another process in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._kept: tempfile.TemporaryDirectory[str] | None = None

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def events(self) -> Path:
        """The event log."""
        return self.path / "events.jsonl"

    @property
    def completions(self) -> Path:
        """What the model wrote in each step, a line each."""
        return self.path / "completions.jsonl"

    @property
    def algorithm(self) -> str:
        """The algorithm that the run was made with, as `run.json` has it; runs from before it
        existed are SFT."""
        try:
            return str(json.loads((self.path / _ABOUT).read_text(encoding="utf-8"))["algorithm"])
        except (OSError, ValueError, KeyError, TypeError):
            return "sft"

    @property
    def is_described(self) -> bool:
        """Whether the settings of the run are written, the last of what a run writes before its
        first step."""
        return (self.path / _SETTINGS).is_file()

    @classmethod
    def create(cls, path: Path, overwrite: bool = False) -> RunDir:
        """Make and lock a new run directory.

        Raises ConfigError when the folder holds anything and `overwrite` is false, or when it
        cannot be written. Overwriting removes what a run wrote there and nothing else."""
        check_output(path, overwrite)
        make_folder(path)
        try:
            run = cls(path)
            run._take_lock()
            if overwrite:
                run._clear()
            run.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from None
        return run

    @classmethod
    def elsewhere(cls) -> RunDir:
        """A folder of its own for a process that trains along and writes nothing of the run; it is
        gone when the process is."""
        folder = tempfile.TemporaryDirectory(prefix="chuk-rank-")
        run = cls.create(Path(folder.name))
        run._kept = folder
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Lock an existing run directory to go on in it. Raises ModelError when it is none."""
        if not (path / _SETTINGS).is_file():
            raise ModelError(
                f"`{path}` is not a run directory: it has no config.yaml",
                "name the folder of a training run",
            )
        run = cls(path)
        run._take_lock()
        return run

    def copy_in(self, source: Path, name: str) -> None:
        """Copy a file into the folder of a new run. When the disk refuses, nothing is left of the
        run."""
        try:
            shutil.copyfile(source, self.path / name)
        except OSError:
            self.discard()
            raise

    def write_yaml(
        self, name: str, values: dict[str, Any], remarks: Mapping[str, str] | None = None
    ) -> None:
        """Write a YAML file, whole or not at all; `remarks` stand behind their values as
        comments."""
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        for key, remark in (remarks or {}).items():
            text = re.sub(rf"^{key}: [^\n]*$", rf"\g<0>  # {remark}", text, flags=re.MULTILINE)
        write_whole(self.path / name, text)

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        write_whole(self.path / name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def change_origins(self, changes: dict[str, str]) -> None:
        """Say where settings come from that are not what the run began with. Nothing is done
        without any."""
        path = self.path / "origins.json"
        if changes and path.is_file():
            self.write_json(path.name, json.loads(path.read_text(encoding="utf-8")) | changes)

    def change_config(self, changes: dict[str, Any], remarks: Mapping[str, str]) -> None:
        """Keep settings that were changed on the way: the run goes on with them however often it
        stops. Nothing is done without any."""
        if changes and (self.path / _SETTINGS).is_file():
            self.write_yaml(_SETTINGS, self.read_config() | changes, remarks)

    def read_config(self) -> dict[str, Any]:
        """The settings in `config.yaml`, by name. Raises ModelError when they cannot be read."""
        path = self.path / _SETTINGS
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            what = f"`{path}` cannot be read: {first_line(error)}"
            raise ModelError(what, "put the file back as the run wrote it") from None
        if not isinstance(values, dict):
            raise ModelError(f"`{path}` holds no settings", "put the file back as the run wrote it")
        return values

    def point(self, name: str, checkpoint: Path) -> None:
        """Make `latest` or `best` name a checkpoint."""
        write_whole(self.path / name, checkpoint.name + "\n")

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Remove what this run wrote, and the folder when nothing else is in it. For a run that
        could not start."""
        self._clear()
        (self.path / LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # something of the user's is in it
            self.path.rmdir()
        self.close()

    def _take_lock(self) -> None:
        self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        # `chuk runs` holds it for microseconds to see whether a run is alive.
        for patience in (
            0.05,
            0.2,
            None,
        ):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    self.close()
                    raise _unlockable(self.path, error) from None
                if patience is not None:
                    time.sleep(patience)
        self.close()
        raise TrainingError(
            f"another process is training in `{self.path}`",
            "wait for it, stop it, or choose another --output",
        )

    def _clear(self) -> None:
        for name in OWN:
            if name == LOCK:  # it is held
                continue
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)


def check_output(path: Path, overwrite: bool) -> None:
    """Raise ConfigError when `path` cannot become a run directory. Changes nothing on disk."""
    check_folder(path)
    held = [entry for entry in path.iterdir() if not _is_leftover(entry)] if path.exists() else []
    if not held:
        return
    is_begun = (path / _SETTINGS).exists()
    is_run = is_begun or all(entry.name in OWN for entry in held)
    if not overwrite:
        resume = f"`chuk train resume {shell_word(path)}` to go on, " if is_begun else ""
        raise ConfigError(
            f"--output `{path}` is not empty",
            f"{resume}--overwrite to replace it, or another folder",
        )
    if not is_run:
        raise ConfigError(
            f"--output `{path}` is not empty and not a run directory: --overwrite removes only"
            " runs",
            "choose another folder",
        )


def _is_leftover(entry: Path) -> bool:
    """What a process leaves that was killed while it made the folder."""
    is_partial = entry.name.startswith(".") and entry.name.endswith(".partial")
    return (
        is_partial
        or entry.name == LOCK
        or (entry.name == "checkpoints" and not any(entry.iterdir()))
    )


def default_run_path(algorithm: str, model: str) -> Path:
    """`runs/<date>-<time>-<algorithm>-<model>-<4 hex>`."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", Path(model).name).strip("-")[:40] or "model"
    return (
        Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{algorithm}-{slug}-{secrets.token_hex(2)}"
    )


def _unlockable(path: Path, error: OSError) -> TrainingError:
    """A volume that has no locks, as many network volumes: two runs in one folder would go
    unnoticed."""
    return TrainingError(
        f"`{path}` cannot be locked: {error.strerror or error}",
        "choose an --output on a disk of this machine; network volumes often know no locks",
    )


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write the run directory `{path}`: {error.strerror}", "choose another --output"
    )
