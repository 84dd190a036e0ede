"""Files and folders that are about to be written: whether that can be done is asked before any work
is spent on it, and what is there is replaced whole or not at all."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chuk_lib.errors import ConfigError

_HINT = "choose another --output"


def check_folder(folder: Path) -> None:
    """Raise ConfigError unless `folder` can be written, or can be made. Changes nothing.

    What only the attempt shows (a quota, a file system of its own kind) is left to `make_folder`.
    """
    try:
        there = folder.resolve()
        nearest = next(path for path in (there, *there.parents) if path.exists())
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # too long a name, a loop of links, a null character
        raise ConfigError(
            f"`{_short(folder)}` cannot be a folder: {_reason(error)}", _HINT
        ) from None
    if not nearest.is_dir():
        same = nearest == there
        raise ConfigError(
            f"`{folder}` is a file" if same else f"cannot make `{folder}`: `{nearest}` is a file",
            _HINT,
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write `{folder}`: no permission to write in `{nearest}`", _HINT)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises ConfigError with the reason."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make `{folder}`: {_reason(error)}", _HINT) from None


@contextmanager
def replace_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to. When the block ends well it is on the disk and takes the
    place of `path`: readers see the old file or the new one, never half; else it goes. `shared`:
    another process may be writing the same file just now."""
    partial = path.with_name(
        f".{path.name}.{os.getpid()}.partial" if shared else f".{path.name}.partial"
    )
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file whole or not at all. Raises OSError."""
    with replace_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Return when the content of a file is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritable(path: Path, error: OSError, hint: str = _HINT) -> ConfigError:
    """What is said when a file cannot be written."""
    return ConfigError(f"cannot write `{path}`: {_reason(error)}", hint)


def _short(path: Path) -> str:
    text = str(path).replace("\0", "\\0")
    return text if len(text) <= 80 else f"{text[:40]}…{text[-20:]}"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return "its links run in a circle" if isinstance(error, RuntimeError) else str(error)


def shell_word(path: str | Path) -> str:
    """A path as it is typed in a command that a message suggests."""
    return shlex.quote(str(path))
