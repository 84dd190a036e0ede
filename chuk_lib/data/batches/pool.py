"""Blocks rendered by several processes, handed back in order.

Workers are plain child processes that talk over pipes: they need nothing of the parent's main
module, start without MLX, and end by themselves when the parent is gone. What they send is read
from our own children only."""

from __future__ import annotations

import pickle
import queue
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from chuk_lib.data.batches.blocks import RecordBlock, records_of
from chuk_lib.data.batches.documents import Maker, RenderedRow, RenderPlan
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.errors import ChukError, DataError

_AHEAD = 2
_SIZE = struct.Struct("<Q")
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from chuk_lib.data.batches.pool import serve;"
    " serve()"
)
_ROOT = str(Path(__file__).resolve().parents[3])


class WorkerBug(RuntimeError):
    """What went wrong inside a worker that nobody foresaw, with its traceback."""


@contextmanager
def renderers(plan: RenderPlan, tokenizer: Tokenizer, workers: int) -> Iterator[Renderers]:
    """What renders blocks: this process with `workers=1`, else that many children, which are gone
    afterwards."""
    made = Renderers(plan, tokenizer, workers)
    try:
        yield made
    finally:
        made.close()


class Renderers:
    """Renders blocks in order, some ahead of what was asked for."""

    def __init__(self, plan: RenderPlan, tokenizer: Tokenizer, workers: int) -> None:
        self._maker = Maker(plan, tokenizer) if workers == 1 else None
        self._children = [] if workers == 1 else [_Child(plan) for _ in range(workers)]

    def __call__(self, blocks: Iterable[RecordBlock]) -> Iterator[tuple[RecordBlock, RenderedRow]]:
        """Each block with its documents, in order. Raises what rendering raises, for the first
        block that does."""
        if self._maker is not None:
            yield from ((block, self._maker(records_of(block))) for block in blocks)
            return
        free: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        for child in self._children:
            free.put(child)
        pending: deque[tuple[RecordBlock, Future[RenderedRow]]] = deque()
        with ThreadPoolExecutor(len(self._children)) as threads:
            try:
                for block in blocks:
                    pending.append((block, threads.submit(_run, free, block)))
                    if len(pending) > _AHEAD * len(self._children):
                        done, future = pending.popleft()
                        yield done, future.result()
                while pending:
                    done, future = pending.popleft()
                    yield done, future.result()
            finally:
                for _, future in pending:
                    future.cancel()

    def close(self) -> None:
        """End the children."""
        for child in self._children:
            child.close()


def _run(free: queue.SimpleQueue[_Child], block: RecordBlock) -> RenderedRow:
    child = free.get()
    try:
        return child(block)
    finally:
        free.put(child)


class _Child:
    def __init__(self, plan: RenderPlan) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, _ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._plan: RenderPlan | None = plan

    def __call__(self, block: RecordBlock) -> RenderedRow:
        try:
            if self._plan is not None:
                _send(self._in, self._plan)
                self._plan = None
            _send(self._in, block)
            answer = _receive(self._out)
        except (OSError, EOFError):
            raise _lost(self._process.wait()) from None
        if isinstance(answer, ChukError):
            raise answer
        if isinstance(answer, str):
            raise WorkerBug(answer)
        assert isinstance(answer, RenderedRow)
        return answer

    def close(self) -> None:
        """A child that reads the end of its input leaves; one in the middle of a block is told
        to."""
        self._process.terminate()
        for stream in (self._in, self._out):
            try:
                stream.close()
            except OSError:
                continue  # what was still to be written has no reader
        self._process.wait()


def _lost(code: int) -> DataError:
    reason = f"signal {-code}" if code < 0 else f"exit code {code}"
    return DataError(
        f"a process that renders rows ended ({reason})",
        "it may have run out of memory: try fewer with --workers",
    )


def _send(stream: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value, protocol=5)
    stream.write(_SIZE.pack(len(data)))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    head = stream.read(_SIZE.size)
    if len(head) < _SIZE.size:
        raise EOFError
    size = _SIZE.unpack(head)[0]
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)


def serve() -> None:
    """The life of a child: a plan, then blocks, each answered with its documents or with what went
    wrong."""
    import os
    import signal
    import traceback

    # Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    given, taken = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library writes may get between the answers
    maker: Maker | None = None
    plan: RenderPlan | None = None
    while True:
        try:
            message = _receive(given)
        except EOFError:
            return
        if isinstance(message, RenderPlan):
            plan = message
            continue
        answer: Any
        try:
            assert plan is not None
            maker = maker or Maker(plan)
            answer = maker(records_of(message))
        except ChukError as error:
            answer = error
        except Exception:  # the parent reports it as the bug that it is
            answer = traceback.format_exc()
        try:
            _send(taken, answer)
        except OSError:
            return
