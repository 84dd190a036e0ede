"""Which files these are: one fingerprint over whole contents, for adapters, resume and pipelines.

A file is hashed whole and remembered by (path, size, mtime in nanoseconds, inode): in the process,
and for large files in `~/.cache/chuk/digests.json`, so that a base model is read once and not by
every command. A file that was written in the last seconds is not remembered: a second write could
leave its time as it is."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from chuk_lib.utils.paths import write_whole

_SETTLED = 2.0  # seconds after which a clock of any file system has moved on
_LARGE = 1 << 24  # bytes from which a digest is worth a line in a file
_MOST = 1000  # files that are remembered there
_known: dict[str, tuple[list[int], str]] = {}


def digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits. Raises OSError when it cannot be read."""
    path = path.resolve()
    mark, key = _mark(path), str(path)
    kept = _known.get(key) or (_read_kept().get(key) if mark[0] >= _LARGE else None)
    if kept is not None and list(kept[0]) == mark:
        return str(kept[1])
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if _mark(path) == mark and time.time() - mark[1] / 1e9 > _SETTLED:
        _known[key] = (mark, found)
        if mark[0] >= _LARGE:
            _keep(key, mark, found)
    return found


def fingerprint(files: Sequence[Path]) -> str:
    """64 hexadecimal digits over the contents of files, in order. Raises OSError when one cannot be
    read."""
    return hashlib.sha256("".join(map(digest, files)).encode()).hexdigest()


def is_old(written: str) -> bool:
    """Whether a fingerprint is of the form that covered no more than the edges of files (16
    digits)."""
    return len(written) == 16


def old_fingerprint(files: Sequence[Path], *, of_weights: bool) -> str:
    """That form, for what was written with it: 64 KiB at both ends of each file; of weights the
    header before them, of other files their names and sizes."""
    edge, found = 1 << 16, hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        if not of_weights:
            found.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as stream:
            if of_weights:
                found.update(stream.read(int.from_bytes(stream.read(8), "little")))
            found.update(stream.read(edge))
            stream.seek(max(stream.tell(), size - edge))
            found.update(stream.read())
    return found.hexdigest()[:16]


def _mark(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _file() -> Path:
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "chuk" / "digests.json"
    )


def _read_kept() -> dict[str, Any]:
    """What is remembered on disk; nothing when that cannot be read."""
    try:
        kept = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(kept, dict) and all(
        isinstance(one, list) and len(one) == 2 for one in kept.values()
    )
    return kept if whole else {}


def _keep(key: str, mark: list[int], found: str) -> None:
    kept = _read_kept()
    kept.pop(key, None)
    kept[key] = [mark, found]
    newest = dict(list(kept.items())[-_MOST:])
    with suppress(OSError):  # a cache: what cannot be kept is hashed again
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_file(), json.dumps(newest))
