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

import contextlib
import faulthandler
import json
import os
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
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
_JOINED = ("MLX_RANK", "OMPI_COMM_WORLD_SIZE", FOLDER)
"""What makes a process one of several: gone once it has joined, so that none that it starts (one
that compiles kernels, a reward's own) takes its place."""
_TICK = 0.25
_LIFELESS = 8 * _TICK
_END = "the end"
_PLACE = struct.Struct("<q")


_timeout = TIMEOUT_SECONDS


def set_timeout(seconds: float) -> None:
    """How long the collectives of a world that is joined later may take."""
    global _timeout
    _timeout = seconds


class World:
    """`rank` of `size` processes; `waited` seconds in collectives so far. All methods but `share`,
    `deal` and `dealt` are collective: every rank calls them in the same order, or all of them raise
    TrainingError."""

    def __init__(
        self, rank: int = 0, size: int = 1, group: Any = None, on_gpu: bool = False
    ) -> None:
        self.rank, self.size = rank, size
        self.timeout = _timeout
        self.waited = 0.0
        self._group, self._stream = group, None
        self._folder = os.environ.get(FOLDER)
        self._calls = self._place = 0
        self._leaving = False
        self._began: float | None = None
        self._doing = ""
        if size > 1:
            import mlx.core as mx

            self._stream = mx.new_stream(mx.gpu if on_gpu else mx.cpu)
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

    def votes(self, *flags: bool) -> list[bool]:
        """For each flag whether it holds on any rank."""
        if self.size == 1:
            return list(flags)
        import mlx.core as mx

        counts = self.sum(mx.array([float(flag) for flag in flags]), "votes").tolist()
        return [count > 0 for count in counts]

    def gather(self, data: bytes, what: str = "what each has") -> list[bytes]:
        """The bytes of every rank, in the order of ranks, of any length."""
        if self.size == 1:
            return [data]
        import numpy as np

        lengths = [int(length) for length in self._gathered(np.array([len(data)]), what)[:, 0]]
        room = np.zeros(-(-max(1, *lengths) // 4) * 4, np.uint8)
        room[: len(data)] = np.frombuffer(data, np.uint8)
        found = self._gathered(room.view(np.int32), what)
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
                raise TrainingError(
                    f"rank {rank} has another {odd[0]} than rank 0: {theirs.get(odd[0])}, not"
                    f" {found[0].get(odd[0])}",
                    f"all processes of a run need the same {words}",
                )

    def leave(self) -> None:
        """Wait until all have come here: before, none may go whom another still needs. One that
        fails here has done its work."""
        if self.size == 1:
            return
        self._leaving = True
        with contextlib.suppress(TrainingError):
            self._announce(_END)

    def _announce(self, what: str) -> None:
        """Compare the collective that each rank is about to enter: its number and its name."""
        self._calls += 1
        import numpy as np

        name, end = (zlib.crc32(word.encode()) for word in (what, _END))
        mine = np.array([self._calls, name], np.uint32).view(np.int32)
        theirs = self._raw(mine, what).view(np.uint32)
        if what != _END and (gone := [rank for rank, row in enumerate(theirs) if row[1] == end]):
            self._lose(f"rank {gone[0]} has ended before the others")
        odd = [rank for rank, row in enumerate(theirs) if row.tolist() != theirs[0].tolist()]
        if odd:
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

    @contextlib.contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        self._say(what)
        try:
            yield
        except RuntimeError as error:
            if self._leaving:
                raise TrainingError(str(error)) from None
            self._lose(f"rank {self.rank} lost the others in {what}: {error}")
        finally:
            self.waited += time.monotonic() - (self._began or time.monotonic())
            self._began = None

    def _lose(self, message: str) -> NoReturn:
        """End: another rank has. chuk's own launcher knows which, and how."""
        if self._folder:
            os._exit(LOST)
        lost(message)

    def _say(self, what: str) -> None:
        """Keep what is begun, and write how many that makes where the others of this machine can
        read it."""
        self._doing, self._began, self._place = what, time.monotonic(), self._place + 1
        if self._folder:
            with open(Path(self._folder) / str(self.rank), "wb") as file:
                file.write(_PLACE.pack(self._place))

    def _missing(self) -> str:
        """The ranks that show no life, or else those that are the least far; in words."""
        files = {
            rank: file
            for rank in range(self.size)
            if rank != self.rank
            and self._folder
            and (file := Path(self._folder) / str(rank)).is_file()  # another machine's are not here
        }
        others = list(files)
        places = {rank: _place(files[rank]) for rank in others}
        late = [rank for rank in others if _age(files[rank]) > _LIFELESS] or [
            rank for rank in others if places[rank] == min(places.values()) < self._place
        ]
        if not late:
            return "another rank has not come"
        return f"rank {', '.join(map(str, late))} {'has' if len(late) == 1 else 'have'} not come"

    def _watch(self) -> None:
        """Show life, and end a process that waits for others without end: nothing else can."""
        while True:
            time.sleep(_TICK)
            if self._folder:
                with contextlib.suppress(OSError):
                    os.utime(Path(self._folder) / str(self.rank))
            began = self._began
            if began is not None and time.monotonic() - began > self.timeout:
                if os.environ.get("CHUK_DEBUG"):
                    faulthandler.dump_traceback(sys.stderr, all_threads=True)
                lost(
                    f"rank {self.rank} waited {self.timeout:g} s in {self._doing}:"
                    f" {self._missing()} (--comm-timeout says how long)"
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


def _age(path: Path) -> float:
    """Seconds since a rank showed life."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


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

    # Joining waits without end too, and holds the interpreter: no thread of Python's can watch it.
    faulthandler.dump_traceback_later(_timeout, exit=True)
    try:
        group = mx.distributed.init(strict=True, backend=backend)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"this process cannot join the others of its run by {backend}: {error}",
            "see docs/devices.md, or run on one device",
        ) from None
    finally:
        faulthandler.cancel_dump_traceback_later()
    world = World(group.rank(), group.size(), group, on_gpu=backend == "nccl")
    for variable in _JOINED:
        os.environ.pop(variable, None)
    return world
