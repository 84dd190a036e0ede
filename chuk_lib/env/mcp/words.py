"""What the SDK answers and raises, in words: results as text for a model, failures in one line."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class McpResult:
    """What a call came to: text for the model. `reason` is empty, or why there is no result:
    `tool_error` (the tool says so), `timeout`, `gone` (the server), `protocol`."""

    text: str
    reason: str = ""


def innermost(error: BaseException) -> BaseException:
    """The first failure inside nested exception groups, the one that is no cancellation."""
    while isinstance(error, BaseExceptionGroup):
        inner = error.exceptions
        real = [one for one in inner if not isinstance(one, asyncio.CancelledError)]
        error = (real or list(inner))[0]
    return error


def is_closed(error: BaseException | None) -> bool:
    """Whether a failure says that the connection is gone for good."""
    from mcp_types import CONNECTION_CLOSED

    return error is not None and getattr(innermost(error), "code", None) == CONNECTION_CLOSED


def reason_of(error: BaseException | None) -> str:
    """A failure of the SDK in words of one line."""
    if error is None:
        return ""
    found = innermost(error)
    if isinstance(found, FileNotFoundError):
        return f"no command `{found.filename}` here"
    if type(found).__name__ == "ConnectError":
        return "nobody listens there"
    if isinstance(found, ValueError) and hasattr(found, "errors"):
        return f"its answer breaks the protocol ({_first_line(str(found))})"
    return _first_line(str(found)) or type(found).__name__


def _first_line(text: str) -> str:
    return " ".join(text.split())[:300]


def result_of(answer: Any, most: int) -> McpResult:
    """A result of the SDK as text: text parts as they are, other parts by kind and size."""
    parts = [_part(block) for block in answer.content]
    if not parts and answer.structured_content is not None:
        parts = [json.dumps(answer.structured_content, ensure_ascii=False)]
    return McpResult(cut("\n".join(parts), most), "tool_error" if answer.is_error else "")


def _part(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    if block.type in ("image", "audio"):
        return f"[{block.type}, {block.mime_type}, {len(block.data):,} characters: left out]"
    if block.type == "resource":
        text = getattr(block.resource, "text", None)
        return str(text) if text is not None else f"[resource {block.resource.uri}: left out]"
    with suppress(AttributeError):
        return f"[link {block.uri}]"
    return f"[{block.type}: left out]"


def cut(text: str, most: int) -> str:
    """Text of `most` characters at most, and a mark that says how many more there were."""
    if len(text) <= most:
        return text
    return f"{text[:most]}\n[… {len(text) - most:,} more characters cut]"
