"""What computes, in one thread: the decoder is stepped (one for the model under all adapters where
their rows may decode together, else one for each). Requests come as errands from the event loop,
which has another thread, and news of each row go back there, once a step. Nothing else in the
process touches the models."""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from chuk_lib.data.tokenizers.identity import fingerprint
from chuk_lib.errors import ChukError
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.engines import holds_adapters
from chuk_lib.inference.decoder.prefixes import PrefixCache
from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.runtime import computing, prefill_tokens
from chuk_lib.serving.errors import NOT_A_NUMBER, Refused
from chuk_lib.serving.models import Embedder, Embedding, Served

_LOG = logging.getLogger("chuk.serve")
Order = Callable[[], None]


@dataclass(frozen=True, slots=True)
class News:
    """Of row `index` of an errand: a token that it wrote, with the likeliest at its place, or
    (`row`) that it has ended, or (`error`) why the whole errand will not be answered."""

    index: int
    token: int = -1
    logp: float = 0.0
    tops: tuple[tuple[int, float], ...] = ()
    row: Row | None = None
    error: Refused | None = None


@dataclass(eq=False)
class Errand:
    """Rows of one request, under the model called `name`. `tokens`: whether each token is news.
    `news` is read in the event loop that made the errand."""

    name: str
    requests: Sequence[Request]
    tokens: bool
    news: asyncio.Queue[News] = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    rows: list[Row] = field(default_factory=list)


