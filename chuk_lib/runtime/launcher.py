"""Start the processes of a run on this machine, and see to it that they end together.

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
from chuk_lib.runtime.cards import VARIABLE, in_sight
from chuk_lib.runtime.threads import count_cores
from chuk_lib.runtime.world import FOLDER, LOST

Tell = Callable[[str], None]
GRACE_SECONDS = 5.0
"""How long the other ranks may take to end when one has failed."""
STOPPED = {0, 129, 130, 143}
"""Exit codes of a run that ended, or was asked to."""
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


def cards() -> list[str]:
    """The NVIDIA cards that this process may use, as CUDA_VISIBLE_DEVICES names them; none where
    MLX computes on something else."""
    import mlx.core as mx

    if os.environ.get("CHUK_DEVICE") == "cpu" or not mx.distributed.is_available("nccl"):
        return []
    return in_sight()


def launch(command: Sequence[str], size: int, tell: Tell) -> int:
    """Run `command` as `size` ranks; returns the exit code: 0, or that of the first rank that
    failed (128 and the signal's number for one that was killed).

    Rank 0 has this process's terminal; what another writes to stderr goes to `tell`, a line each,
    with its rank in front. Interrupts reach all ranks of a terminal by themselves; SIGTERM and
    SIGHUP are handed on. Raises TrainingError when a rank cannot be started."""
    with tempfile.TemporaryDirectory(prefix="chuk-world-") as folder:
        ranks = _Ranks(tell)
        try:
            with ranks.signals_handed_on():
                for rank, environment in enumerate(_environments(size, Path(folder))):
                    ranks.start(command, rank, environment)
                return ranks.wait()
        finally:
            ranks.kill()


def _environments(size: int, folder: Path) -> list[dict[str, str]]:
    """What each rank has in its environment: the backend's variables, and its card."""
    shared = {FOLDER: str(folder)}
    found = cards()
    if found:
        shared |= {
            "MLX_WORLD_SIZE": str(size),
            "NCCL_HOST_IP": "127.0.0.1",
            "NCCL_PORT": str(free_ports(1)[0]),
        }
    else:
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))
        shared["MLX_HOSTFILE"] = str(hosts)
    card = [{VARIABLE: name} for name in found[:size]] or [{} for _ in range(size)]
    return [shared | {"MLX_RANK": str(rank)} | card[rank] for rank in range(size)]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class _Ranks:
    """The processes, and what became of them."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
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
        if process.stderr is not None:
            reader = threading.Thread(target=self._read, args=(rank, process.stderr), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _prepare(self, rank: int) -> None:
        """In the child: rank 0 alone takes signals, and asks the others to stop. Linux ends the
        child when its parent is gone, however that went; elsewhere its next collective fails, since
        ranks lose each other one by one."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if rank else ():
            signal.signal(number, signal.SIG_IGN)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self._parent:  # it died in between
                os._exit(1)

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
        self.kill()
        for reader in self._readers:
            reader.join(1.0)
        causes = {rank: code for rank, code in codes.items() if code not in (0, LOST)} or codes
        rank, code = min(causes.items(), key=lambda item: (item[1] >= 0, item[0]))
        if code < 0:
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
                codes[rank] = code
                del self._running[rank]

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
