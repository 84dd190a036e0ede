"""The processes that train one model together: data parallelism over MLX's own collectives.

Every process (rank) holds the whole model and takes its share of the rows of each micro-batch.
What must be one for all is summed or gathered here; a world of one process costs nothing.

MLX's layer is not trusted (MLX 0.32): without `strict` a missing backend gives N worlds of one, its
sums carry no names and no shapes (two that cross, or differ in length, come back as numbers), and
a rank that does not come is waited for without end. So each collective is alone, evaluated at once
on a stream of its own, and announced first: a small gather of what each rank is about to do, which
must be equal. A watchdog ends the process when a collective takes too long, and says who is
missing.

Who belongs to the world stands in the environment, as `mlx.launch` and `chuk train --nproc` set it:
MLX_RANK with MLX_HOSTFILE (ring), with NCCL_HOST_IP and MLX_WORLD_SIZE (NCCL), or with
MLX_JACCL_COORDINATOR (JACCL); or OpenMPI's own variables."""

from __future__ import annotations

import faulthandler
import json
import os
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from chuk_lib.errors import TrainingError

TIMEOUT_SECONDS = 600.0
"""How long a collective may take: a checkpoint that one rank writes is waited for."""
FOLDER = "CHUK_WORLD"
"""The variable with the folder where ranks of one machine say how far they are."""
LOST = 113
"""The exit code of a rank that lost the others: one of them knows why."""
_TICK, _PARTING = 0.25, 10.0
_PLACE = struct.Struct("<q")


_timeout = TIMEOUT_SECONDS


def set_timeout(seconds: float) -> None:
    """How long the collectives of a world that is joined later may take."""
    global _timeout
    _timeout = seconds


