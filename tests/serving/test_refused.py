"""Requests that are wrong, at a real server: each gets an error object in under a second, or an
answer that is right, and the server goes on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.servers import Server, data_of, serving

SAY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
GO_ON = {"prompt": "hi", "max_tokens": 2}
CHAT, TEXT, CLAUDE = "/v1/chat/completions", "/v1/completions", "/v1/messages"


def message(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


BODIES: dict[str, tuple[str, bytes]] = {
    "nothing": (CHAT, b""),
    "no JSON": (CHAT, b"{messages: []}"),
    "half of it": (CHAT, b'{"messages": ['),
    "no UTF-8": (CHAT, b'{"messages": "\xff\xfe"}'),
    "a list": (CHAT, b"[]"),
    "a number": (TEXT, b"1"),
    "null": (TEXT, b"null"),
    "deep": (CHAT, b"[" * 100_000),
    "deep and whole": (CHAT, b'{"messages":' + b"[" * 300 + b"]" * 300 + b"}"),
    "a key twice": (TEXT, b'{"prompt": "a", "prompt": "b"}'),
    "NaN": (TEXT, b'{"prompt": "a", "temperature": NaN}'),
    "Infinity": (TEXT, b'{"prompt": "a", "temperature": Infinity}'),
    "1e999": (TEXT, b'{"prompt": "a", "temperature": 1e999}'),
    "a number of 5,000 digits": (TEXT, b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}"),
    "half a character": (TEXT, b'{"prompt": "\\ud800"}'),
    "deep for Anthropic": (CLAUDE, b'{"system":' + b"[" * 300 + b"]" * 300 + b"}"),
}
FIELDS: list[tuple[str, dict[str, Any], str | None]] = [
    # path, fields, the field that is named
    (CHAT, {}, "messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hi"}, "messages"),
    (CHAT, {"messages": [1]}, "messages[0]"),
    (CHAT, {"messages": [{}]}, "messages[0]"),
    (CHAT, {"messages": [{"role": "boss", "content": "a"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0]"),
    (CHAT, message(5), "messages[0].content"),
    (CHAT, message([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}}]), None),
    (CHAT, message([{"type": "text"}]), "text"),
    (CHAT, message("a", mood="good"), "messages[0].mood"),
    (CHAT, message("a", tool_calls=[{"function": {"name": "f", "arguments": "{"}}]), None),
    (CHAT, message("word " * 400), "messages"),
    (CHAT, message("word " * 400_000), "messages"),
    (CHAT, {**SAY, "n": 0}, "n"),
    (CHAT, {**SAY, "n": 10**6}, "n"),
    (CHAT, {**SAY, "n": True}, "n"),
    (CHAT, {**SAY, "n": 1.0}, "n"),
    (CHAT, {**SAY, "max_tokens": -1}, "max_tokens"),
    (CHAT, {**SAY, "max_tokens": 10**18}, "max_tokens"),
    (CHAT, {**SAY, "max_completion_tokens": 9}, "max_completion_tokens"),
    (CHAT, {**SAY, "temperature": "hot"}, "temperature"),
    (CHAT, {**SAY, "temperature": -0.5}, "temperature"),
    (CHAT, {**SAY, "temperature": True}, "temperature"),
    (CHAT, {**SAY, "top_p": 0}, "top_p"),
    (CHAT, {**SAY, "top_p": 1.5}, "top_p"),
    (CHAT, {**SAY, "top_k": -1}, "top_k"),
    (CHAT, {**SAY, "seed": -1}, "seed"),
    (CHAT, {**SAY, "seed": 2**40}, "seed"),
    (CHAT, {**SAY, "stop": 5}, "stop"),
    (CHAT, {**SAY, "stop": ["a", None]}, "stop[1]"),
    (CHAT, {**SAY, "stop": ""}, "stop"),
    (CHAT, {**SAY, "stop": ["x"] * 17}, "stop"),
    (CHAT, {**SAY, "stream": "yes"}, "stream"),
    (CHAT, {**SAY, "stream_options": {}}, "stream_options"),
    (CHAT, {**SAY, "stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    (CHAT, {**SAY, "logprobs": 5}, "logprobs"),
    (CHAT, {**SAY, "top_logprobs": 5}, "top_logprobs"),
    (CHAT, {**SAY, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {**SAY, "logit_bias": {"320": 1}}, "logit_bias"),
    (CHAT, {**SAY, "logit_bias": {"-1": 1}}, "logit_bias"),
    (CHAT, {**SAY, "logit_bias": {"5": 101}}, "logit_bias.5"),
    (CHAT, {**SAY, "logit_bias": [5]}, "logit_bias"),
    (CHAT, {**SAY, "frequency_penalty": 2.5}, "frequency_penalty"),
    (CHAT, {**SAY, "response_format": {"type": "yaml"}}, "response_format.type"),
    (CHAT, {**SAY, "response_format": {"type": "json_schema"}}, "response_format"),
    (CHAT, {**SAY, "tools": [{"type": "function"}]}, "tools[0].function.name"),
    (CHAT, {**SAY, "tool_choice": "required"}, "tool_choice"),
    (CHAT, {**SAY, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    (CHAT, {**SAY, "store": True}, "store"),
    (CHAT, {**SAY, "modalities": ["audio"]}, "modalities"),
    (CHAT, {**SAY, "chat_template_kwargs": {"tools": []}}, None),
    (CHAT, {**SAY, "thinking": True}, "thinking"),
    (CHAT, {**SAY, "model": 5}, "model"),
    (TEXT, {}, "prompt"),
    (TEXT, {"prompt": ""}, "prompt"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": [[]]}, "prompt[0]"),
    (TEXT, {"prompt": {}}, "prompt"),
    (TEXT, {"prompt": ["a", 5]}, "prompt[1]"),
    (TEXT, {"prompt": [True, False]}, "prompt[0]"),
    (TEXT, {"prompt": [5, 320]}, "prompt"),
    (TEXT, {"prompt": [5, -1]}, "prompt"),
    (TEXT, {"prompt": [2**63]}, None),
    (TEXT, {"prompt": [5] * 512}, "prompt"),
    (TEXT, {"prompt": ["a"] * 129}, "prompt"),
    (TEXT, {"prompt": ["a"] * 65, "n": 2}, "n"),
    (TEXT, {**GO_ON, "best_of": 3}, "best_of"),
    (TEXT, {**GO_ON, "suffix": "end"}, "suffix"),
    (TEXT, {**GO_ON, "echo": True, "logprobs": 1}, "echo"),
    (CLAUDE, message("a"), None),
    (CLAUDE, {**SAY, "thinking": {"type": "enabled", "budget_tokens": 1024}}, None),
    (CLAUDE, {**SAY, "messages": [{"role": "system", "content": "a"}]}, None),
    (CLAUDE, {**SAY, **message([{"type": "image", "source": {"type": "url"}}])}, None),
    (CLAUDE, {**SAY, "tool_choice": {"type": "tool"}}, None),
    ("/v1/embeddings", {"input": []}, "input"),
    ("/v1/embeddings", {"input": "a", "dimensions": 7}, "dimensions"),
    ("/tokenize", {"prompt": "a", "messages": []}, None),
    ("/detokenize", {"tokens": [320]}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
]
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
SOCKETS: dict[str, tuple[bytes, int]] = {
    "10 GB declared": (HEAD + b"Content-Length: 10000000000\r\n\r\n{", 413),
    "a length of many digits": (HEAD + b"Content-Length: " + b"9" * 300 + b"\r\n\r\n", 400),
    "a negative length": (HEAD + b"Content-Length: -5\r\n\r\n{}", 400),
    "two lengths": (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    "no HTTP": (b"hello\r\n\r\n", 400),
    "a header without an end": (HEAD + b"X: " + b"a" * 100_000, 400),
    "chunks of no length": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "a host of somebody else's": (b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
    "a page of somebody else's": (HEAD + b"Origin: http://evil.example\r\n\r\n", 403),
    "another method": (b"DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "no such path": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as one:
        yield one


@pytest.fixture(autouse=True)
def answers_afterwards(server: Server) -> Iterator[None]:
    yield
    assert server.post(TEXT, **GO_ON, temperature=0)["usage"]["completion_tokens"] == 2


def refused(server: Server, path: str, body: bytes) -> Any:
    """The error object that a request gets."""
    began = time.perf_counter()
    answer = server.http.post(path, content=body)
    assert time.perf_counter() - began < 1
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert answer.json().get("type") == ("error" if path == CLAUDE else None)
    return error


@pytest.mark.parametrize("case", BODIES)
def test_bodies(server: Server, case: str) -> None:
    refused(server, *BODIES[case])


@pytest.mark.parametrize("case", range(len(FIELDS)), ids=lambda at: f"{FIELDS[at][1]}"[:60])
def test_fields(server: Server, case: int) -> None:
    path, fields, param = FIELDS[case]
    error = refused(server, path, json.dumps(fields).encode())
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize("case", SOCKETS)
def test_what_no_client_sends(server: Server, case: str) -> None:
    sent, status = SOCKETS[case]
    host, _, port = server.url.removeprefix("http://").partition(":")
    began = time.perf_counter()
    with socket.create_connection((host, int(port)), timeout=5) as wire:
        wire.sendall(sent)
        raw = b""
        while b"}}" not in raw and (part := wire.recv(65536)):
            raw += part
    assert time.perf_counter() - began < 1
    assert raw.split()[1] == str(status).encode()
    assert json.loads(raw.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_a_body_of_60_MB_is_refused(server: Server) -> None:
    refused(server, TEXT, b'{"prompt": "' + b"a" * 60_000_000 + b'"}')


def test_null_is_the_default(server: Server) -> None:
    names = ("n", "stop", "seed", "temperature", "top_p", "logit_bias", "logprobs", "tools", "user")
    empty = dict.fromkeys((*names, "stream", "response_format", "tool_choice", "model"))
    said = server.post(CHAT, **SAY, **empty)
    assert 1 <= said["usage"]["completion_tokens"] <= 2


def test_errors_of_a_stream_come_before_it(server: Server) -> None:
    refused(server, TEXT, json.dumps({**GO_ON, "stream": True, "n": 0}).encode())
    good = server.http.post(TEXT, json={**GO_ON, "stream": True})
    assert data_of(good.text)[-1] == "[DONE]"