@dataclass
class Counters:
    """What the engine has done, for `/metrics`. Written by its thread alone."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_bytes: int = 0
    generated_tokens: int = 0
    running: int = 0
    ended: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class _Lane:
    """Models whose rows decode together, one and the same under adapters, with their decoder and
    the rows that it writes."""

    served: Sequence[Served]
    decoder: Decoder
    errands: dict[Row, tuple[Errand, int]] = field(default_factory=dict)


def lanes_of(served: Sequence[Served]) -> list[list[Served]]:
    """Models whose rows may decode together: all of them where each is the first one under an
    adapter with the same tokens; else each is alone."""
    first, *adapted = served
    same = all(
        fingerprint(one.tokenizer) == fingerprint(first.tokenizer)
        and set(one.tokenizer.eos_token_ids) == set(first.tokenizer.eos_token_ids)
        for one in adapted
    )
    if adapted and same and holds_adapters(first.model, [one.model for one in adapted]):
        return [list(served)]
    return [[one] for one in served]


class EngineLoop:
    """Computes for what is served from `run` until `stop`. `cache_bytes`: of what is remembered of
    earlier prompts, 0 for nothing."""

    def __init__(
        self,
        served: Sequence[Served],
        token_budget: int | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self._served, self._token_budget = served, token_budget
        self._prefixes = PrefixCache(cache_bytes) if cache_bytes else None
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._lanes: list[_Lane] = []
        self._places: dict[str, tuple[_Lane, int]] = {}  # by name, and which of a lane's models
        self._embedders: dict[str, Embedder] = {}
        self._embeddings: list[tuple[Embedding, Future[Any]]] = []
        self._mail: list[tuple[Errand, News]] = []
        self._stopping = False
        self._open = 0  # rows that were handed in and have not ended, as the event loop knows
        self.numbers = Counters()

    @property
    def embedding(self) -> int:
        """Texts that wait for their vector."""
        return len(self._embeddings)

    @property
    def waiting(self) -> int:
        """Rows that wait for a place."""
        return max(0, self._open - self.numbers.running)

    def submit(self, errand: Errand) -> None:
        """Let the rows of an errand wait. Called in the event loop."""
        self._open += len(errand.requests)
        self._orders.put(lambda: self._begin(errand))

    def cancel(self, errand: Errand) -> None:
        """Forget an errand: nobody wants it any more. Its rows leave before the next step."""
        self._orders.put(lambda: self._forget(errand))

    def closed(self, errand: Errand) -> None:
        """The event loop is done with an errand."""
        self._open -= len(errand.requests)

    def embed(self, name: str, ids: Sequence[int]) -> Future[Any]:
        """The vector (H,) of a text. The future raises Refused when the model cannot."""
        future: Future[Any] = Future()
        self._orders.put(lambda: self._begin_embedding(name, ids, future))
        return future

    def stop(self) -> None:
        """Let `run` return when all rows have ended. May be called in any thread."""
        self._orders.put(self._begin_to_stop)

    def abandon(self) -> None:
        """Let `run` return without the rows that run."""
        self._orders.put(self._forget_all)

    def run(self) -> None:
        """Compute in this thread, which must be the one that has loaded the models."""
        with ExitStack() as stack:
            for together in lanes_of(self._served):
                lane = _Lane(together, self._decoder_of(together, stack))
                self._lanes.append(lane)
                self._places |= {one.name: (lane, at) for at, one in enumerate(together)}
            while not (self._stopping and not self._busy):
                self._take_orders()
                for lane in self._lanes:
                    if lane.decoder.busy:
                        self._step(lane, stack)
                self._embed_on()
                self._send()

    @property
    def _busy(self) -> bool:
        return bool(self._embeddings) or any(lane.decoder.busy for lane in self._lanes)

    def _decoder_of(self, together: Sequence[Served], stack: ExitStack) -> Decoder:
        first, *adapted = together
        decoder = Decoder(
            first.model,
            first.tokenizer,
            adapted=[one.model for one in adapted],
            token_budget=self._token_budget,
            gradual=True,
            prefixes=self._prefixes,
            name=first.name,
        )
        return stack.enter_context(decoder)

    def _take_orders(self) -> None:
        """All that were given; with nothing to do, wait for one."""
        if not self._busy:
            self._send()
            self._orders.get()()
        while True:
            try:
                self._orders.get_nowait()()
            except queue.Empty:
                return

    def _begin_to_stop(self) -> None:
        self._stopping = True

    def _forget_all(self) -> None:
        for lane in self._lanes:
            for errand in {errand for errand, _ in lane.errands.values()}:
                self._forget(errand)
        self._stopping = True

    def _begin(self, errand: Errand) -> None:
        lane, adapter = self._places[errand.name]
        requests = [replace(one, adapter=adapter) for one in errand.requests]
        try:
            errand.rows = lane.decoder.submit(requests)
        except ChukError as error:
            self._mail.append((errand, News(0, error=Refused(error.message))))
            return
        places = {id(request): index for index, request in enumerate(requests)}
        for row in errand.rows:
            lane.errands[row] = errand, places[id(row.request)]
        self.numbers.prompt_tokens += sum(
            len(ids) for ids in {id(one.ids): one.ids for one in errand.requests}.values()
        )

    def _forget(self, errand: Errand) -> None:
        lane, _ = self._places[errand.name]
        for row in errand.rows:
            if lane.errands.pop(row, None) is not None:
                lane.decoder.cancel(row)
                self._count("cancelled")

    def _step(self, lane: _Lane, stack: ExitStack) -> None:
        try:
            step = lane.decoder.step()
        except Exception:  # of memory, or a fault: these rows are lost, the server is not
            _LOG.exception("a step failed")
            self._fail_all(lane, stack)
            return
        self.numbers.steps += 1
        self.numbers.generated_tokens += len(step.rows)
        ended = set(step.ended)
        for row, token, logp in zip(
            step.rows, step.tokens.tolist(), step.logps.tolist(), strict=True
        ):
            errand, index = lane.errands[row]
            if errand.tokens and row.reason != "failed":
                tops = tuple(row.tops[-1]) if row.request.tops else ()
                self._mail.append((errand, News(index, token, logp, tops)))
            if row in ended:
                self._end(lane, row)

    def _end(self, lane: _Lane, row: Row) -> None:
        errand, index = lane.errands.pop(row)
        self._count(str(row.reason))
        if row.request.member == 0:
            self.numbers.cached_tokens += row.cached
        if row.reason == "failed":
            news = News(index, error=Refused(NOT_A_NUMBER, status=500))
        else:
            news = News(index, row=row)
        self._mail.append((errand, news))

    def _fail_all(self, lane: _Lane, stack: ExitStack) -> None:
        error = Refused("the engine failed on this batch of rows", status=500)
        for errand, index in lane.errands.values():
            self._count("failed")
            self._mail.append((errand, News(index, error=error)))
        lane.errands.clear()
        lane.decoder = self._decoder_of(lane.served, stack)

    def _count(self, reason: str) -> None:
        self.numbers.ended[reason] = self.numbers.ended.get(reason, 0) + 1

    def _send(self) -> None:
        """All news at once: one wake-up of the event loop a step."""
        self.numbers.cache_bytes = 0 if self._prefixes is None else self._prefixes.size
        self.numbers.running = sum(one.decoder.running for one in self._lanes)
        mail, self._mail = self._mail, []
        for loop in {errand.loop for errand, _ in mail}:
            own = [(errand, news) for errand, news in mail if errand.loop is loop]
            loop.call_soon_threadsafe(_deliver, own)

    def _begin_embedding(self, name: str, ids: Sequence[int], future: Future[Any]) -> None:
        if name not in self._embedders:
            with computing():
                lane, at = self._places[name]
                self._embedders[name] = Embedder(lane.served[at].model)
        if self._embedders[name].works:
            self._embeddings.append((self._embedders[name].start(ids), future))
        else:
            _settle(future, Refused("this model gives no embeddings", "model"))

    def _embed_on(self) -> None:
        """One stretch of the text that has waited longest."""
        self._embeddings = [one for one in self._embeddings if not one[1].cancelled()]
        if not self._embeddings:
            return
        text, future = self._embeddings[0]
        try:
            with computing():
                done = text.step(prefill_tokens())
        except Exception:  # as in `_step`
            _LOG.exception("an embedding failed")
            self._embeddings.pop(0)
            _settle(future, Refused("the engine failed on this text", status=500))
            return
        if done:
            self._embeddings.pop(0)
            _settle(future, text.vector)


def _settle(future: Future[Any], result: Any) -> None:
    """Give a future its result, unless nobody waits for it any more."""
    if future.set_running_or_notify_cancel():
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _deliver(mail: Sequence[tuple[Errand, News]]) -> None:
    for errand, news in mail:
        errand.news.put_nowait(news)
