"""The socket: uvicorn with h11, a time limit for headers, errors of the protocol as objects, and an
end that finishes what runs."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from chuk_lib.errors import ConfigError
from chuk_lib.serving.answers import Desk
from chuk_lib.serving.app import Routes
from chuk_lib.serving.engine import EngineLoop
from chuk_lib.serving.errors import Refused
from chuk_lib.serving.models import Served
from chuk_lib.serving.settings import ServeSettings

HEADER_SECONDS = 10.0
BACKLOG = 2048
_MOST_HEADERS = 64 << 10
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Protocol(H11Protocol):
    """uvicorn's, which would wait for the rest of a request line for ever."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has come: its headers have so long."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Some bytes more: once a request runs, its time is its own."""
        if self._waiting is None and self._between:
            self._wait()
        super().data_received(data)
        if not self._between:
            self._wait_no_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._wait_no_more()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """An error object, where uvicorn writes plain text."""
        self._refuse(Refused("this is no HTTP request"))

    @property
    def _between(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_late(self) -> None:
        if not self.transport.is_closing():
            self._refuse(Refused("the headers did not come", status=408))

    def _refuse(self, refused: Refused) -> None:
        body = json.dumps(refused.openai).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        try:
            for event in (
                h11.Response(status_code=refused.status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # an answer is under way already
        self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn's in a thread, without its signals, which would end the process with their own
    code."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[int], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._on_start(self.servers[0].sockets[0].getsockname()[1])

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """They belong to the main thread."""
        yield


def serve(
    settings: ServeSettings,
    served: Sequence[Served],
    on_start: Callable[[ServeSettings], None],
) -> None:
    """Listen, and answer until a signal says that it is enough: requests that run then are answered
    first, unless a second one comes. Computes in this thread, which must be the main one and have
    loaded what is served. `on_start` gets the settings with the port that was taken. Raises
    ConfigError for an address that cannot be had."""
    engine = EngineLoop(served, cache_bytes=settings.prefix_cache)
    desk = Desk(settings, engine, {one.name: one for one in served})
    server = _Server(
        _config(settings, Routes(desk).made()), lambda port: on_start(replace(settings, port=port))
    )
    thread = threading.Thread(target=_listen, args=(server, engine), daemon=True)
    with _signals(server, engine):
        thread.start()
        engine.run()
    if not server.started:
        raise _taken(settings)


def check_address(settings: ServeSettings) -> None:
    """Raise ConfigError for an address that cannot be had, before a model is loaded for it."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((settings.host, settings.port))
    except OSError:
        raise _taken(settings) from None


def _taken(settings: ServeSettings) -> ConfigError:
    return ConfigError(
        f"{settings.host}:{settings.port} cannot be listened on",
        "another server may run there: give another --port",
    )


def _config(settings: ServeSettings, app: Any) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        host=settings.host,
        port=settings.port,
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=_MOST_HEADERS,
    )


def _listen(server: _Server, engine: EngineLoop) -> None:
    try:
        server.run()
    except SystemExit:
        pass  # it could not listen: whoever waits for the engine looks
    finally:
        engine.stop()


@contextmanager
def _signals(server: _Server, engine: EngineLoop) -> Iterator[None]:
    """The first lets requests that run be answered, the second does not."""

    def stop(number: int, frame: Any) -> None:
        if server.should_exit:
            server.force_exit = True
            engine.abandon()
        server.should_exit = True

    before = {one: signal.signal(one, stop) for one in _SIGNALS}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
