"""The routes: who may ask, how much may be sent, and in which form errors come back."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chuk_lib.errors import ChukError
from chuk_lib.serving import answers, others, reading
from chuk_lib.serving.answers import Desk, Plan
from chuk_lib.serving.chat import read_chat
from chuk_lib.serving.completions import read_completion
from chuk_lib.serving.errors import Refused
from chuk_lib.serving.messages import count_tokens, read_messages
from chuk_lib.serving.settings import is_loopback

_LOG = logging.getLogger("chuk.serve")
_BODY_SECONDS = 30.0
_OPEN = ("/", "/health")
_CLOSED = 499  # what nginx writes down for a client that went away; nobody gets it
Read = Callable[[Desk, Mapping[str, Any]], Any]
Endpoint = Callable[[HttpRequest], Awaitable[Response]]


class Routes:
    """An ASGI application over a desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.requests: Counter[tuple[str, int]] = Counter()
        self._page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    def made(self) -> ASGIApp:
        """The application with all that stands before its routes."""
        origins = self.desk.settings.cors
        guarded = _Guard(self)
        if not origins:
            return guarded
        return CORSMiddleware(
            guarded,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )

    def routes(self) -> dict[str, tuple[str, Endpoint]]:
        """Method and endpoint of each path."""
        return {
            "/v1/chat/completions": ("POST", self._answering(read_chat)),
            "/v1/completions": ("POST", self._answering(read_completion)),
            "/v1/messages": ("POST", self._answering(read_messages)),
            "/v1/messages/count_tokens": ("POST", self._plainly(count_tokens)),
            "/v1/embeddings": ("POST", self._embeddings),
            "/tokenize": ("POST", self._plainly(others.tokenize)),
            "/detokenize": ("POST", self._plainly(others.detokenize)),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
            "/": ("GET", self._show),
        }

    async def _models(self, request: HttpRequest) -> Response:
        name = request.scope["path"].removeprefix("/v1/models").strip("/")
        found = others.model(self.desk, name) if name else others.models(self.desk)
        return JSONResponse(found)

    async def _health(self, request: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def _metrics(self, request: HttpRequest) -> Response:
        text = others.metrics(self.desk, self.requests)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _show(self, request: HttpRequest) -> Response:
        # The page asks its own server and nobody else, and runs nothing that is not in it.
        policy = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline';"
        policy += " script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
        return HTMLResponse(self._page, headers={"content-security-policy": policy})

    def _answering(self, read: Callable[[Desk, Mapping[str, Any]], Plan]) -> Any:
        async def endpoint(request: HttpRequest) -> Response:
            body = await read_body(request, self.desk.settings.max_body)
            plan = await asyncio.to_thread(lambda: read(self.desk, reading.parsed(body)))
            if plan.stream:
                return _Events(self, plan, is_anthropic(request.scope["path"]))
            rows = await _while_there(request.receive, answers.rows_of(self.desk, plan))
            return JSONResponse(await asyncio.to_thread(plan.body, rows))

        return endpoint

    def _plainly(self, read: Read) -> Any:
        async def endpoint(request: HttpRequest) -> Response:
            body = await read_body(request, self.desk.settings.max_body)
            found = await asyncio.to_thread(lambda: read(self.desk, reading.parsed(body)))
            return JSONResponse(found)

        return endpoint

    async def _embeddings(self, request: HttpRequest) -> Response:
        body = await read_body(request, self.desk.settings.max_body)
        work = others.embeddings(self.desk, reading.parsed(body))
        return JSONResponse(await _while_there(request.receive, work))


class _Events(Response):
    """A stream of events that ends when its client goes away."""

    def __init__(self, app: Routes, plan: Plan, anthropic: bool) -> None:
        self._app, self._plan, self._anthropic = app, plan, anthropic
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await _while_there(receive, self._send(send, start))

    async def _send(self, send: Send, start: Message) -> None:
        async with aclosing(answers.news_of(self._app.desk, self._plan)) as news:
            first = await anext(news)  # a refusal before it is an answer of its own
            await send(start)
            try:
                async for part in self._plan.events(_with_first(first, news)):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            except Refused as refused:
                shown = refused.anthropic if self._anthropic else refused.openai
                part = answers.event(shown, "error" if self._anthropic else None)
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _with_first(first: Any, news: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for one in news:
        yield one


class _Guard:
    """What every request goes through: origin and token, its route, errors as objects, counts."""

    def __init__(self, app: Routes) -> None:
        self._app, self._routes = app, app.routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is spoken here, not {scope['type']}")
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = _normal(scope["path"])
        try:
            request = HttpRequest(scope, receive)
            self._check(request)
            response = await self._endpoint(path, scope["method"])(request)
            await response(scope, receive, watched)
        except (_Gone, ClientDisconnect):
            status = status or _CLOSED
        except Exception as error:  # whatever it is, the client gets an object
            refused = _as_refused(error)
            if not status:
                await _refusal(scope, refused)(scope, receive, watched)
        self._app.requests[path if path in self._routes else "other", status] += 1

    def _endpoint(self, path: str, method: str) -> Endpoint:
        known = "/v1/models" if path.startswith("/v1/models/") else path
        if known not in self._routes:
            raise Refused(f"there is no `{path[:80]}` here", status=404)
        wanted, endpoint = self._routes[known]
        if method != wanted and not (method == "HEAD" and wanted == "GET"):
            raise Refused(f"`{known}` takes {wanted}, not {method[:20]}", status=405)
        return endpoint

    def _check(self, request: HttpRequest) -> None:
        """Raise Refused for a page of another origin, and without the token."""
        settings = self._app.desk.settings
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        if origin is not None and origin not in settings.cors and urlsplit(origin).netloc != host:
            raise Refused("pages of this origin may not ask: see `--cors`", status=403)
        if settings.token is None:
            # A name that a stranger's DNS lets point here would make its pages our own.
            name = urlsplit(f"//{host}").hostname or ""
            if host and not is_loopback(name) and name != settings.host:
                raise Refused(f"this server is not `{host[:80]}`", status=403)
        elif _normal(request.scope["path"]) not in _OPEN:
            _check_token(request, settings.token)


def _check_token(request: HttpRequest, token: str) -> None:
    given = request.headers.get("authorization", "")
    shown = given[7:] if given[:7].lower() == "bearer " else request.headers.get("x-api-key", "")
    if not hmac.compare_digest(shown.encode(), token.encode()):
        raise Refused("the token is wrong or missing", status=401, code="invalid_api_key")


def _normal(path: str) -> str:
    return path.rstrip("/") or "/"


def is_anthropic(path: str) -> bool:
    """Whether errors on this path have Anthropic's form."""
    return path.startswith("/v1/messages")


async def read_body(request: HttpRequest, most: int) -> bytes:
    """The body, of `most` bytes. Raises Refused for a longer one, before it is read where its
    length is told, and for one that does not come."""
    declared = request.headers.get("content-length", "0")
    too_large = Refused(f"the body may have {most:,} bytes at most", status=413)
    if declared.isdigit() and int(declared[:20]) > most:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Refused("the body did not come", status=408) from None
    return b"".join(parts)


class _Gone(Exception):
    """The client has gone away."""


async def _while_there(receive: Receive, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, which is cancelled as soon as its client goes away."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_leaving(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Gone
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        with suppress(asyncio.CancelledError, Exception):  # it was cancelled, or has told
            await task


async def _leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _as_refused(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, ChukError):
        return Refused(error.message)
    _LOG.exception("a request failed", exc_info=error)
    return Refused("the server failed on this request", status=500)


def _refusal(scope: Scope, refused: Refused) -> JSONResponse:
    body = refused.anthropic if is_anthropic(scope["path"]) else refused.openai
    return JSONResponse(body, refused.status, headers=refused.headers)
