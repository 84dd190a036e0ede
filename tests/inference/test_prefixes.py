"""A prefix cache: prompts go on from what they share with earlier ones, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.prefixes import LEAST, PrefixCache
from chuk_lib.inference.decoder.rows import Request, Row
from tests.inference.generation_models import loaded, prompts
from tests.serving.servers import serving

WAYS = ["auto", "plain"]  # in NumPy, and by calling the model
WARM = SamplingConfig(temperature=2.0, max_tokens=12, seed=5)
TALK = [token for prompt in prompts() for token in prompt]


def written(asked: list[list[Request]], decode: Any, prefixes: PrefixCache | None) -> list[Row]:
    """Rows that come in several goes to one decoder."""
    rows: list[Row] = []
    model, tokenizer = loaded()
    with Decoder(model, tokenizer, decode=decode, gradual=True, prefixes=prefixes) as decoder:
        for some in asked:
            rows += decoder.submit(some)
            decoder.run()
    return rows


@pytest.mark.parametrize("decode", WAYS)
def test_prompts_that_begin_alike_go_on_and_write_the_same(decode: Any) -> None:
    greedy = replace(WARM, temperature=0.0)
    begin = (TALK * 2)[: LEAST + 20]
    ids = [*begin, 7, 9]
    first = written([[Request(ids, greedy)]], decode, None)[0]
    asked = [
        [Request(ids, greedy)],
        [Request(list(ids), WARM, member=m) for m in range(2)],  # known whole
        [Request([*begin, 8, 8, 8], WARM), Request([*begin[: LEAST - 2], 3, 4], WARM)],
        [Request([*ids, *first.ids.tolist(), 11], greedy)],  # the next turn
    ]
    want = written(asked, decode, None)
    got = written(asked, decode, PrefixCache(1 << 30))
    assert [row.ids.tolist() for row in got] == [row.ids.tolist() for row in want]
    turn = len(ids) + len(first.ids) - 1  # the last token that was written was never run
    shared = LEAST + 20
    assert [row.cached for row in got] == [0, len(ids) - 1, len(ids) - 1, shared, 0, turn]
    assert not any(row.cached for row in want)


def test_bytes_are_bounded_and_what_was_used_last_stays() -> None:
    def memory(tokens: int) -> list[tuple[mx.array, mx.array]]:
        return [(mx.ones((1, 2, tokens, 4)), mx.zeros((1, 2, tokens, 4)))]

    each = 2 * 2 * 40 * 4 * 4
    cache = PrefixCache(2 * each)
    texts = {start: list(range(start, start + 40)) for start in (0, 100, 200, 300)}
    cache.keep("a", texts[0], memory(40))
    cache.keep("a", texts[100], memory(40))
    assert cache.find("b", [*texts[0], 1]) is None, "another model's"
    assert cache.find("a", [*texts[0], 1]) is not None
    cache.keep("a", texts[200], memory(40))
    assert cache.size == 2 * each
    assert cache.find("a", [*texts[100], 1]) is None
    assert cache.find("a", [*texts[0], 1]) is not None
    cache.keep("a", texts[200][:30], memory(30))  # known already
    cache.keep("a", [*range(200, 250)], memory(50))  # instead of what it begins with
    assert cache.size == each * 5 // 4
    cache.keep("a", [*range(1000)], memory(1000))
    assert cache.size == each * 5 // 4, "larger than the limit"


def test_the_server_counts_what_it_did_not_run() -> None:
    body = {"prompt": (TALK * 4)[:90], "max_tokens": 8, "temperature": 1.0, "seed": 3}
    said: dict[str, list[Any]] = {}
    for size in ("64MB", "0"):
        with serving("--prefix-cache", size) as server:
            said[size] = [server.post("/v1/completions", **body) for _ in range(2)]
            numbers = server.numbers()
        cached = [one["usage"]["prompt_tokens_details"]["cached_tokens"] for one in said[size]]
        assert cached == ([0, 89] if size != "0" else [0, 0])
        assert numbers["chuk_cached_tokens_total"] == sum(cached)
        assert (numbers["chuk_prefix_cache_bytes"] > 0) == (size != "0")
    assert len({one["choices"][0]["text"] for some in said.values() for one in some}) == 1
