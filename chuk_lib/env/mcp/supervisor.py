"""Keeps one MCP server alive: connects within a deadline, calls within a deadline, and starts it
again when it ended, waiting longer each time.

All of it runs in one event loop. The connection itself lives in one task (`_live`), because the
SDK's cancel scopes must be left in the task that entered them; a call waits for three things at
once: its answer, the end of the connection, and its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from chuk_lib.env.mcp.servers import McpError, McpServer
from chuk_lib.env.mcp.stdio import Pulse, stdio_transport
from chuk_lib.env.mcp.words import McpResult, cut, is_closed, reason_of, result_of

_MOST_TOLD = 20
_AGAIN = 0.02  # seconds between looks at a server that is being started


@dataclass(frozen=True)
class McpLimits:
    """How long to wait and how much to take. Times are in seconds, `max_chars` is of one result."""

    connect_seconds: float = 30.0
    call_seconds: float = 30.0
    restarts: int = 5
    backoff_seconds: float = 0.5
    backoff_most: float = 30.0
    max_chars: int = 20_000


class Supervisor:
    """One server, from its first connection to `stop`.

    `tell` gets one line for whatever happens to the server; the same kind of line is told once.
    """

    def __init__(self, server: McpServer, limits: McpLimits, tell: Callable[[str], None]) -> None:
        self.server = server
        self.limits = limits
        self.about = ""
        self._tell = tell
        self._told: set[str] = set()
        self._client: Any = None
        self._pulse: Pulse | None = None
        self._life: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._restart: asyncio.Task[None] | None = None
        self._failures = self._timeouts = 0
        self._gone = ""

    async def connect(self) -> list[Any]:
        """Connect, and give the tools as the SDK's objects. Raises McpError with the reason.

        Whatever was started is ended when this fails.
        """
        loop = asyncio.get_running_loop()
        pulse, self._leave = Pulse(), asyncio.Event()
        ready: asyncio.Future[list[Any]] = loop.create_future()
        life = loop.create_task(self._live(pulse, ready, self._leave))
        seconds = self.limits.connect_seconds
        try:
            # Only these two: a process that ended may have its reason still on the way in stderr.
            await _first(seconds, life, ready)
        except asyncio.CancelledError:
            await _finish(life, self._leave)
            raise
        if ready.done():
            self._pulse, self._life = pulse, life
            life.add_done_callback(lambda _: pulse.end(_why(life) or "the connection ended"))
            pulse.down.add_done_callback(self._on_down)
            return ready.result()
        reason = _why(life) if life.done() else f"no answer within {seconds:g} s"
        if pulse.down.done() and life.done():
            reason = pulse.down.result()
        life.cancel()
        await _finish(life, self._leave)
        raise self._error(_with_words(reason or "the connection ended", pulse))

    def _error(self, reason: str) -> McpError:
        return McpError(
            f"MCP server `{self.server.name}`: {reason}", f"it is `{self.server.where}`"
        )

    async def _live(self, pulse: Pulse, ready: asyncio.Future[Any], leave: asyncio.Event) -> None:
        """The connection: from here on in one task, until `leave`."""
        from mcp import Client
        from mcp_types import Implementation

        client = Client(
            _transport(self.server, pulse),
            client_info=Implementation(name="chuk", version="1"),
            cache=None,
        )
        async with client:
            tools = await _listed(client)
            info = client.server_info
            named = f"{info.name} {info.version}" if info is not None else "unnamed"
            self.about = f"{named}, protocol {client.protocol_version}"
            self._client = client
            ready.set_result(tools)
            waiting = asyncio.ensure_future(leave.wait())
            await _first(None, waiting, pulse.down)
            waiting.cancel()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> McpResult:
        """Call a tool. Never raises for what the server does: that is the result's `reason`.

        A server that ended is waited for, as long as the call may take; a call that was under way
        when it ended is not repeated, for nobody knows what it did.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self.limits.call_seconds
        while (pulse := self._pulse) is None or pulse.down.done():
            if self._gone or loop.time() >= until:
                return McpResult(self._sentence(self._gone or "it is being restarted"), "gone")
            await asyncio.sleep(_AGAIN)
        task = loop.create_task(self._client.call_tool(name, dict(arguments)))
        try:
            await _first(max(0.0, until - loop.time()), task, pulse.down)
        finally:
            if not task.done():
                task.cancel()  # the session tells the server that nobody waits any more
                await asyncio.wait({task}, timeout=1.0)
        return self._judged(name, task, pulse)

    def _judged(self, name: str, task: asyncio.Task[Any], pulse: Pulse) -> McpResult:
        if task.done() and not task.cancelled() and task.exception() is None:
            self._failures = self._timeouts = 0
            return result_of(task.result(), self.limits.max_chars)
        if task.done() and not task.cancelled() and is_closed(task.exception()):
            pulse.end("the connection was closed")
        if pulse.down.done():
            return McpResult(self._sentence(f"{pulse.down.result()} during the call"), "gone")
        if task.cancelled() or not task.done():
            return self._timed_out(name, pulse)
        reason = reason_of(task.exception())
        self._say(f"protocol {name}", f"tool `{name}`: {reason}")
        return McpResult(self._sentence(cut(reason, self.limits.max_chars)), "protocol")

    def _timed_out(self, name: str, pulse: Pulse) -> McpResult:
        """A call without an answer; after two in a row the server counts as hung."""
        self._timeouts += 1
        seconds = self.limits.call_seconds
        self._say(f"timeout {name}", f"tool `{name}` did not answer within {seconds:g} s")
        if self._timeouts >= 2:
            pulse.end("it answered no call any more")
        return McpResult(f"Error: no answer within {seconds:g} s", "timeout")

    def _sentence(self, reason: str) -> str:
        return f"Error: MCP server {self.server.name}: {reason}"

    def _say(self, kind: str, text: str) -> None:
        """Tell a kind of thing once, and of one server no more than `_MOST_TOLD` things."""
        if kind in self._told or len(self._told) > _MOST_TOLD:
            return
        self._told.add(kind)
        last = "; more of it is not told" if len(self._told) > _MOST_TOLD else ""
        self._tell(f"MCP server `{self.server.name}`: {text}{last}")

    def _on_down(self, down: asyncio.Future[str]) -> None:
        """The connection ended: start the server again, unless we are leaving."""
        if self._leave.is_set():
            return
        self._timeouts = 0
        self._failures += 1
        reason = _with_words(down.result(), self._pulse)
        self._restart = asyncio.get_running_loop().create_task(self._come_back(reason))

    async def _come_back(self, reason: str) -> None:
        """Connect again, after a pause that doubles with each failure in a row. After `restarts`
        of them calls fail at once, and it is tried on and on, in the longest pause."""
        limits = self.limits
        if self._life is not None:
            await _finish(self._life, asyncio.Event())
        while True:
            pause = min(limits.backoff_most, limits.backoff_seconds * 2 ** (self._failures - 1))
            if self._failures <= limits.restarts:
                self._say(reason, f"{reason}; started again after {pause:g} s")
            else:
                pause, times = limits.backoff_most, self._failures - 1
                self._gone = f"{reason}; given up after {times} restarts"
                self._say("gone", f"{self._gone}, and tried again every {pause:g} s")
            await asyncio.sleep(pause)
            try:
                await self.connect()
            except McpError as error:
                reason = error.message.partition(": ")[2]
                self._failures += 1
            else:
                break
        if self._gone:
            self._gone = ""
            self._say("back", "it is back")

    async def stop(self) -> None:
        """End the connection and the process. Waits five seconds at most for the SDK."""
        self._leave.set()
        if self._restart is not None and not self._restart.done():
            self._restart.cancel()
            await asyncio.wait({self._restart}, timeout=5)
        if self._life is not None:
            await _finish(self._life, self._leave)


