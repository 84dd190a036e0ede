"""What a pipeline leaves behind: its folder, and `pipeline.json` in it, the one account of all
stages.

    pipeline.json  report.html  01-sft/ (a run)  02-dpo/ (a run)  03-eval/eval.json
    02-dpo-base/ (weights with the adapter before them merged in, where a stage cannot go on with
                  that adapter)

The manifest is replaced whole, so a kill leaves the old or the new one. One process at a time works
in the folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chuk_lib import __version__
from chuk_lib.errors import ConfigError, ModelError, TrainingError
from chuk_lib.utils.paths import check_folder, make_folder, write_whole

MANIFEST = "pipeline.json"
REPORT = "report.html"
_LOCK = ".lock"
RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"


@dataclass(frozen=True)
class StageRecord:
    """One stage: what was asked of it, what it was given (`inputs`: fingerprints of model and
    data), and what came of it. `run` is its folder in the pipeline's; `model` what it began with;
    times are seconds since the epoch."""

    name: str
    kind: str
    run: str
    settings: dict[str, Any]
    origins: dict[str, str]
    inputs: dict[str, str]
    model: str | None = None
    state: str = RUNNING
    steps: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0
    ended: float | None = None
    seconds: float = 0.0
    error: str | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over kind, settings and inputs: the same digits, the same result."""
        text = json.dumps([self.kind, self.settings, self.inputs], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class PipelineManifest:
    """What `pipeline.json` says: the stages that were begun, the model that the first one began
    with, and the `plan`, all stages as {"name", "kind", "settings" that somebody chose, their
    "origins"}."""

    records: list[StageRecord] = field(default_factory=list)
    model: str | None = None
    plan: list[dict[str, Any]] = field(default_factory=list)


class PipelineDir:
    """The folder of a pipeline, locked. Make it with `open`; `close` lets another process in."""

    def __init__(self, path: Path, manifest: PipelineManifest) -> None:
        self.path = path
        self.manifest = manifest
        self._lock: int | None = None

    @property
    def records(self) -> list[StageRecord]:
        """The stages that were begun."""
        return self.manifest.records

    @classmethod
    def open(cls, path: Path, overwrite: bool = False) -> PipelineDir:
        """Make a folder, or go on in one that a pipeline was run in; `overwrite` begins it anew.

        Raises ConfigError when the folder holds something else, TrainingError when another process
        is at work."""
        check_folder(path)
        held = _held(path)
        if held and not (path / MANIFEST).is_file():
            raise ConfigError(
                f"--output `{path}` is not empty and not a pipeline", "choose another folder"
            )
        make_folder(path)
        opened = cls(path, PipelineManifest())
        opened._take_lock()
        if (path / MANIFEST).is_file():
            opened.manifest = read_manifest(path)
        if overwrite:
            opened.drop_from(0)
        return opened

    def intend(self, model: str | None, plan: list[dict[str, Any]]) -> None:
        """Write what is to be run."""
        self.manifest.model, self.manifest.plan = model, plan
        self._write()

    def put(self, number: int, record: StageRecord) -> None:
        """Write the account of stage `number` (from 0), the newest or the one after it."""
        self.records[number:] = [record]
        self._write()

    def drop_from(self, number: int) -> None:
        """Forget stage `number` and those after it, then remove their folders. Only what the
        manifest names goes."""
        dropped = self.records[number:]
        del self.records[number:]
        self._write()
        (self.path / REPORT).unlink(missing_ok=True)
        for record in dropped:
            self.clear(record.run)

    def clear(self, run: str) -> None:
        """Remove the folders of a stage that is to begin anew."""
        for name in (run, base_name(run)):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self) -> None:
        stages = [asdict(record) | {"fingerprint": record.fingerprint} for record in self.records]
        content: dict[str, Any] = {
            "version": 1,
            "chuk": __version__,
            "model": self.manifest.model,
            "stages": stages,
        }
        content["plan"] = self.manifest.plan
        try:
            write_whole(
                self.path / MANIFEST, json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            )
        except OSError as error:
            raise TrainingError(
                f"cannot write `{self.path / MANIFEST}`: {error.strerror or error}",
                "make room or mend the disk",
            ) from None

    def _take_lock(self) -> None:
        self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise TrainingError(
                f"another process runs the pipeline in `{self.path}`",
                "wait for it, or choose another --output",
            ) from None


def read_manifest(path: Path) -> PipelineManifest:
    """The manifest in a pipeline's folder. Raises ModelError when there is none or none that can be
    read."""
    file = path / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        known = set(StageRecord.__dataclass_fields__)
        stages = [
            {key: value for key, value in stage.items() if key in known}
            for stage in content["stages"]
        ]
        return PipelineManifest(
            [StageRecord(**stage) for stage in stages], content["model"], list(content["plan"])
        )
    except FileNotFoundError:
        raise ModelError(
            f"`{path}` is not the folder of a pipeline: it has no {MANIFEST}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"`{file}` cannot be read", "put it back as it was written, or use --overwrite"
        ) from None


def base_name(run: str) -> str:
    """The folder for merged weights that the stage in `run` begins with."""
    return f"{run}-base"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`learning_rate was 0.001, now 0.01`, for every value that is not what it was."""
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return [f"{name} was {_shown(old.get(name))}, now {_shown(new.get(name))}" for name in names]


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"…{text[-59:]}"


def _held(path: Path) -> list[str]:
    """What is in the folder, without what a process leaves that was killed while it made it."""
    if not path.is_dir():
        return []
    return [
        entry.name for entry in path.iterdir() if entry.name not in (_LOCK, f".{MANIFEST}.partial")
    ]
