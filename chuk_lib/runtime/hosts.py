"""Which machines a run has, and the connection to a process on another one.

Over `ssh`, as its users have it set up: each process on another machine is a `remote.py`
there, which starts the rank, hands its errors back, and ends it when the connection ends.
Nothing is copied: chuk, the data and the models are at the same paths on every machine."""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chuk_lib.errors import ConfigError, TrainingError
from chuk_lib.runtime.cards import cards

CONNECT_SECONDS = 60.0
"""How long a machine may take to answer, the start of Python there included."""
_NAME = re.compile(r"[A-Za-z0-9_][\w.@:-]*")
_SSH = (
    "ssh",
    "-T",
    *("-o", "BatchMode=yes"),
    *("-o", "ConnectTimeout=15"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
)


@dataclass(frozen=True)
class Host:
    """A machine: the name that ssh knows, and the address at which the others reach it."""

    name: str
    address: str


def read_hosts(names: str | None, file: Path | None) -> list[Host]:
    """The machines of `--hosts a,b` or of a file of `mlx.distributed_config` (a list of objects
    with `ssh` and `ips`, or an object with such `hosts`); the first is this one. Raises ConfigError
    for what is neither, for a name without an address, and when the first is another machine."""
    if names is not None and file is not None:
        raise ConfigError("both --hosts and --hostfile are given", "give one of them")
    if file is not None:
        found = _from_file(file)
    else:
        listed = [name.strip() for name in (names or "").split(",")]
        found = [Host(name, _address(name)) for name in listed]
    if not _is_here(found[0].address):
        raise ConfigError(
            f"`{found[0].name}` is not this machine, and the first one writes the run",
            "start chuk on the first machine of the list",
        )
    loopback = [host for host in found if host.address.startswith("127.")]
    if loopback and len(loopback) < len(found):
        raise ConfigError(
            f"the others cannot reach `{loopback[0].name}` at {loopback[0].address}",
            "name this machine as they know it, or give its address in a --hostfile",
        )
    return found


def _from_file(file: Path) -> list[Host]:
    hint = '[{"ssh": "first", "ips": ["10.0.0.1"]}, …], as `mlx.distributed_config` writes it'
    try:
        document = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"`{file}` cannot be read as a hostfile: {error}", hint) from None
    backend = document.get("backend") if isinstance(document, dict) else None
    if backend not in (None, "", "ring", "nccl", "any"):
        raise ConfigError(
            f"`{file}` asks for the backend {backend}, which chuk does not start itself",
            f"mlx.launch --hostfile {file} … chuk train …: chuk takes the ranks that it finds",
        )
    listed: Any = document.get("hosts") if isinstance(document, dict) else document
    try:
        hosts = [(str(one["ssh"]), [str(ip) for ip in one.get("ips", ())]) for one in listed]
    except (TypeError, KeyError, AttributeError):
        raise ConfigError(f"`{file}` is no hostfile", hint) from None
    if not hosts:
        raise ConfigError(f"`{file}` names no machine", hint)
    for name, _ in hosts:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"`{name}` in `{file}` is no name of a machine", hint)
    return [Host(name, ips[0] if ips else _address(name)) for name, ips in hosts]


def _address(name: str) -> str:
    """The address of a name that the network knows, or ssh's own settings. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"`{name}` is no name of a machine", "--hosts first,second")
    for known in (name.rpartition("@")[2], _name_of_alias(name)):
        with contextlib.suppress(OSError, UnicodeError):
            return socket.gethostbyname(known)
    raise ConfigError(
        f"no address is known for the machine `{name}`",
        "check the name, or give its address in a --hostfile",
    )


def _name_of_alias(name: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["ssh", "-G", name], capture_output=True, text=True, timeout=15)
        for line in done.stdout.splitlines():
            if line.startswith("hostname "):
                return line.split()[1]
    return ""


def _is_here(address: str) -> bool:
    """Whether an address is one of this machine's: only such can be bound."""
    with socket.socket() as one:
        try:
            one.bind((address, 0))
        except OSError:
            return False
    return True


class Connection:
    """A process on another machine, before its rank is started. `facts` are what it says of itself:
    versions, free `port`, `cards`, whether `folder` is there."""

    def __init__(self, host: Host, folder: str, prepare: Callable[[], None] | None = None) -> None:
        self.host = host
        remote = shlex.join([sys.executable, "-m", "chuk_lib.runtime.remote", folder])
        try:
            self.process = subprocess.Popen(
                [*_SSH, host.name, remote],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=prepare,
            )
        except OSError as error:
            raise TrainingError(f"ssh cannot be started: {error}", "install it") from None

    def facts(self, seconds: float = CONNECT_SECONDS) -> dict[str, Any]:
        """What the machine says of itself. Raises TrainingError when it cannot be reached, or has
        no chuk at the same path."""
        assert self.process.stdout is not None
        found = None
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            # A login script may say something first.
            while found is None and ready.select(seconds):
                if not (line := self.process.stdout.readline()):
                    break
                found = _object(line)
        if found is None:
            self.process.kill()
            assert self.process.stderr is not None
            said = self.process.stderr.read().decode(errors="replace").strip().splitlines()
            why = said[-1] if said else f"no answer within {seconds:g} s"
            raise TrainingError(
                f"`{self.host.name}` cannot take part: {why}",
                f"`ssh {self.host.name} {Path(sys.executable).parent}/chuk --version` should work"
                " without a password",
            )
        return found

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], hosts: Any) -> None:
        """Start the rank: Python with these arguments; `hosts` is the ring's list of addresses."""
        assert self.process.stdin is not None
        order = {"arguments": list(arguments), "environment": dict(environment), "hosts": hosts}
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """End it, and with it what it started."""
        self.process.kill()
        self.process.wait()


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def compare(hosts: Sequence[Host]) -> list[dict[str, Any]]:
    """What each machine but the first says of itself, in order, with the `problem` that keeps it
    out of a run of one process a machine (None when there is none). Raises TrainingError when there
    is no ssh."""
    found = []
    for connection in [Connection(host, str(Path.cwd())) for host in hosts[1:]]:
        facts: dict[str, Any] = {}
        try:
            facts = connection.facts()
            check(connection.host, facts, 1)
            problem = None
        except TrainingError as error:
            problem = error.message
        finally:
            connection.close()
        found.append(facts | {"problem": problem})
    return found


def check(host: Host, facts: Mapping[str, Any], size: int) -> None:
    """Raise TrainingError for a machine on which `size` ranks cannot take part."""
    from chuk_lib.runtime.environment import versions

    for name, version in versions().items():
        if (theirs := facts["versions"].get(name)) != version:
            raise TrainingError(
                f"`{host.name}` has {name} {theirs}, this machine {version}",
                "install the same versions on all machines",
            )
    if not facts["folder"]:
        raise TrainingError(
            f"`{host.name}` has no folder {Path.cwd()}", "every machine needs the same paths"
        )
    if cards() and facts["cards"] < size:
        raise TrainingError(
            f"`{host.name}` has {facts['cards']} GPUs, and {size} processes are asked for on each"
            " machine",
            "take fewer with --nproc",
        )
