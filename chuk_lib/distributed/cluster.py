"""Ray, as chuk wants it: with a token, without usage statistics, quiet.

Ray's services listen on all interfaces of a machine, whatever address one gives. So nothing is
started or joined without a token: who does not have it is refused. That of a cluster which chuk
starts lies in a file that its user alone can read; to join another, `RAY_AUTH_TOKEN` or
`RAY_AUTH_TOKEN_PATH` has its token."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from chuk_lib.errors import ChukError, ConfigError, TrainingError

TOKEN_FILE = "ray_token"
STORE_BYTES = 256 << 20
LOGS = "what it printed is in `session_latest/logs` of Ray's temporary folder"
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
"""What Ray reads when it is imported."""


def require_ray() -> None:
    """Raise ConfigError where Ray is not installed. Imports nothing."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Ray is not installed", "pip install 'chuk-mlx[ray]'")


def connect(
    address: str | None, folder: Path, cpus: int = 1, store_bytes: int = STORE_BYTES
) -> tuple[Any, bool]:
    """Ray, connected to the cluster at HOST:PORT, or to a new one on this machine, whose token is
    written into `folder`; and whether that was done here (a process has one cluster). Raises
    ConfigError where Ray is missing, there is no token, or nobody answers."""
    require_ray()
    if (running := sys.modules.get("ray")) is not None and running.is_initialized():
        return running, False
    os.environ.update(_QUIET)
    _take_token(address, folder)
    import ray

    common: dict[str, Any] = {
        "include_dashboard": False,
        "logging_level": "ERROR",
        "log_to_driver": False,
        "configure_logging": False,
    }
    signals = _handlers()
    try:
        if address is None:
            ray.init("local", num_cpus=cpus, object_store_memory=store_bytes, **common)
        else:
            common.pop("include_dashboard")
            ray.init(address, **common)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"no Ray cluster {'on this machine' if address is None else f'at {address}'}:"
            f" {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            "look at the address, and that RAY_AUTH_TOKEN is the cluster's token",
        ) from None
    for number, handler in signals.items():
        signal.signal(number, handler)
    return ray, True


def _handlers() -> dict[int, Any]:
    """Who gets this process's signals: Ray takes them, and prints a stack at each SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return {number: handler for number, handler in found.items() if handler is not None}


def _take_token(address: str | None, folder: Path) -> None:
    if address is not None:
        named = os.environ.get("RAY_AUTH_TOKEN") or _read(os.environ.get("RAY_AUTH_TOKEN_PATH"))
        if not named and not _read("~/.ray/auth_token"):
            raise ConfigError(
                f"no token for the Ray cluster at {address}, which answers on all interfaces",
                "set RAY_AUTH_TOKEN_PATH to its token file; a cluster that has none is not joined",
            )
        return
    path = folder / TOKEN_FILE
    write_token(path)
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def write_token(path: Path) -> None:
    """A new token in a file that its user alone can read."""
    with suppress(FileNotFoundError):
        path.unlink()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))


def _read(path: str | None) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip() if path else ""
    except OSError:
        return ""


def in_words(error: Any, what: str) -> ChukError:
    """What an actor raised, as it was raised; or the last line of what Ray says of it, after
    `what`. Of an actor that did not start Ray has the traceback as a text."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ChukError):
        return type(cause)(cause.message, cause.hint)
    text = str(cause)
    if found := re.search(r"^chuk_lib\.errors\.\w+: (.+)$(?:\s^hint: (.+)$)?", text, re.MULTILINE):
        return TrainingError(f"{what}: {found[1]}", found[2] or LOGS)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return TrainingError(f"{what}: {lines[-1] if lines else type(cause).__name__}", LOGS)
