"""Tools of MCP servers for the rest of chuk: one event loop in one thread, plain calls outside."""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import Parameter, Signature
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chuk_lib.env.mcp.recording import McpRecording
from chuk_lib.env.mcp.servers import McpError, McpServer
from chuk_lib.env.mcp.supervisor import McpLimits, Supervisor
from chuk_lib.env.mcp.words import McpResult
from chuk_lib.env.place import PLACE
from chuk_lib.errors import ConfigError


@dataclass(frozen=True)
class McpTool:
    """A tool as a model sees it. `name` is unique among all servers: the server's own name of it,
    behind the server's name where two servers have the same one."""

    name: str
    server: str
    original: str
    description: str
    parameters: Mapping[str, Any]

    @property
    def schema(self) -> dict[str, Any]:
        """What chat templates show of it."""
        about = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": about}


class McpClient:
    """The servers of a run. Use it as a context: entering connects to all of them, leaving ends
    every process that was started.

    `allowed` are names or patterns (`read_*`, `files:read_*`) of the tools to take, None for all.
    With a recording a server is started only for a call that the recording does not hold. `tell`
    gets a line for whatever happens to a server. Raises ConfigError without the `mcp` extra, for a
    pattern that fits no tool and for servers without any; McpError for a server that is not there,
    unless `missing_ok`: then it is told, and found in `failed`.
    """

    def __init__(
        self,
        servers: Sequence[McpServer],
        limits: McpLimits | None = None,
        allowed: Sequence[str] | None = None,
        record: Path | None = None,
        tell: Callable[[str], None] = lambda text: None,
        missing_ok: bool = False,
    ) -> None:
        if find_spec("mcp") is None:
            raise ConfigError("MCP needs the `mcp` extra", "run `pip install 'chuk-mlx[mcp]'`")
        self.servers = list(servers)
        self.limits = limits or McpLimits()
        self.failed: dict[str, str] = {}
        self.tools: list[McpTool] = []
        self._allowed = allowed
        self._record = record
        self._recording: McpRecording | None = None
        self._tell = tell
        self._missing_ok = missing_ok
        self._by_name: dict[str, McpTool] = {}
        self._supervisors: dict[str, Supervisor] = {}
        self._connecting: dict[str, asyncio.Task[list[Any]]] = {}
        self._thread = threading.Thread(target=self._run, name="chuk-mcp", daemon=True)

    def __enter__(self) -> Self:
        self._recording = McpRecording(self._record) if self._record is not None else None
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        try:
            self.tools = self._do(self._open())
            self._by_name = {tool.name: tool for tool in self.tools}
        except BaseException:  # whatever it is, no process stays
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def about(self, server: str) -> str:
        """What a server says of itself, and the protocol; empty when it was not asked."""
        found = self._supervisors.get(server)
        return found.about if found is not None else ""

    def call(self, name: str, arguments: Mapping[str, Any], place: str = "") -> McpResult:
        """Call a tool by its unique name and wait. `place` says where in a run a call stands
        (step, row, turn), so that a repeated run gets the same result whatever ran beside it."""
        return self.submit(name, arguments, place).result()

    def submit(self, name: str, arguments: Mapping[str, Any], place: str = "") -> Future[McpResult]:
        """`call` without waiting. Raises KeyError for a name that is not in `tools`."""
        tool = self._by_name[name]
        return asyncio.run_coroutine_threadsafe(self._call(tool, arguments, place), self._loop)

    def functions(self) -> dict[str, Callable[..., str]]:
        """The tools as functions of keyword arguments that return text, with name, docstring,
        signature and `schema`. They raise McpError, whose message is for the model, when a call
        fails."""
        return {tool.name: _function(self, tool) for tool in self.tools}

    def close(self) -> None:
        """End all servers and the thread. May be called twice."""
        if self._thread.is_alive():
            self._do(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        if self._recording is not None:
            self._recording.close()

    def _run(self) -> None:
        # Its loggers write a traceback for much that is told here in one line.
        for name in ("mcp", "client"):
            logger = logging.getLogger(name)
            logger.addHandler(logging.NullHandler())
            logger.propagate = False
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _stop(self) -> None:
        await asyncio.gather(*(one.stop() for one in self._supervisors.values()))
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._loop.shutdown_asyncgens()

    async def _open(self) -> list[McpTool]:
        """All tools, from the recording where it has them and from the servers else."""
        held = self._recording.tools if self._recording is not None else {}
        asked = [server.name for server in self.servers if server.name not in held]
        answers = await asyncio.gather(
            *(self._connected(name) for name in asked), return_exceptions=True
        )
        offered = dict(held)
        for name, answer in zip(asked, answers, strict=True):
            if isinstance(answer, McpError) and self._missing_ok:
                self.failed[name] = answer.message
            elif isinstance(answer, BaseException):
                raise answer
            else:
                offered[name] = answer
        return self._chosen(offered)

    async def _connected(self, name: str) -> list[dict[str, Any]]:
        """Connect to a server that was not asked before; its tools that are what they claim."""
        server = next(one for one in self.servers if one.name == name)
        supervisor = self._supervisors[name] = Supervisor(server, self.limits, self._tell)
        tools = [
            {
                "name": tool.name,
                "description": tool.description or tool.title or "",
                "parameters": tool.input_schema,
            }
            for tool in await supervisor.connect()
            if self._is_sound(name, tool)
        ]
        if self._recording is not None and name not in self._recording.tools:
            self._recording.server(name, tools)
        return tools

    def _is_sound(self, server: str, tool: Any) -> bool:
        """Whether a tool's schema of its parameters is one; it is left out, and told, else."""
        from jsonschema import Draft202012Validator, SchemaError

        try:
            Draft202012Validator.check_schema(tool.input_schema)
        except SchemaError as error:
            self._tell(
                f"MCP server `{server}`: tool `{tool.name}` is left out: its schema is none"
                f" ({error.message})"
            )
            return False
        return True

    def _chosen(self, offered: Mapping[str, list[dict[str, Any]]]) -> list[McpTool]:
        """The tools that are allowed, with unique names. A pattern that fits nothing is refused."""
        found: list[tuple[str, dict[str, Any]]] = []
        for server in self.servers:
            if server.name in self.failed:
                continue
            own = offered.get(server.name, [])
            names = [tool["name"] for tool in own]
            kept = _fitting(names, server.tools, f"`tools` of server `{server.name}`")
            found += [(server.name, tool) for tool in own if tool["name"] in kept]
        spelled = [f"{server}:{tool['name']}" for server, tool in found]
        wanted = _fitting(spelled, self._allowed, "`--mcp-tool`", strict=not self.failed)
        found = [one for one, name in zip(found, spelled, strict=True) if name in wanted]
        if not found and not self.failed:
            raise ConfigError("the MCP servers offer no tool", "`chuk env mcp ls` shows them")
        names = [tool["name"] for _, tool in found]
        return [
            McpTool(
                tool["name"] if names.count(tool["name"]) == 1 else f"{server}_{tool['name']}",
                server,
                tool["name"],
                tool["description"],
                tool["parameters"],
            )
            for server, tool in found
        ]

    async def _call(self, tool: McpTool, arguments: Mapping[str, Any], place: str) -> McpResult:
        if self._recording is not None:
            held = self._recording.find(tool.server, tool.original, arguments, place)
            if held is not None:
                return held
        try:
            supervisor = await self._supervisor(tool.server)
        except McpError as error:
            return McpResult(f"Error: {error.message}", "gone")
        result = await supervisor.call(tool.original, arguments)
        if self._recording is not None:
            self._recording.add(tool.server, tool.original, arguments, place, result)
        return result

    async def _supervisor(self, server: str) -> Supervisor:
        """The server's supervisor; connects first when the recording made that needless so far."""
        if server not in self._supervisors and server not in self._connecting:
            self._tell(f"MCP server `{server}` is asked: the recording does not hold this call")
            self._connecting[server] = asyncio.ensure_future(self._connected(server))
        if server in self._connecting:
            await asyncio.shield(self._connecting[server])
        return self._supervisors[server]


def _function(client: McpClient, tool: McpTool) -> Callable[..., str]:
    def call(**arguments: Any) -> str:
        result = client.call(tool.name, arguments, PLACE.get())
        if result.reason:
            raise McpError(result.text)
        return result.text

    call.__name__, call.__doc__ = tool.name, tool.description
    vars(call)["schema"] = tool.schema
    names = tool.parameters.get("properties") or {}
    required = tool.parameters.get("required") or ()
    if all(name.isidentifier() for name in names):
        parameters = [
            Parameter(
                name, Parameter.KEYWORD_ONLY, default=Parameter.empty if name in required else None
            )
            for name in names
        ]
        vars(call)["__signature__"] = Signature(parameters)  # what `inspect` reads
    return call


def _fitting(
    names: Sequence[str], patterns: Sequence[str] | None, where: str, strict: bool = True
) -> set[str]:
    """The names that some patterns fit, as `server:tool` or as `tool`; all without patterns. A
    `strict` pattern that fits none is a ConfigError."""
    if patterns is None:
        return set(names)
    kept: set[str] = set()
    for pattern in patterns:
        fits = {
            name
            for name in names
            if fnmatch.fnmatchcase(name, pattern)
            or fnmatch.fnmatchcase(name.partition(":")[2] or name, pattern)
        }
        if not fits and strict:
            there = ", ".join(name.rpartition(":")[2] for name in names) or "none"
            raise ConfigError(f"{where}: no tool is called `{pattern}`", f"there are: {there}")
        kept |= fits
    return kept
