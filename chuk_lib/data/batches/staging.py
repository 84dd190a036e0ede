"""The folder in which a build grows: files, a journal of them, and a note of how far it came.

A build that was killed is taken up at its last note: files that the note does not know are written
again. The folder becomes the result by being renamed, so a result is whole or not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from chuk_lib.data.batches.manifest import NAME, FileEntry
from chuk_lib.data.batches.npz import dump, load
from chuk_lib.errors import ConfigError
from chuk_lib.utils.paths import check_folder, make_folder, write_whole

_NOTE, _JOURNAL, _LOCK, STDIN = "progress.json", "journal.jsonl", "lock", "stdin.jsonl"
_PENDING = ("ids", "mask", "documents", "sizes", "records")


class Staging:
    """A build's own folder, beside its result. Only one process may work in it."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_name(f"{output.name}.partial")
        check_folder(self.path)
        self._replaced = output.with_name(f".{output.name}.replaced")
        self.is_new = not self.path.exists()
        make_folder(self.path)
        self._lock = self._locked()
        self._journal: IO[bytes] | None = None

    def close(self) -> None:
        """Let the lock go."""
        if self._journal is not None:
            self._journal.close()
        self._lock.close()

    def discard(self) -> None:
        """Remove all of it."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def clear(self, but: tuple[str, ...] = ()) -> None:
        """Start over."""
        for path in self.path.iterdir():
            if path.name not in (_LOCK, *but):
                path.unlink()

    def note(self) -> tuple[dict[str, Any], list[FileEntry], dict[str, np.ndarray]] | None:
        """How far a former build came: its note, its files, and what waited. None without one, or
        when files of it are no longer there as they were."""
        try:
            note = json.loads((self.path / _NOTE).read_bytes())
            journal = (self.path / _JOURNAL).read_bytes()[: note["journal"]]
            waiting = (self.path / note["waiting"]).read_bytes()
            if hashlib.sha256(journal + waiting).hexdigest() != note["seal"]:
                return None
            files = [FileEntry(**json.loads(line)) for line in journal.splitlines()]
            whole = all((self.path / entry.name).stat().st_size == entry.bytes for entry in files)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return (note, files, load(waiting, note["waiting"], _PENDING)) if whole else None

    def open_journal(self, size: int = 0) -> None:
        """Go on writing after `size` bytes of journal."""
        self._journal = (self.path / _JOURNAL).open(
            "r+b" if (self.path / _JOURNAL).exists() else "w+b"
        )
        self._journal.truncate(size)
        self._journal.seek(size)

    def write(self, name: str, data: bytes, facts: Mapping[str, int]) -> FileEntry:
        """One file of the result."""
        assert self._journal is not None
        (self.path / name).write_bytes(data)
        entry = FileEntry(
            name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), **facts
        )
        self._journal.write(json.dumps(asdict(entry), separators=(",", ":")).encode() + b"\n")
        return entry

    def save(self, note: Mapping[str, Any], waiting: Mapping[str, np.ndarray], number: int) -> None:
        """Note how far the build came. The note names the file of what waits, so the two always
        fit."""
        assert self._journal is not None
        self._journal.flush()
        size = self._journal.tell()
        self._journal.seek(0)
        journal = self._journal.read(size)
        self._journal.seek(size)
        data, name = dump(waiting), f"waiting-{number}.npz"
        (self.path / name).write_bytes(data)
        seal = hashlib.sha256(journal + data).hexdigest()
        content = {**note, "journal": size, "waiting": name, "seal": seal}
        write_whole(self.path / _NOTE, json.dumps(content))
        for path in self.path.glob("waiting-*.npz"):
            if path.name != name:
                path.unlink()

    def publish(self, overwrite: bool) -> None:
        """Make it the result: only files of the manifest, and the manifest, are left in it."""
        content = json.loads((self.path / NAME).read_bytes())
        kept = {NAME, *(entry["name"] for entry in content["files"])}
        self.close()
        for path in self.path.iterdir():
            if path.name not in kept:
                path.unlink()
        if self.output.exists():
            if not overwrite and any(self.output.iterdir()):
                raise ConfigError(
                    f"`{self.output}` exists", "choose another --output, or add --overwrite"
                )
            os.replace(self.output, self._replaced)
        os.replace(self.path, self.output)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def leave(self) -> None:
        """The result is there already: nothing of this build, or of one that was killed at its end,
        stays."""
        if self.is_new:
            self.discard()
        shutil.rmtree(self._replaced, ignore_errors=True)

    def _locked(self) -> IO[bytes]:
        import fcntl

        stream = io.FileIO(self.path / _LOCK, "w")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.close()
            raise ConfigError(
                f"another build is writing `{self.output}`", "wait for it, or stop it"
            ) from None
        return stream