class World:
    """`rank` of `size` processes. All methods but `share` are collective: every rank calls them in
    the same order, or all of them raise TrainingError."""

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size = rank, size
        self.timeout = _timeout
        self._group, self._stream = group, None
        self._calls = self._left = 0
        self._began: float | None = None
        self._doing = ""
        if size > 1:
            import mlx.core as mx

            device = mx.gpu if _backend() == "nccl" else mx.cpu
            self._stream = mx.new_stream(device)
            threading.Thread(target=self._watch, name="chuk-world", daemon=True).start()

    @property
    def is_first(self) -> bool:
        """Whether this rank writes, draws and prints."""
        return self.rank == 0

    def share(self, rows: Sequence[Any]) -> list[Any]:
        """This rank's rows of all: every `size`-th, from its own number on; maybe none."""
        return list(rows[self.rank :: self.size])

    def deal(self, parts: Sequence[Sequence[Any]]) -> tuple[list[list[Any]], bool]:
        """This rank's rows of each micro-batch, without those of which it has none; and whether it
        has none of any. Then it gets a row of another rank: it computes what the others do, so that
        it knows what they will sum, and counts nothing of it."""
        mine = [rows for part in parts if (rows := self.share(part))]
        idle = not mine and any(parts)
        return ([[next(row for part in parts for row in part)]] if idle else mine), idle

    def dealt(self, parts: Sequence[Sequence[Any]]) -> int:
        """How many micro-batches all ranks make of these."""
        return sum(min(len(part), self.size) for part in parts)

    def sum(self, values: Any, what: str = "a sum") -> Any:
        """The sum over all ranks of a float32 array (N,), N equal on all of them."""
        if self.size == 1:
            return values
        import mlx.core as mx

        mx.eval(values)
        self._announce(f"{what} of {values.size} numbers")
        with self._waiting(what):
            found = mx.distributed.all_sum(values, group=self._group, stream=self._stream)
            mx.eval(found)
        return found

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank."""
        if self.size == 1:
            return flag
        import mlx.core as mx

        return bool(self.sum(mx.array([float(flag)]), "a vote").item() > 0)

    def gather(self, data: bytes, what: str = "what each has") -> list[bytes]:
        """The bytes of every rank, in the order of ranks, of any length."""
        if self.size == 1:
            return [data]
        import mlx.core as mx
        import numpy as np

        lengths = [int(length) for length in self._gathered(np.array([len(data)]), what)[:, 0]]
        room = np.zeros(-(-max(1, *lengths) // 4) * 4, np.uint8)
        room[: len(data)] = np.frombuffer(data, np.uint8)
        found = self._gathered(room.view(np.int32), what)
        del mx
        return [row.tobytes()[:length] for row, length in zip(found, lengths, strict=True)]

    def from_first(self, data: bytes, what: str = "what the first rank has") -> bytes:
        """The bytes of rank 0."""
        return self.gather(data if self.is_first else b"", what)[0]

    def check_same(self, facts: Mapping[str, Any], words: str) -> None:
        """Raise TrainingError on all ranks, naming those facts (plain data) that are not the same
        everywhere."""
        found = [json.loads(one) for one in self.gather(json.dumps(facts).encode(), words)]
        for rank, theirs in enumerate(found):
            odd = [name for name in facts if theirs.get(name) != found[0].get(name)]
            if odd:
                self.part()
                raise TrainingError(
                    f"rank {rank} has another {odd[0]} than rank 0: {theirs.get(odd[0])}, not"
                    f" {found[0].get(odd[0])}",
                    f"all processes of a run need the same {words}",
                )

    def part(self) -> None:
        """Wait until every rank has its result of the last collective, before this one goes: MLX's
        ring takes back what it has sent when a socket closes."""
        if self.size == 1:
            return
        self._left += 1
        folder = os.environ.get(FOLDER)
        if not folder:  # other hosts, or another launcher
            time.sleep(1.0)
            return
        self._say(f"left-{self.rank}", self._left)
        until = time.monotonic() + _PARTING
        others = [Path(folder) / f"left-{rank}" for rank in range(self.size)]
        while time.monotonic() < until and any(_place(path) < self._left for path in others):
            time.sleep(0.01)

    def _announce(self, what: str) -> None:
        """Compare the collective that each rank is about to enter: its number and its name."""
        self._calls += 1
        self._say(str(self.rank), self._calls)
        mine = [self._calls, zlib.crc32(what.encode())]
        import numpy as np

        theirs = self._raw(np.array(mine, np.int64).astype(np.int32), what)
        odd = [rank for rank, row in enumerate(theirs) if row.tolist() != theirs[0].tolist()]
        if odd:
            self.part()
            raise TrainingError(
                f"the processes of this run have come apart: rank {odd[0]} does something else than"
                f" rank 0 (here: {what})",
                "this is a fault in chuk; what was saved is whole, and `chuk train resume` goes on",
            )

    def _gathered(self, values: Any, what: str) -> Any:
        import numpy as np

        self._announce(f"{what}: {values.size}")
        return self._raw(np.asarray(values, np.int32), what)

    def _raw(self, values: Any, what: str) -> Any:
        """int32 (N,) of every rank, (size, N)."""
        import mlx.core as mx
        import numpy as np

        with self._waiting(what):
            found = mx.distributed.all_gather(
                mx.array(values)[None], group=self._group, stream=self._stream
            )
            mx.eval(found)
        return np.array(found)

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        self._doing, self._began = what, time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if os.environ.get(FOLDER):  # chuk's own launcher tells which rank failed, and how
                os._exit(LOST)
            lost(f"rank {self.rank} lost the others in {what}: {error}")
        finally:
            self._began = None

    def _say(self, name: str, place: int) -> None:
        """Write how far this rank is where the others of this machine can read it."""
        if folder := os.environ.get(FOLDER):
            (Path(folder) / name).write_bytes(_PLACE.pack(place))

    def _missing(self) -> str:
        """Who has not come, as far as anybody knows: the ranks that are behind, else any other."""
        folder = os.environ.get(FOLDER)
        others = [rank for rank in range(self.size) if rank != self.rank]
        behind = [
            rank for rank in others if folder and _place(Path(folder) / str(rank)) < self._calls
        ]
        who = behind or others
        return f"rank {who[0]}" if len(who) == 1 else f"one of ranks {', '.join(map(str, who))}"

    def _watch(self) -> None:
        """End a process that waits for others without end: nothing else can."""
        while True:
            time.sleep(_TICK)
            began = self._began
            if began is not None and time.monotonic() - began > self.timeout:
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                lost(
                    f"rank {self.rank} waited {self.timeout:g} s in {self._doing}:"
                    f" {self._missing()} has not come"
                    " (--comm-timeout says how long)"
                )


def lost(message: str) -> NoReturn:
    """End this process at once with one line: MLX's collectives cannot be left otherwise, and what
    is saved is whole."""
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    os._exit(1)


def _place(path: Path) -> int:
    try:
        return int(_PLACE.unpack(path.read_bytes())[0])
    except (OSError, struct.error):
        return 0


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started as one of several."""
    return _backend(environment) is not None


def _backend(environment: Mapping[str, str] = os.environ) -> str | None:
    """The backend that a launcher has prepared, by the variables that it reads."""
    if "MLX_RANK" in environment:
        for variable, backend in (
            ("NCCL_HOST_IP", "nccl"),
            ("MLX_JACCL_COORDINATOR", "jaccl"),
            ("MLX_HOSTFILE", "ring"),
        ):
            if variable in environment:
                return backend
    return "mpi" if "OMPI_COMM_WORLD_SIZE" in environment else None


@cache
def this_world() -> World:
    """The world of this process, joined at the first call. Raises TrainingError when the others
    cannot be reached."""
    backend = _backend()
    if backend is None:
        return World()
    import mlx.core as mx

    try:
        group = mx.distributed.init(strict=True, backend=backend)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"this process cannot join the others of its run by {backend}: {error}",
            "see docs/devices.md, or run on one device",
        ) from None
    return World(group.rank(), group.size(), group)
