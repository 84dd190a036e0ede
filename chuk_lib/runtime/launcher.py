"""Start the processes of a run, here and on other machines, and see to it that they end together.

`mlx.launch` exits 0 when every process failed, leaves them behind when it is killed, and has one
port for all its runs. Here each rank dies with its parent, the first that fails decides the exit
code and ends the others, and every run has a port of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from chuk_lib.errors import ConfigError, TrainingError
from chuk_lib.runtime.cards import VARIABLE, cards
from chuk_lib.runtime.hosts import Connection, Host, check
from chuk_lib.runtime.threads import count_cores
from chuk_lib.runtime.world import FOLDER, LOST

Tell = Callable[[str], None]
GRACE_SECONDS = 5.0
"""How long the other ranks may take to end when one has failed."""
STOPPED = {0, 129, 130, 143}
"""Exit codes of a run that ended, or was asked to."""
_HERE = Host("this machine", "127.0.0.1")
_LOST_CONNECTION = 255  # of ssh
_TICK = 0.05
_PR_SET_PDEATHSIG = 1


def number_of(wanted: str) -> int:
    """How many processes `--nproc` asks for: a number, or `auto`, one a GPU, else one a core.
    Raises ConfigError."""
    if wanted == "auto":
        return len(cards()) or count_cores().usable
    if not wanted.isascii() or not wanted.isdigit() or not int(wanted):
        raise ConfigError(f"`--nproc {wanted}` is no number of processes", "a number, or auto")
    if cards() and int(wanted) > len(cards()):
        raise ConfigError(
            f"`--nproc {wanted}`: this machine has {len(cards())} GPUs", "take one process a GPU"
        )
    return int(wanted)


def launch(arguments: Sequence[str], size: int, tell: Tell, hosts: Sequence[Host] = ()) -> int:
    """Run this Python with `arguments` as `size` ranks on each machine (none are named: here
    alone); returns the exit code: 0, or that of the first rank that failed (128 and the signal's
    number for one that was killed).

    Rank 0 has this process's terminal; what another writes to stderr goes to `tell`, a line each,
    with its rank in front. Interrupts reach all ranks of a terminal by themselves; SIGTERM and
    SIGHUP are handed on. Raises TrainingError when a rank cannot be started, or a machine cannot be
    reached or has other versions."""
    places = [host for host in hosts or [_HERE] for _ in range(size)]
    with tempfile.TemporaryDirectory(prefix="chuk-world-") as folder:
        ranks = _Ranks(tell, places)
        try:
            with ranks.signals_handed_on():
                _start(ranks, places, arguments, size, Path(folder))
                return ranks.wait()
        finally:
            ranks.kill()


def _start(
    ranks: _Ranks, places: Sequence[Host], arguments: Sequence[str], size: int, folder: Path
) -> None:
    """Connect to the other machines, give every rank its place, and start all."""
    connections = {
        rank: ranks.connect(rank, host) for rank, host in enumerate(places) if rank >= size
    }
    ports = free_ports(size)
    for rank, connection in connections.items():
        found = connection.facts()
        check(places[rank], found, size)
        ports.append(found["port"])
    shared, own, ring, here = {}, {FOLDER: str(folder)}, [], cards()
    if here:
        shared = {
            "MLX_WORLD_SIZE": str(len(places)),
            "NCCL_HOST_IP": places[0].address,
            "NCCL_PORT": str(ports[0]),
        }
    else:
        ring = [[f"{host.address}:{port}"] for host, port in zip(places, ports, strict=True)]
        file = folder / "hosts.json"
        file.write_text(json.dumps(ring))
        own["MLX_HOSTFILE"] = str(file)
    for rank in range(len(places)):
        environment = shared | {"MLX_RANK": str(rank)}
        if here:  # each of a machine's ranks has one of its cards
            environment[VARIABLE] = here[rank] if rank < size else str(rank % size)
        if rank in connections:
            ranks.listen(rank)
            connections[rank].start(arguments, _settings() | environment, ring)
        else:
            ranks.start([sys.executable, *arguments], rank, environment | own)


def _settings() -> dict[str, str]:
    """The variables of this process that decide about a run."""
    return {name: value for name, value in os.environ.items() if name.startswith("CHUK_")}


def die_with_parent(parent: int) -> None:
    """In a child: Linux ends it when its parent is gone, however that went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class _Ranks:
    """The processes, and what became of them."""

    def __init__(self, tell: Tell, places: Sequence[Host]) -> None:
        self._tell, self._places = tell, places
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._readers: list[threading.Thread] = []
        self._held: list[str] = []
        self._parent = os.getpid()

    def start(self, command: Sequence[str], rank: int, environment: Mapping[str, str]) -> None:
        """Start one rank."""
        follows = rank > 0
        try:
            process = subprocess.Popen(
                list(command),
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL if follows else None,
                stdout=subprocess.DEVNULL if follows else None,
                stderr=subprocess.PIPE if follows else None,
                preexec_fn=partial(self._prepare, rank),
            )
        except OSError as error:
            raise TrainingError(f"rank {rank} cannot be started: {error}", "") from None
        self._running[rank] = process
        self.listen(rank)

    def connect(self, rank: int, host: Host) -> Connection:
        """Reach the machine of one rank."""
        connection = Connection(host, os.getcwd(), partial(self._prepare, rank))
        self._running[rank] = connection.process
        return connection

    def listen(self, rank: int) -> None:
        """Keep what a rank writes to stderr, where it is not this process's own."""
        stream = self._running[rank].stderr
        if stream is not None:
            reader = threading.Thread(target=self._read, args=(rank, stream), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _prepare(self, rank: int) -> None:
        """In the child: rank 0 alone takes signals, and asks the others to stop. It ends when its
        parent does; where Linux does not see to that, its next collective fails, since ranks lose
        each other one by one."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if rank else ():
            signal.signal(number, signal.SIG_IGN)
        die_with_parent(self._parent)

    def _read(self, rank: int, stream: IO[bytes]) -> None:
        for line in stream:
            self._held.append(f"rank {rank}: {line.decode(errors='replace').rstrip()}")

    def wait(self) -> int:
        """Wait for all; the first failure ends the others."""
        codes: dict[int, int] = {}
        while self._running:
            time.sleep(_TICK)
            self._collect(codes)
            if any(codes.values()):
                return self._end_of(codes)
        return 0

    def _end_of(self, codes: dict[int, int]) -> int:
        """One rank has ended with another code than 0: let the others find out, end those that do
        not, and tell why. Of a stop that was asked for there is nothing to find out: rank 0 may
        still be saving."""
        until = time.monotonic() + GRACE_SECONDS
        while self._running and (time.monotonic() < until or set(codes.values()) <= STOPPED):
            time.sleep(_TICK)
            self._collect(codes)
        if self._elsewhere:  # ranks of one machine see themselves who does not come
            for rank in self._running:
                self._tell(f"rank {rank} on `{self._places[rank].name}` did not end by itself")
        self.kill()
        for reader in self._readers:
            reader.join(1.0)
        causes = {rank: code for rank, code in codes.items() if code not in (0, LOST)} or codes
        rank, code = min(causes.items(), key=lambda item: (item[1] >= 0, item[0]))
        if code == _LOST_CONNECTION and self._is_elsewhere(rank):
            self._tell(f"error: the connection to `{self._places[rank].name}` (rank {rank}) ended")
        elif code < 0:
            name = signal.Signals(-code).name
            self._tell(
                f"error: rank {rank} was ended by {name}, and the run with it; what was saved is"
                " whole: `chuk train resume RUN` goes on"
            )
        elif rank > 0 and code not in STOPPED:  # rank 0 has told its own failure
            mark = f"rank {rank}: "
            said = [line for line in self._held if line.startswith(mark)]
            error = f"{mark}error:"
            first = next((at for at, line in enumerate(said) if line.startswith(error)), 0)
            for line in said[first:]:
                self._tell(line)
        return 128 - code if code < 0 else code

    def _collect(self, codes: dict[int, int]) -> None:
        for rank, process in list(self._running.items()):
            if (code := process.poll()) is not None:
                by_signal = self._is_elsewhere(rank) and code > 128 and code != _LOST_CONNECTION
                codes[rank] = 128 - code if by_signal else code
                del self._running[rank]

    @property
    def _elsewhere(self) -> bool:
        return self._is_elsewhere(len(self._places) - 1)

    def _is_elsewhere(self, rank: int) -> bool:
        """Whether a rank runs on another machine: there, 128 and a signal's number end it."""
        return self._places[rank] != self._places[0]

    def kill(self) -> None:
        """End what still runs."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self._running.clear()

    @contextlib.contextmanager
    def signals_handed_on(self) -> Iterator[None]:
        """SIGTERM and SIGHUP go to every rank; Ctrl-C they get from the terminal themselves."""

        def hand_on(number: int, frame: object) -> None:
            for process in self._running.values():
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

        former = {
            number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGHUP)
        }
        former[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
