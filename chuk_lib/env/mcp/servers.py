"""Which MCP servers a user names: a `mcpServers` file, a command line, or a URL.

Nothing is started here. Keys and values that chuk does not use are named in a note or refused."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chuk_lib.errors import ChukError, ConfigError

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_LAUNCHERS = {"npx", "uvx", "uv", "node", "run", "tool", "exec", "python", "python3", "docker"}
_TYPES = {
    "stdio": "stdio",
    "http": "http",
    "streamable-http": "http",
    "streamableHttp": "http",
    "sse": "sse",
}
_KEYS = {"command", "args", "env", "cwd", "url", "headers", "type", "transport", "tools"}
_OTHERS = {"alwaysAllow", "autoApprove", "description", "disabledTools", "timeout", "trust"}


class McpError(ChukError):
    """A server that cannot be reached, ended, or does not keep to the protocol."""

    kind = "mcp"


@dataclass(frozen=True)
class McpServer:
    """One server as the user described it.

    `tools` are the names (or `*` patterns) that may be used, None for all. A process inherits
    HOME, LOGNAME, PATH, SHELL, TERM and USER, and besides only what stands in `env`.
    """

    name: str
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    transport: str = "stdio"
    tools: tuple[str, ...] | None = None

    @property
    def where(self) -> str:
        """The command line or the URL, for messages; values of variables are not in it."""
        return self.url or shlex.join(self.command)


def mcp_servers(given: Sequence[str]) -> tuple[list[McpServer], list[str]]:
    """The servers that some values of `--mcp` name, and notes on what is not used of a file.

    Each value is the path of a JSON file, an http(s) URL or a command line, which may begin with
    `NAME=value`. `${NAME}` and `${NAME:-default}` are taken from the environment. Names of
    servers are made unique. Raises ConfigError for whatever does not name a server.
    """
    servers: list[McpServer] = []
    notes: list[str] = []
    for value in given:
        if value.startswith(("http://", "https://")):
            servers.append(_of_url(value))
        elif value.endswith(".json"):
            found, said = _of_file(Path(value))
            servers += found
            notes += said
        else:
            servers.append(_of_command(value))
    return _unique(servers), notes


def _of_url(value: str) -> McpServer:
    parts = urlsplit(value)
    if not parts.hostname:
        raise ConfigError(f"`{value}` is no URL of a server", "write `--mcp https://host/mcp`")
    return McpServer(parts.hostname, url=value, transport="http")


def _of_command(value: str) -> McpServer:
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ConfigError(f"`--mcp {value}`: {error}", "close the quotes") from None
    env: dict[str, str] = {}
    while words and _ASSIGNMENT.match(words[0]):
        key, _, text = words.pop(0).partition("=")
        env[key] = _expanded(text, f"`--mcp {value}`")
    if not words:
        raise ConfigError(
            f"`--mcp {value}` names no server", "give a JSON file, a command line or a URL"
        )
    words = [_expanded(word, f"`--mcp {value}`") for word in words]
    return McpServer(_label(words), tuple(words), env)


def _of_file(path: Path) -> tuple[list[McpServer], list[str]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"`{path}`: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise ConfigError(f"`{path}` is not JSON: {error}") from None
    table = data.get("mcpServers", data.get("servers")) if isinstance(data, dict) else None
    if not isinstance(table, dict) or not table:
        raise ConfigError(
            f"`{path}` names no servers", 'it needs {"mcpServers": {"NAME": {"command": …}}}'
        )
    notes = [f"{path}: `{key}` is not read" for key in data if key not in ("mcpServers", "servers")]
    servers = []
    for name, entry in table.items():
        where = f"`{path}`, server `{name}`"
        if not isinstance(entry, dict):
            raise ConfigError(f"{where} is not an object", 'write {"command": …} or {"url": …}')
        if entry.get("disabled") is True:
            notes.append(f"{path}: server `{name}` is disabled there")
            continue
        notes += [f"{path}: `{name}.{key}` is not used" for key in entry if key in _OTHERS]
        servers.append(_of_entry(name, entry, where, path.parent))
    return servers, notes


def _of_entry(name: str, entry: Mapping[str, Any], where: str, folder: Path) -> McpServer:
    unknown = [key for key in entry if key not in _KEYS | _OTHERS | {"disabled"}]
    if unknown:
        raise ConfigError(f"{where}: unknown key `{unknown[0]}`", f"known: {sorted(_KEYS)}")
    command, url = entry.get("command"), entry.get("url")
    if bool(command) == bool(url):
        raise ConfigError(f"{where} needs either `command` or `url`")
    named = entry.get("type", entry.get("transport", "http" if url else "stdio"))
    transport = _TYPES.get(named) if isinstance(named, str) else None
    if transport is None or (transport == "stdio") == bool(url):
        raise ConfigError(f"{where}: type {named!r} does not fit", f"types: {sorted(_TYPES)}")
    texts = {
        key: _texts(entry[key], f"{where}: `{key}`")
        for key in ("args", "tools", "env", "headers")
        if key in entry
    }
    for key, wanted in (("args", list), ("tools", list), ("env", dict), ("headers", dict)):
        if key in texts and not isinstance(texts[key], wanted):
            raise ConfigError(f"{where}: `{key}` must be a {'list' if wanted is list else 'table'}")
    words = [_expanded(str(command), where)] if command else []
    cwd = entry.get("cwd")
    return McpServer(
        name,
        (*words, *texts.get("args", ())),
        texts.get("env", {}),
        str(folder / _expanded(str(cwd), where)) if cwd else None,
        _expanded(str(url), where) if url else None,
        texts.get("headers", {}),
        transport,
        tuple(texts["tools"]) if "tools" in texts else None,
    )


def _texts(value: Any, where: str) -> Any:
    """Lists and tables of text with variables put in; numbers become text, others are refused."""
    if isinstance(value, list):
        return [_text(item, where) for item in value]
    if isinstance(value, dict):
        return {str(key): _text(item, where) for key, item in value.items()}
    raise ConfigError(f"{where} must be a list or a table of text")


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool | None) or not isinstance(value, str | int | float):
        raise ConfigError(f"{where} holds {value!r}, which is no text")
    return _expanded(str(value), where)


def _expanded(text: str, where: str) -> str:
    """`text` with `${NAME}` replaced. A variable that is not set and has no default is refused."""

    def put(match: re.Match[str]) -> str:
        value = os.environ.get(match[1], match[2])
        if value is None:
            raise ConfigError(
                f"{where}: the environment variable `{match[1]}` is not set",
                f"export it, or give a default: ${{{match[1]}:-…}}",
            )
        return value

    return _VARIABLE.sub(put, text)


def _label(words: Sequence[str]) -> str:
    """A short name for a command line: what it runs, without launcher, options and `server`."""
    named = [word for word in words if not _is_launcher(word)]
    last = Path(named[0] if named else words[0]).name.split("@")[0]
    short = re.sub(r"\.\w+$", "", last).replace("_", "-")
    return re.sub(r"^(mcp-)?server-|-mcp(-server)?$|-server$", "", short) or short


def _is_launcher(word: str) -> bool:
    return word.startswith("-") or Path(word).name in _LAUNCHERS or word.split()[0] != word


def _unique(servers: Sequence[McpServer]) -> list[McpServer]:
    """The servers with a number behind each name that came before."""
    seen: dict[str, int] = {}
    named = []
    for server in servers:
        count = seen[server.name] = seen.get(server.name, 0) + 1
        named.append(server if count == 1 else replace(server, name=f"{server.name}{count}"))
    return named
