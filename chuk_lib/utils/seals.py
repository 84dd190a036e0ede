"""Checksums of files in a folder, as its `state.json` lists them under `files`: {name: {"bytes", "sha256"}}."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from chuk_lib.errors import ModelError

STATE = "state.json"


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


def check_weights(folder: Path) -> None:
    """Raise ModelError when a weights file of a checkpoint is not as training wrote it.

    Folders without a readable list are taken as they are: a model need not come from a run, and other files may have
    been edited on purpose.
    """
    try:
        files = dict(json.loads((folder / STATE).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name, written in files.items():
        path = folder / Path(name).name
        is_model = path.suffix == ".safetensors" and not path.name.startswith("optimizer")
        if is_model and path.exists() and not is_as_sealed(path, written):
            raise ModelError(
                f"`{path}` is damaged: it is not as training wrote it", "use another checkpoint of the run"
            )
