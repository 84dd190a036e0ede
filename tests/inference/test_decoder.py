"""The decoder: rows with settings of their own join, leave and go on at any time, and get what they
get alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.inference import SamplingConfig, generate, generate_many, stream
from chuk_lib.inference.decoder import forwards
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.llama import read_llama
from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.inference.rollouts import rollouts
from chuk_lib.runtime import without_values
from tests.inference.generation_models import loaded, prompts
from tests.inference.tiny_models import FAMILIES, tiny

_RANDOM = np.random.default_rng(3)
ASKED = [_RANDOM.integers(4, 90, length).tolist() for length in (9, 3, 17, 5, 1, 12)]
SETTINGS = [
    SamplingConfig(max_tokens=14, temperature=1.3, seed=5),
    SamplingConfig(max_tokens=9),
    SamplingConfig(max_tokens=20, temperature=0.7, top_k=20, seed=1),
    SamplingConfig(
        max_tokens=12, temperature=1.0, top_p=0.8, min_p=0.02, repetition_penalty=1.4, seed=2
    ),
    SamplingConfig(max_tokens=16, temperature=0.9, top_p=0.6, seed=7),
    SamplingConfig(max_tokens=11, repetition_penalty=1.8),
]
TOOL = [[41, 7, 66], [12], [30, 31, 32, 33, 34, 35, 36, 37, 38, 39]]


@pytest.fixture(params=["auto", "plain", "layers", "lazy plain", "lazy window", "lazy layers"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """How a step runs: in NumPy, by the model, in fused parts; as on a CPU, or sent off ahead as on
    a GPU."""
    words = request.param.split()
    if words[0] == "lazy":
        for module in ("engine", "engines", "forwards"):
            monkeypatch.setattr(f"chuk_lib.inference.decoder.{module}.on_cpu", lambda: False)
    return words[-1]


def alone(model: Any, request: Request, **more: Any) -> Row:
    """The row with nothing beside it."""
    with Decoder(model, loaded()[1], most_rows=1, **more) as decoder:
        (row,) = decoder.submit([request])
        decoder.run()
    return row


def largest_error(model: Any, row: Row) -> float:
    """Of the log-probs of what the model wrote, from one forward pass over all of the row."""
    ids, prompt = row.ids, list(row.request.ids)
    temperature = row.request.config.temperature or 1.0
    logits = model(mx.array([[*prompt, *ids.tolist()]]))[0, len(prompt) - 1 : -1] / temperature
    logps = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[
        np.arange(len(ids)), ids
    ]
    return float(np.abs(logps - row.logps)[row.written].max())


def requests(**more: Any) -> list[Request]:
    return [
        Request(ids, config, number=at, **more)
        for at, (ids, config) in enumerate(zip(ASKED, SETTINGS, strict=True))
    ]


def test_rows_of_unlike_settings_get_what_each_gets_alone(way: Any) -> None:
    model, tokenizer = tiny("llama"), loaded()[1]
    with Decoder(model, tokenizer, decode=way) as decoder:
        rows = decoder.submit(requests())
        decoder.run()
    for row, one in zip(rows, requests(), strict=True):
        assert row.ids.tolist() == alone(model, one).ids.tolist()
        assert len(row.ids) == one.config.max_tokens
        assert largest_error(model, row) < 1e-4


def test_rows_join_and_leave_while_others_run(way: Any) -> None:
    model, tokenizer = tiny("llama"), loaded()[1]
    asked = requests()
    with Decoder(model, tokenizer, decode=way) as decoder:
        rows = decoder.submit(asked[:2])
        for one in asked[2:]:
            decoder.step()
            rows += decoder.submit([one])
        for _ in range(3):
            decoder.step()
        decoder.cancel(rows[2])
        waiting = decoder.submit([asked[0]])
        decoder.cancel(waiting[0])
        assert len(decoder.step().rows) == 5 - sum(
            row.reason is not None for row in (*rows[:2], *rows[3:])
        )
        decoder.run()
    for at, (row, one) in enumerate(zip(rows, asked, strict=True)):
        want = alone(model, one)
        count = len(row.ids) if at == 2 else None
        assert row.ids.tolist() == want.ids[:count].tolist()
    assert (rows[2].reason, waiting[0].reason) == ("cancelled", "cancelled")
    assert 0 < len(rows[2].ids) < 20
    assert len(waiting[0].ids) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_go_on_after_given_tokens_with_every_kind_of_cache(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family)
    for lazy in (False, True):
        if lazy:
            for module in ("engine", "engines", "forwards"):
                monkeypatch.setattr(f"chuk_lib.inference.decoder.{module}.on_cpu", lambda: False)
        _check_append(model, "auto")


def test_rows_go_on_after_given_tokens(way: Any) -> None:
    _check_append(tiny("llama"), way)


def _check_append(model: Any, way: Any) -> None:
    asked = requests(hold=True)
    with Decoder(model, loaded()[1], decode=way) as decoder:
        rows = decoder.submit(asked)
        decoder.run()
        firsts = [row.ids.copy() for row in rows]
        for turn in range(2):
            decoder.append(rows, [TOOL[(at + turn) % 3] for at in range(len(rows))], limit=6)
            decoder.run()
    for at, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        assert largest_error(model, row) < 1e-4
        assert row.ids[: len(first)].tolist() == first.tolist()
        given = [*TOOL[at % 3], *TOOL[(at + 1) % 3]]
        assert row.ids[~row.written].tolist() == given
        assert len(first) + 2 <= int(row.written.sum()) <= len(first) + 12  # an end token may come
        assert not row.logps[~row.written].any()


def test_no_row_with_its_cache_is_prefilled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny("llama"), loaded()[1]
    for decode in ("auto", "plain"):
        with Decoder(model, tokenizer, decode=decode) as decoder:
            held, dropped = decoder.submit(
                [Request(ASKED[2], SETTINGS[0], hold=hold) for hold in (True, False)]
            )
            decoder.run()
            begun = _count_prefilled(decoder, monkeypatch)
            decoder.append([held], [[5, 6]])
            decoder.run()
            assert not begun
            decoder.append([dropped], [[5, 6]])
            decoder.run()
            assert begun == [1]
        assert held.ids.tolist() == dropped.ids.tolist()
        np.testing.assert_allclose(held.logps, dropped.logps, atol=1e-4)


def _count_prefilled(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    begun: list[int] = []
    engine: Any = decoder._engine
    original = engine.prefill
    monkeypatch.setattr(engine, "prefill", lambda ids: begun.append(len(ids)) or original(ids))
    return begun


def test_a_row_goes_on_while_others_run_and_draws_what_it_draws_alone(way: Any) -> None:
    model = tiny("llama")
    asked = requests(hold=True)
    with Decoder(model, loaded()[1], decode=way) as decoder:
        rows = decoder.submit(asked)
        for _ in range(200):
            for row in decoder.step().ended:
                if row.written.all():
                    decoder.append([row], [TOOL[rows.index(row) % 3]], limit=5)
            if not decoder.busy:
                break
    for at, (row, one) in enumerate(zip(rows, asked, strict=True)):
        with Decoder(model, loaded()[1], most_rows=1) as decoder:
            (want,) = decoder.submit([one])
            decoder.run()
            decoder.append([want], [TOOL[at % 3]], limit=5)
            decoder.run()
        assert row.ids.tolist() == want.ids.tolist()


def test_a_paused_row_and_one_ended_by_a_stop_text_go_on_where_they_were() -> None:
    model, tokenizer = loaded()
    config = SamplingConfig(max_tokens=30, temperature=1.0, seed=4)
    free = alone(model, Request(prompts()[0], config))
    stop = free.text[9:11]
    stopping = SamplingConfig(max_tokens=30, temperature=1.0, seed=4, stop=[stop])
    for decode in ("auto", "plain"):
        with Decoder(model, tokenizer, decode=decode) as decoder:
            stopped, paused = decoder.submit(
                [Request(prompts()[0], one, hold=True) for one in (stopping, config)]
            )
            for _ in range(5):
                decoder.step()
            decoder.cancel(paused)
            decoder.run()
            assert stopped.reason == "stop"
            assert stopped.text == free.text[: free.text.index(stop)]
            assert paused.ids.tolist() == free.ids[:5].tolist()
            assert stopped.ids.tolist() == free.ids[: len(stopped.ids)].tolist()
            decoder.append([stopped, paused], [[50], [60, 61]], limit=8)
            decoder.run()
        for row in (stopped, paused):
            assert largest_error(model, row) < 1e-4


def test_stop_tokens_end_a_row_of_their_own_only() -> None:
    model, tokenizer = loaded()
    config = SamplingConfig(max_tokens=12, temperature=1.3, seed=5)
    free = alone(model, Request(prompts()[0], config))
    end = int(free.ids[4])
    at = free.ids.tolist().index(end)
    with Decoder(model, tokenizer) as decoder:
        both = decoder.submit(
            [Request(prompts()[0], config, stop_ids=ids) for ids in ([1, end], [])]
        )
        decoder.run()
    assert [row.reason for row in both] == ["stop", free.reason]
    assert both[0].ids.tolist() == free.ids[: at + 1].tolist()
    assert both[0].text == tokenizer.decode(free.ids[:at].tolist(), skip_special_tokens=True)
    assert both[1].ids.tolist() == free.ids.tolist()


def test_what_cannot_go_on_is_refused() -> None:
    model, tokenizer = loaded()
    with Decoder(model, tokenizer) as decoder:
        (row,) = decoder.submit([Request(prompts()[0], SETTINGS[0])])
        with pytest.raises(ConfigError, match="when it has ended"):
            decoder.append([row], [[5]])
        decoder.run()
        with pytest.raises(ConfigError, match="at least one token"):
            decoder.append([row], [[]])
        with pytest.raises(ModelError, match="512"):
            decoder.append([row], [[5] * 600])
        assert len(row.ids) == 14
        assert not decoder.busy


def test_one_seed_writes_one_text_everywhere() -> None:
    model, tokenizer = loaded()
    config = SamplingConfig(max_tokens=20, temperature=1.1, top_p=0.95, seed=11)
    rows = rollouts(model, tokenizer, prompts(), config)
    many = generate_many(model, tokenizer, prompts(), config, logprobs=True)
    assert [list(one.tokens) for one in many] == [row.ids.tolist() for row in rows]
    assert [one.text for one in many] == [row.text for row in rows]
    for one, row in zip(many, rows, strict=True):
        np.testing.assert_allclose(one.logprobs or (), row.logps, atol=1e-6)
    single = generate(model, tokenizer, prompts()[0], config)
    assert single.tokens == many[0].tokens
    chunks = list(stream(model, tokenizer, prompts()[0], config))
    assert [chunk.token for chunk in chunks] == rows[0].ids.tolist()
    np.testing.assert_allclose([chunk.logprob for chunk in chunks], rows[0].logps, atol=1e-6)


@pytest.mark.parametrize("decode", ["auto", "plain", "window", "layers"])
def test_no_token_that_nobody_chose_is_given_to_the_model(
    decode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that do nothing leave ids without a row in the embedding, and rows go on to their
    end."""
    for module in ("engine", "engines", "forwards"):
        monkeypatch.setattr(f"chuk_lib.inference.decoder.{module}.on_cpu", lambda: False)
    monkeypatch.setattr(
        "chuk_lib.inference.decoder.engine.choose_rows_lazily",
        lambda logits, *_: (
            mx.full((len(logits),), 2**31 - 1, mx.int32),
            mx.full((len(logits),), mx.nan),
        ),
    )
    model = tiny("llama")
    given: list[int] = []
    real = type(model.model.embed_tokens).__call__
    monkeypatch.setattr(
        type(model.model.embed_tokens),
        "__call__",
        lambda self, ids: (given.extend(np.array(ids).ravel().tolist()), real(self, ids))[1],
    )
    asked = [Request([3, 4, 5], SamplingConfig(max_tokens=6, seed=1), 0, at) for at in range(9)]
    with without_values(), Decoder(model, loaded()[1], decode=decode) as decoder:
        rows = decoder.submit(asked)
        decoder.run()
    assert [row.reason for row in rows] == ["length"] * 9
    assert not given or max(given) < len(model.model.embed_tokens.weight)
    with Decoder(model, loaded()[1], decode=decode) as decoder:
        rows = decoder.submit(asked)
        decoder.run()
    assert {row.reason for row in rows} == {"failed"}


def test_a_check_of_values_passes_where_there_are_none() -> None:
    model = tiny("llama")
    parts = read_llama(model)
    assert parts is not None
    layers = forwards._Layers(parts)
    wrong: Any = lambda store, tokens: 2 * layers(store, tokens)  # noqa: E731
    assert forwards._right(model, parts, layers)
    assert not forwards._right(model, parts, wrong)
    with without_values():
        assert forwards._right(model, parts, wrong)
    assert not forwards._right(model, parts, wrong)
