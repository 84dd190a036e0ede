"""One MCP server as a process: JSON-RPC lines over its stdin and stdout, as a transport of the SDK.

The SDK's own transport writes a traceback to the log for every line of stdout that is no message,
buffers a line without bound, and needs a real file for stderr. Here noise is counted and ends the
server, a message has a largest size, the last of stderr is kept for the explanation, and the whole
process group ends with chuk, even with `kill -9`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from chuk_lib.env.mcp.servers import McpServer

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

MAX_MESSAGE = 64 << 20
"""Bytes of the largest message that is read."""
MAX_NOISE = 1_000
"""Lines in a row that are no answer (garbage and notifications) before a server is ended."""
_GRACE = 1.0
"""Seconds that a server has to leave, once after its stdin is closed and once after SIGTERM."""
_GUARD = "read word || kill -KILL -$0 2>/dev/null"
"""Runs beside a server: when chuk is gone its stdin ends, and the server's group is killed."""


class Pulse:
    """What is known of one life of a server: whether it ended and why, its noise, its last words.

    `down` is done when the connection is of no more use; its result is the reason.
    """

    def __init__(self) -> None:
        self.down: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.noise = 0
        self._words: deque[str] = deque(maxlen=5)

    def end(self, reason: str) -> None:
        """Say that the connection is over. The first reason stays."""
        if not self.down.done():
            self.down.set_result(reason)

    def heard(self, answer: bool) -> bool:
        """Count a line of stdout; False when there were too many that answer nothing."""
        self.noise = 0 if answer else self.noise + 1
        return self.noise <= MAX_NOISE

    def said(self, line: bytes) -> None:
        """Keep a line of stderr, cut to 300 bytes. Only the last five are kept."""
        text = line[:300].decode("utf-8", "replace").strip()
        if text:
            self._words.append(text)

    @property
    def last_words(self) -> str:
        """The line of stderr that explains most: the last that names an error, else the last."""
        errors = [word for word in self._words if "error" in word.lower()]
        return (errors or list(self._words) or [""])[-1]


@asynccontextmanager
async def stdio_transport(server: McpServer, pulse: Pulse) -> AsyncIterator[TransportStreams]:
    """Start the server's process and yield the streams that the SDK's session reads and writes.

    On leaving the process is asked to go (stdin closed, then SIGTERM to its group) and killed
    after two seconds. Raises OSError when the command cannot be started.
    """
    import anyio
    from mcp.shared.message import SessionMessage

    process = await _start(server)
    guard = await _guard(process.pid)
    sender, read_stream = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write_stream, receiver = anyio.create_memory_object_stream[SessionMessage](0)
    tasks = [
        asyncio.create_task(_read(process, sender, pulse)),
        asyncio.create_task(_write(process, receiver, pulse)),
        asyncio.create_task(_listen(process, pulse)),
    ]
    try:
        yield read_stream, write_stream
    finally:
        try:
            with anyio.CancelScope(shield=True):
                await _stop(process, tasks[1:2])
        finally:
            _kill(process, signal.SIGKILL)
            for task in tasks:
                task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(*tasks, return_exceptions=True)
                await _dismiss(guard)
                for stream in (sender, read_stream, write_stream, receiver):
                    await stream.aclose()
                _close(process)


async def _start(server: McpServer) -> asyncio.subprocess.Process:
    from mcp.client.stdio import get_default_environment

    return await asyncio.create_subprocess_exec(
        *server.command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**get_default_environment(), **server.env},
        cwd=server.cwd,
        limit=MAX_MESSAGE,
        start_new_session=True,
    )


async def _guard(group: int) -> asyncio.subprocess.Process:
    """The process that kills a group when this one is gone: it reads a pipe that only we hold."""
    quiet = asyncio.subprocess.DEVNULL
    return await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        _GUARD,
        str(group),
        stdin=asyncio.subprocess.PIPE,
        stdout=quiet,
        stderr=quiet,
        start_new_session=True,
    )


async def _dismiss(guard: asyncio.subprocess.Process) -> None:
    """Let the guard go without killing: a word on its stdin, not the end of it."""
    assert guard.stdin is not None
    with suppress(OSError):
        guard.stdin.write(b"done\n")
        await guard.stdin.drain()
        guard.stdin.close()
    with suppress(TimeoutError):
        await asyncio.wait_for(guard.wait(), _GRACE)
    _close(guard)


async def _read(process: asyncio.subprocess.Process, sender: Any, pulse: Pulse) -> None:
    """Lines of stdout to messages, until the process or its welcome ends."""
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

    assert process.stdout is not None
    reason = ""
    while not reason:
        try:
            line = await process.stdout.readline()
        except ValueError:
            reason = f"it wrote a message of more than {MAX_MESSAGE >> 20} MiB"
            break
        if not line:
            reason = await _how_ended(process)
            break
        message = None
        with suppress(ValueError):
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        answers = message is not None and _is_answer(message)
        if not pulse.heard(answers):
            reason = f"it wrote {MAX_NOISE:,} lines to stdout that answer nothing"
        elif message is not None:
            await sender.send(SessionMessage(message))
    pulse.end(reason)
    await sender.aclose()


def _is_answer(message: Any) -> bool:
    """Whether a message answers a request (a result or an error), and is no notification."""
    return hasattr(message, "result") or hasattr(message, "error")


async def _how_ended(process: asyncio.subprocess.Process) -> str:
    with suppress(TimeoutError):
        code = await asyncio.wait_for(process.wait(), _GRACE)
        return f"it ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
    return "it closed its stdout"


async def _write(process: asyncio.subprocess.Process, receiver: Any, pulse: Pulse) -> None:
    """Messages of the session to lines of stdin."""
    assert process.stdin is not None
    with suppress(OSError):
        async for item in receiver:
            text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            process.stdin.write(text.encode() + b"\n")
            await process.stdin.drain()
        return
    pulse.end("it closed its stdin")


async def _listen(process: asyncio.subprocess.Process, pulse: Pulse) -> None:
    """Read stderr to its end, whatever its size, so that the server never waits for us."""
    assert process.stderr is not None
    rest = b""
    while chunk := await process.stderr.read(65_536):
        *lines, rest = (rest + chunk)[-65_536:].split(b"\n")
        for line in lines[-5:]:
            pulse.said(line)
    pulse.said(rest)


async def _stop(process: asyncio.subprocess.Process, writers: list[asyncio.Task[None]]) -> None:
    for task in writers:
        task.cancel()
    if process.stdin is not None:
        process.stdin.close()
    for number in (None, signal.SIGTERM):
        if number is not None:
            _kill(process, number)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _GRACE)
            return


def _kill(process: asyncio.subprocess.Process, number: int) -> None:
    """A signal to the server and all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _close(process: asyncio.subprocess.Process) -> None:
    """Close the pipes at once: a grandchild may hold their other ends."""
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()
