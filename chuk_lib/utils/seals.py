"""Checksums of files in a folder, as its `state.json` (a checkpoint's) or its `checksums.json` (any
other's) lists them under `files`: {name: {"bytes", "sha256"}}."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from chuk_lib.errors import ModelError
from chuk_lib.utils.identity import digest
from chuk_lib.utils.paths import shell_word

STATE = "state.json"
CHECKSUMS = "checksums.json"


def seal(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def seal_of(content: dict[str, Any]) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_as_sealed(path: Path, written: dict[str, Any]) -> bool:
    """Whether a file is what it was. Its size is looked at first: that costs nothing."""
    return path.is_file() and path.stat().st_size == written.get("bytes") and seal(path) == written


def written_seals(folder: Path) -> tuple[str, dict[str, Any]]:
    """The file that lists checksums of a folder, and its list by file name; "" and nothing without
    a readable one."""
    for name in (STATE, CHECKSUMS):
        try:
            files = json.loads((folder / name).read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(files, dict) and all(isinstance(written, dict) for written in files.values()):
            return name, files
    return "", {}


def check_weights(folder: Path) -> None:
    """Raise ModelError when a weights file is not as it was written, by the folder's list of
    checksums.

    Folders without a readable list are taken as they are: a model need not come from chuk, and
    other files may have been edited on purpose. A large file that has not changed since is not
    hashed again (`identity.digest`)."""
    by, files = written_seals(folder)
    for name, written in files.items():
        path = folder / Path(name).name
        is_model = path.suffix == ".safetensors" and not path.name.startswith("optimizer")
        if not is_model or not path.exists():
            continue
        if path.stat().st_size != written.get("bytes") or digest(path) != written.get("sha256"):
            raise _damaged(path, by)


def _damaged(path: Path, by: str) -> ModelError:
    if by == STATE:
        return ModelError(
            f"`{path}` is damaged: it is not as training wrote it",
            "use another checkpoint of the run",
        )
    return ModelError(
        f"`{path}` is damaged: it is not as {CHECKSUMS} says",
        "make or fetch it again; if it was changed on purpose: `chuk model verify"
        f" {shell_word(path.parent)}"
        " --write`",
    )
