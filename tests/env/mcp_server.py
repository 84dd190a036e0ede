"""An MCP server with tools that behave and tools that do not; `http` serves it on a free port, and
with `hold FOLDER` the third sum after the first checkpoint there waits to be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import mcp_types as types
from mcp.server.lowlevel.server import Server

ANY = {"type": "object", "properties": {}}
NUMBERS = {
    "type": "object",
    "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
    "required": ["a", "b"],
}
PROMISED = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
STDOUT = os.dup(1)  # the SDK sends what is printed to stderr
calls = 0


def count(arguments: dict[str, Any]) -> str:
    global calls
    calls += 1
    return str(calls)


def add(arguments: dict[str, Any]) -> str:
    if "hold" in sys.argv:
        hold(Path(sys.argv[-1]))
    return str(arguments["a"] + arguments["b"])


def hold(folder: Path) -> None:
    global calls
    calls += (folder / "run/latest").exists()
    if calls == 3 and not (folder / "held").exists():
        (folder / "held").touch()
        time.sleep(60)


def flood(arguments: dict[str, Any]) -> str:
    for _ in range(20_000):
        os.write(STDOUT, b"this is no message\n")
    return "flooded"


def fail(arguments: dict[str, Any]) -> str:
    raise ValueError("boom")


def die(arguments: dict[str, Any]) -> str:
    os.write(2, b"starting\nError: out of luck\n")
    os._exit(3)


TOOLS = {
    "add": add,
    "count": count,
    "die": die,
    "fail": fail,
    "flood": flood,
    "hang": lambda arguments: str(time.sleep(60)),
    "huge": lambda arguments: "x" * 10_000_000,
    "liar": lambda arguments: "no number",
    "pid": lambda arguments: str(os.getpid()),
    "variables": lambda arguments: " ".join(sorted(os.environ)),
    "nonsense": lambda arguments: "",
}


async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
    schemas = {"add": NUMBERS, "nonsense": {"type": "object", "properties": ["a"]}}
    return types.ListToolsResult(
        tools=[
            types.Tool(
                name=name,
                description=f"The tool {name}.",
                input_schema=schemas.get(name, ANY),
                output_schema=PROMISED if name == "liar" else None,
            )
            for name in TOOLS
        ]
    )


async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
    text = TOOLS[params.name](params.arguments or {})
    content = [types.TextContent(type="text", text=text)]
    lie = {"n": "many"} if params.name == "liar" else None
    return types.CallToolResult(content=content, structured_content=lie)


def main() -> None:
    server = Server("naughty", version="1.0", on_list_tools=list_tools, on_call_tool=call_tool)
    if "stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(sys.argv[-1]).write_text(str(os.getpid()))
    if "http" in sys.argv:
        import uvicorn

        uvicorn.run(server.streamable_http_app(), port=int(sys.argv[-1]), log_level="error")
        return
    from mcp.server.stdio import stdio_server

    async def run() -> None:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())
        while "stubborn" in sys.argv:
            await asyncio.sleep(1)

    asyncio.run(run())


if __name__ == "__main__":
    main()