def _transport(server: McpServer, pulse: Pulse) -> AbstractAsyncContextManager[Any]:
    if server.transport == "stdio":
        return stdio_transport(server, pulse)
    if server.transport == "sse":
        from mcp.client.sse import sse_client

        old: AbstractAsyncContextManager[Any] = sse_client(
            server.url or "", headers=dict(server.headers)
        )
        return old
    return _http(server)


@asynccontextmanager
async def _http(server: McpServer) -> Any:
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared._httpx_utils import create_mcp_http_client

    async with AsyncExitStack() as stack:
        client = create_mcp_http_client(headers=dict(server.headers))
        await stack.enter_async_context(client)
        streams = streamable_http_client(server.url or "", http_client=client)
        yield await stack.enter_async_context(streams)


async def _listed(client: Any) -> list[Any]:
    """All pages of a server's tools, 100 pages at most."""
    tools: list[Any] = []
    cursor: str | None = None
    for _ in range(100):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if not cursor:
            break
    return tools


async def _first(seconds: float | None, *waited: asyncio.Future[Any]) -> None:
    """Wait until one of some futures is done, or so many seconds are over."""
    await asyncio.wait(set(waited), timeout=seconds, return_when="FIRST_COMPLETED")


async def _finish(life: asyncio.Task[None], leave: asyncio.Event) -> None:
    """Let a connection go: politely, and after three seconds by cancelling it."""
    leave.set()
    for _ in range(2):
        await asyncio.wait({life}, timeout=3)
        if life.done():
            break
        life.cancel()
    if life.done() and not life.cancelled():
        life.exception()  # it was told where it mattered; unread it would be printed at exit


def _why(life: asyncio.Task[None]) -> str:
    if life.cancelled():
        return "it was cancelled"
    error = life.exception()
    return reason_of(error) if error is not None else ""


def _with_words(reason: str, pulse: Pulse | None) -> str:
    words = pulse.last_words if pulse is not None else ""
    return f"{reason}, and said: {words}" if words else reason
