"""What is said about a failure, and which exit code it has.

0 done, 1 explained failure, 2 wrong command line or configuration, 70 bug, 129, 130 and 143
stopped."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

from chuk_cli import __version__
from chuk_cli.out import tell, tell_json
from chuk_lib.errors import ChukError, ConfigError

FAILURE, USAGE, BUG, INTERRUPTED = 1, 2, 70, 130
_MACHINE = {
    errno.ENOSPC: "free some space, or write elsewhere with `--output`",
    errno.EDQUOT: "free some space, or write elsewhere with `--output`",
    errno.EFBIG: "raise the limit on file sizes (`ulimit -f`), or write elsewhere with `--output`",
    errno.EROFS: "write elsewhere with `--output`",
    errno.EACCES: "check who owns it, or choose another place",
    errno.EPERM: "check who owns it, or choose another place",
    errno.EIO: "check the disk",
}


def report(error: Exception, as_json: bool) -> int:
    """Say what went wrong on stderr and return the exit code. CHUK_DEBUG=1 adds the traceback."""
    if os.environ.get("CHUK_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    explained = explain(error)
    if explained is not None:
        _tell(explained.kind, explained.message, explained.hint, as_json)
        return USAGE if isinstance(explained, ConfigError) else FAILURE
    _tell("bug", f"chuk hit a bug: {_brief(error)}", _next_steps(error), as_json)
    return BUG


def report_usage(error: Any, as_json: bool) -> int:
    """Say what is wrong with the command line; asking for a group without a command shows its help
    instead."""
    message = error.format_message()
    if not message or message.startswith("Usage:"):
        sys.stderr.write(message + "\n")
        return USAGE
    context = getattr(error, "ctx", None)
    hint = getattr(error, "hint", "") or (f"see `{context.command_path} --help`" if context else "")
    _tell("usage", message, hint, as_json)
    return int(error.exit_code)


def explain(error: Exception) -> ChukError | None:
    """The failure as the user should read it, or None when it is a bug of ours."""
    if isinstance(error, ChukError):
        return error
    if isinstance(error, MemoryError):
        return ChukError("out of memory", "use a smaller batch, shorter rows or a smaller model")
    if isinstance(error, RuntimeError):
        from chuk_lib.runtime.gpu_errors import gpu_error

        return gpu_error(error)
    if isinstance(error, OSError) and error.errno in _MACHINE:
        where = f"`{error.filename}`: " if error.filename else ""
        return ChukError(f"{where}{(error.strerror or str(error)).lower()}", _MACHINE[error.errno])
    return None


def _tell(kind: str, message: str, hint: str, as_json: bool) -> None:
    if as_json:
        tell_json({"error": {"kind": kind, "message": message, "hint": hint}})
        return
    tell(message, "error")
    if hint:
        tell(hint, "hint")


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _next_steps(error: Exception) -> str:
    try:
        path = _save_crash(error)
    except OSError:
        return (
            "sorry; run it again with `CHUK_DEBUG=1` and report what it says with the output of"
            " `chuk doctor`"
        )
    return f"sorry; please report it with `{path}` and the output of `chuk doctor`"


def _save_crash(error: Exception) -> str:
    import platform
    import tempfile
    import traceback

    handle, path = tempfile.mkstemp(prefix="chuk-crash-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(
            f"chuk {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        )
        file.write(f"arguments: {sys.argv[1:]}\n\n")
        file.writelines(traceback.format_exception(error))
    return path
