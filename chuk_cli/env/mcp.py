"""`chuk env mcp`: look at the tools of MCP servers, and call one by hand."""

from __future__ import annotations

import json as json_
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.command import App
from chuk_cli.options import JsonOption, QuietOption
from chuk_cli.out import Out
from chuk_lib.errors import ChukError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chuk_lib.env.mcp.client import McpClient

app = App(add_completion=False, no_args_is_help=True, help="List and call tools of MCP servers.")
_SERVER = "A file with mcpServers (.json), a command line in quotes, or a URL."
AllowedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--mcp-tool", metavar="NAME", help="Take only this tool: name, pattern or SERVER:NAME."
    ),
]
ConnectOption = Annotated[
    float,
    typer.Option(
        "--mcp-connect-seconds", metavar="S", min=0.1, help="How long a server has to answer first."
    ),
]
RecordOption = Annotated[
    Path | None,
    typer.Option(
        "--mcp-record",
        metavar="FILE",
        help="Answer from this file what it holds; ask, and add, the rest.",
    ),
]


@app.command(no_args_is_help=True)
def ls(
    servers: Annotated[list[str], typer.Argument(metavar="SERVER…", help=_SERVER)],
    allowed: AllowedOption = None,
    connect_seconds: ConnectOption = 30.0,
    record: RecordOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the tools of MCP servers with what they take.

    A server that cannot be reached is named, the others are listed, and the exit code is 1.

    Examples:
      chuk env mcp ls server.json
      chuk env mcp ls "npx -y @modelcontextprotocol/server-memory" --mcp-tool 'read_*'
      chuk env mcp ls https://example.org/mcp --json
    """
    out = Out.of(json, quiet)
    with opened(out, servers, allowed, connect_seconds, 30.0, record, True) as client:
        found = [_listed(client, server.name, server.where) for server in client.servers]
        blocks = [_block(one) for one in found]
        names = [tool.name for tool in client.tools]
    out.result({"servers": found}, human="\n\n".join(blocks), quiet=names)
    if any(one["error"] for one in found):
        raise typer.Exit(1)


@app.command(no_args_is_help=True)
def call(
    server: Annotated[str, typer.Argument(metavar="SERVER", help=_SERVER)],
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="The tool's name.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE…]", help="Its arguments; values are JSON or text."),
    ] = None,
    connect_seconds: ConnectOption = 30.0,
    seconds: Annotated[
        float,
        typer.Option(
            "--max-tool-seconds", metavar="S", min=0.1, help="How long the call may take."
        ),
    ] = 30.0,
    record: RecordOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Call a tool of an MCP server, and print what a model would be told.

    Examples:
      chuk env mcp call mcp-server-time get_current_time timezone=Asia/Tokyo
      chuk env mcp call server.json add '{"a": 1, "b": 2}'
    """
    out = Out.of(json, quiet)
    given = arguments_of(arguments or [])
    with opened(out, [server], None, connect_seconds, seconds, record, False) as client:
        names = [one.name for one in client.tools]
        if tool not in names:
            raise ConfigError(f"there is no tool `{tool}`", f"there are: {', '.join(names)}")
        result = client.call(tool, given)
    data = {"tool": tool, "arguments": given, "text": result.text, "reason": result.reason}
    out.result(data, human=result.text, quiet=result.text)
    if result.reason:
        raise ChukError(f"the call of `{tool}` failed: {result.reason.replace('_', ' ')}")


@contextmanager
def opened(
    out: Out,
    given: Sequence[str],
    allowed: Sequence[str] | None,
    connect_seconds: float,
    call_seconds: float,
    record: Path | None,
    missing_ok: bool,
) -> Iterator[McpClient]:
    """The servers that are named, connected; notes and what happens to them are warnings."""
    from chuk_lib.env.mcp.client import McpClient
    from chuk_lib.env.mcp.servers import mcp_servers
    from chuk_lib.env.mcp.supervisor import McpLimits

    servers, notes = mcp_servers(given)
    for note in notes:
        out.warn(note)
    limits = McpLimits(connect_seconds=connect_seconds, call_seconds=call_seconds)
    client = McpClient(servers, limits, allowed, record, out.warn, missing_ok)
    with client:
        yield client


def arguments_of(given: Sequence[str]) -> dict[str, Any]:
    """`key=value` words, or one JSON object. Raises ConfigError for what is neither."""
    if len(given) == 1 and given[0].lstrip().startswith("{"):
        try:
            found: dict[str, Any] = json_.loads(given[0])
        except ValueError as error:
            raise ConfigError(f"the arguments are no JSON object: {error}") from None
        return found
    found = {}
    for word in given:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"`{word}` is no argument", "write KEY=VALUE, or one JSON object")
        if key in found:
            raise ConfigError(f"`{key}` is given twice", "leave one out")
        try:
            found[key] = json_.loads(text)
        except ValueError:
            found[key] = text
    return found


def _listed(client: McpClient, name: str, where: str) -> dict[str, Any]:
    tools = [
        {"name": one.name, "description": one.description, "parameters": one.parameters}
        for one in client.tools
        if one.server == name
    ]
    return {
        "name": name,
        "where": where,
        "about": client.about(name),
        "error": client.failed.get(name),
        "tools": tools,
    }


def _block(server: Mapping[str, Any]) -> str:
    """A server and its tools in lines."""
    if server["error"]:
        return f"{server['error']}\n  {server['where']}"
    tools = server["tools"]
    head = f"{server['name']}: {server['about'] or 'from the recording'}, {len(tools)} tools"
    return "\n".join([head, *(_line(tool) for tool in tools)])


def _line(tool: Mapping[str, Any]) -> str:
    text = " ".join(str(tool["description"]).split())
    short = text if len(text) <= 70 else text[:69] + "…"
    return f"  {tool['name']}({_parameters(tool['parameters'])})  {short}"


def _parameters(schema: Mapping[str, Any]) -> str:
    """Names and types of parameters; those that may be left out have a question mark."""
    required = schema.get("required") or []
    properties = schema.get("properties") or {}
    return ", ".join(
        f"{name}{'' if name in required else '?'}: {_type(entry)}"
        for name, entry in properties.items()
    )


def _type(entry: Any) -> str:
    named = entry.get("type", "any") if isinstance(entry, Mapping) else "any"
    return "|".join(named) if isinstance(named, list) else str(named)
