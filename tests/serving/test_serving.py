"""What a server keeps to: the text of `chuk infer`, its clients' coming and going, rows that fail,
who may ask, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from chuk_lib.serving import server as module
from chuk_lib.serving.settings import ServeSettings, size_of
from tests.conftest import RunChuk
from tests.inference.generation_models import OVERFLOWING, failing_model
from tests.serving.servers import LLAMA, Server, data_of, serving

TEXT = "/v1/completions"
LONG = {
    "prompt": "hello",
    "max_tokens": 400,
    "temperature": 0,
    "logit_bias": {"3": -100, "250": -100},
}


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return failing_model(tmp_path_factory.mktemp("failing") / "model")


@pytest.fixture(scope="module")
def server(failing: Path) -> Iterator[Server]:
    with serving(model=failing) as one:
        yield one


def until(true: Callable[[], bool], told: Callable[[], Any] = lambda: None) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, f"it did not come: {told()}"
        time.sleep(0.02)


def test_one_seed_writes_what_infer_writes(
    server: Server, failing: Path, run_chuk: RunChuk
) -> None:
    words = ["--no-chat", "-p", "hello", "-t", 1.2, "--top-p", 0.9, "-n", 20, "--seed", 7]
    done = run_chuk("infer", "--model", failing, *words, "--json")
    assert done.returncode == 0, done.stderr
    beside = threading.Thread(target=lambda: server.post(TEXT, **LONG))
    beside.start()
    said = server.post(TEXT, prompt="hello", temperature=1.2, top_p=0.9, max_tokens=20, seed=7)
    beside.join()
    assert said["choices"][0]["text"] == json.loads(done.stdout)["text"]


def test_a_row_that_is_not_a_number_fails_alone(server: Server) -> None:
    with (
        httpx.Client(base_url=server.url, timeout=60) as other,
        other.stream("POST", TEXT, json={**LONG, "stream": True}) as beside,
    ):
        pieces = beside.iter_text()
        next(pieces)
        for more in ({}, {"stream": True}):
            answer = server.http.post(TEXT, json={"prompt": [5, OVERFLOWING, 6], **more})
            assert answer.status_code == 500
            assert "not a number" in answer.json()["error"]["message"]
        rest = "".join(pieces)
    assert data_of(rest)[-1] == "[DONE]"
    assert server.numbers()['chuk_rows_total{reason="failed"}'] == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_takes_its_rows_along(server: Server, stream: bool) -> None:
    name = 'chuk_rows_total{reason="cancelled"}'
    gone = server.numbers().get(name, 0)
    wire = httpx.Client(base_url=server.url)
    body = {**LONG, "n": 9, "stream": stream, "temperature": 1, "max_tokens": 16000}
    if stream:
        with wire.stream("POST", TEXT, json=body) as answer:
            next(answer.iter_raw())
    else:
        with pytest.raises(httpx.TimeoutException):
            wire.post(TEXT, json=body, timeout=0.3)
    wire.close()
    until(lambda: server.numbers().get(name, 0) > gone, lambda: server.numbers())
    until(lambda: server.numbers()["chuk_rows_running"] == 0)
    assert server.numbers()["chuk_rows_waiting"] == 0


def test_rows_that_nobody_wants_leave_before_the_next_step() -> None:
    """Within two steps: that which runs when the order comes, and one that may begin until then."""
    from chuk_lib.inference.config import SamplingConfig
    from chuk_lib.inference.decoder.rows import Request
    from chuk_lib.serving.engine import EngineLoop, Errand
    from chuk_lib.serving.models import load_all

    (served,) = load_all(str(LLAMA), {}, "auto")
    config = SamplingConfig(max_tokens=480, temperature=1.0, seed=1)

    def asked() -> Errand:
        return Errand(served.name, [Request([5, 6], config, bias={3: -100.0})], True)

    async def steps_after_cancel() -> int:
        engine = EngineLoop([served])
        running = asyncio.create_task(asyncio.to_thread(engine.run))
        stays, goes = asked(), asked()
        engine.submit(stays)
        engine.submit(goes)
        for _ in range(5):
            await goes.news.get()
        before = engine.numbers.steps
        engine.cancel(goes)
        until(lambda: goes.rows[0].reason == "cancelled")
        engine.stop()
        await running
        assert len(stays.rows[0].ids) == 480
        return len(goes.rows[0].ids) - before

    # This thread may be made to wait between its own two lines: the best of some is the engine's.
    assert min(asyncio.run(steps_after_cancel()) for _ in range(4)) <= 2


def test_a_token_is_asked_for_and_origins_are_kept_out() -> None:
    with serving("--cors", "https://good.example", CHUK_SERVE_TOKEN="open sesame") as server:

        def status(**headers: str) -> int:
            return server.http.get("/v1/models", headers=headers).status_code

        assert status() == status(authorization="Bearer open") == 401
        assert status(authorization="Bearer open sesame") == 200
        assert status(**{"x-api-key": "open sesame"}) == 200
        assert server.http.get("/health").status_code == server.http.get("/").status_code == 200
        asked = {"origin": "https://good.example", "access-control-request-method": "POST"}
        allowed = server.http.options(TEXT, headers=asked).headers
        assert allowed["access-control-allow-origin"] == "https://good.example"
        assert status(origin="https://evil.example", authorization="Bearer open sesame") == 403


def test_limits_of_waiting_time_and_size(failing: Path) -> None:
    options = ("--max-waiting", 2, "--timeout", 4, "--max-body", "1KB", "--max-tokens", 3)
    with serving(*options, model=failing) as server:
        chat = {"messages": [{"role": "user", "content": "a"}], "n": 2}
        assert server.post("/v1/chat/completions", **chat)["usage"]["completion_tokens"] <= 6
        slow = {**LONG, "n": 128, "max_tokens": 9000, "temperature": 1}
        got: list[int] = []
        first = threading.Thread(
            target=lambda: got.append(
                httpx.post(server.url + TEXT, json=slow, timeout=60).status_code
            )
        )
        first.start()
        until(lambda: server.numbers()["chuk_rows_waiting"] > 2)
        refused = server.http.post(TEXT, json=slow)
        first.join()
        assert (refused.status_code, refused.headers["retry-after"], got) == (429, "1", [504])
        until(lambda: server.numbers()["chuk_rows_running"] == 0)
        assert server.http.post(TEXT, json={"prompt": "a" * 2000}).status_code == 413


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_rows_finish_and_the_server_ends_with_0(number: int) -> None:
    with (
        serving() as server,
        httpx.Client(base_url=server.url, timeout=60) as other,
        other.stream(
            "POST", TEXT, json={**LONG, "stream": True, "stream_options": {"include_usage": True}}
        ) as answer,
    ):
        pieces = answer.iter_text()
        first = next(pieces)
        server.process.send_signal(number)
        assert data_of(first + "".join(pieces))[-2]["usage"]["completion_tokens"] == 400
        assert server.process.wait(20) == 0


def test_headers_that_do_not_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn
    from uvicorn.server import ServerState

    monkeypatch.setattr(module, "HEADER_SECONDS", 0.2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def half(*sent: bytes) -> bytes:
        config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
        config.load()
        made = lambda: module._Protocol(config, ServerState(), {})  # noqa: E731
        listening = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        for part in sent:
            writer.write(part)
            await asyncio.sleep(0.1)
        got = await asyncio.wait_for(reader.read(), 9)
        writer.close()
        listening.close()
        return got

    whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    for sent in ([], [b"GET / HT"], [whole, b"GET / HT"]):
        assert b" 408 " in asyncio.run(half(*sent))
    both = asyncio.run(half(whole, whole.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))
    assert (both.count(b" 200 "), both.count(b" 408 ")) == (2, 0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "0.0.0.0"], "--token"),
        (["--host", "::"], "--token"),
        (["--token", ""], "token"),
        (["--cors", "*"], "origin"),
        (["--max-body", "much"], "size"),
        (["--adapter", "folder"], "NAME=DIR"),
        (["--adapter", "a=x", "--adapter", "a=y"], "`a`"),
    ],
)
def test_options_that_cannot_be_are_refused(run_chuk: RunChuk, words: list[str], told: str) -> None:
    done = run_chuk("serve", "--model", LLAMA, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_a_port_that_is_taken_is_named(server: Server, run_chuk: RunChuk) -> None:
    port = server.url.rpartition(":")[2]
    # No such model: the port is asked for before one is loaded.
    done = run_chuk("serve", "--model", "nowhere", "--port", port)
    assert done.returncode == 2
    assert port in done.stderr


def test_sizes() -> None:
    assert [size_of(text) for text in ("4MB", "512 kb", "1000", "1.5M")] == [
        4 << 20,
        512 << 10,
        1000,
        3 << 19,
    ]
    assert ServeSettings(host="::1", port=5).address == "http://[::1]:5"
