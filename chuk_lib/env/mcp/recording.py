"""Calls and what they came to, in a file: a run that is repeated takes them from there.

JSON lines: `{"server": …, "tools": […]}` for each server, then `{"call": …, "result": …}` in the
order in which calls were answered. The k-th same call at the same place gets the k-th result."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from chuk_lib.env.mcp.words import McpResult
from chuk_lib.errors import DataError


class McpRecording:
    """A recording that is read first and written behind: what it holds is answered from it, what it
    does not hold is asked for and added. A line that was cut off by a kill is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tools: dict[str, list[dict[str, Any]]] = {}
        self._results: dict[str, deque[McpResult]] = {}
        self.held = 0
        if path.exists():
            self._read()
        try:
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise DataError(f"`{path}`: {(error.strerror or str(error)).lower()}") from None

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"`{self.path}`, line {number} is no line of a recording",
                    "name another file for `--mcp-record`; this one was not changed",
                ) from None
        if len(whole) < len(data):
            with self.path.open("rb+") as file:
                file.truncate(len(whole))

    def _take(self, entry: Mapping[str, Any]) -> None:
        if "server" in entry:
            self.tools[entry["server"]] = [dict(tool) for tool in entry["tools"]]
            return
        call, result = entry["call"], entry["result"]
        key = _key(call["server"], call["tool"], call["arguments"], call["place"])
        self._results.setdefault(key, deque()).append(McpResult(result["text"], result["reason"]))
        self.held += 1

    def server(self, name: str, tools: list[dict[str, Any]]) -> None:
        """Write down what a server offers."""
        self.tools[name] = tools
        self._write({"server": name, "tools": tools})

    def find(
        self, server: str, tool: str, arguments: Mapping[str, Any], place: str
    ) -> McpResult | None:
        """The next recorded result of this call at this place, which is then used up; or None."""
        waiting = self._results.get(_key(server, tool, arguments, place))
        return waiting.popleft() if waiting else None

    def add(
        self, server: str, tool: str, arguments: Mapping[str, Any], place: str, result: McpResult
    ) -> None:
        """Write a call and its result down, at once."""
        call = {"server": server, "tool": tool, "arguments": dict(arguments), "place": place}
        self._write({"call": call, "result": {"text": result.text, "reason": result.reason}})

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _key(server: str, tool: str, arguments: Mapping[str, Any], place: str) -> str:
    return json.dumps([server, tool, arguments, place], sort_keys=True, ensure_ascii=False)
