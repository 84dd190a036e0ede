"""Rollouts: exact ids and log-probs, the same whatever runs beside a row, for every kind of
cache."""

from __future__ import annotations

import gc
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from chuk_lib import parity
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.inference import SamplingConfig
from chuk_lib.inference.decoder import budget as rollout_budget
from chuk_lib.inference.decoder.budget import Budget, default_token_budget, token_bytes
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.draws import Arrival
from chuk_lib.inference.decoder.engine import ModelEngine, NumpyEngine
from chuk_lib.inference.decoder.engines import new_engine
from chuk_lib.inference.decoder.llama import read_llama
from chuk_lib.inference.decoder.plain_store import PlainStore
from chuk_lib.inference.decoder.products import may_join
from chuk_lib.inference.decoder.rows import Request
from chuk_lib.inference.decoder.stores import LockstepStore, MergedStore, new_store
from chuk_lib.inference.rollouts import Rollout, rollouts
from chuk_lib.models import load_model
from tests.inference.generation_models import LLAMA, MODELS, PARITY, answers, loaded, prompts
from tests.inference.tiny_models import FAMILIES, tiny
from tests.runtime.test_device import CUDA, METAL, as_if_on

WARM = SamplingConfig(max_tokens=12, temperature=1.3, seed=5)
_RANDOM = np.random.default_rng(1)
MIXED = [_RANDOM.integers(4, 90, length).tolist() for length in (3, 12, 1, 20, 7)]


def ids_of(found: list[Rollout]) -> list[list[int]]:
    return [rollout.ids.tolist() for rollout in found]


def largest_error(
    model: Any, asked: list[list[int]], found: list[Rollout], temperature: float
) -> float:
    """Largest difference of the log-probs from those of a fresh forward pass over prompt and
    completion."""
    worst = 0.0
    for rollout in found:
        prompt = asked[rollout.prompt]
        logits = (
            model(mx.array([[*prompt, *rollout.ids.tolist()]]))[0, len(prompt) - 1 : -1]
            / temperature
        )
        logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        at_ids = np.array(logps)[np.arange(len(rollout.ids)), rollout.ids]
        worst = max(worst, float(np.abs(at_ids - rollout.logps).max()))
    return worst


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_what_transformers_writes(name: str) -> None:
    model, tokenizer = loaded(name)
    found = rollouts(model, tokenizer, prompts(name), SamplingConfig(max_tokens=16))
    assert ids_of(found) == answers(name)
    assert largest_error(model, prompts(name), found, 1.0) < 1e-5


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("decode", ["auto", "plain", "window", "layers", "kernels"])
def test_logps_are_those_of_a_fresh_forward(name: str, decode: Any) -> None:
    model, tokenizer = loaded(name)
    config = SamplingConfig(max_tokens=12, temperature=1.3, seed=5, top_k=40, min_p=0.001)
    found = rollouts(model, tokenizer, prompts(name), config, group_size=3, decode=decode)
    assert [(r.prompt, r.member) for r in found] == [
        (p, m) for p in range(len(prompts(name))) for m in range(3)
    ]
    assert found[0].ids.dtype == np.int32
    assert found[0].logps.dtype == np.float32
    assert largest_error(model, prompts(name), found, 1.3) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_cache_gives_a_row_what_it_gets_alone(family: str) -> None:
    model, tokenizer = tiny(family), loaded()[1]
    together = rollouts(model, tokenizer, MIXED, WARM, group_size=3)
    # Recurrent layers sum a prompt in chunks.
    assert largest_error(model, MIXED, together, 1.3) < 1e-4
    for budget in (100, 1):
        assert ids_of(
            rollouts(model, tokenizer, MIXED, WARM, group_size=3, token_budget=budget)
        ) == ids_of(together)
    for prompt in range(len(MIXED)):
        alone = rollouts(model, tokenizer, [MIXED[prompt]], WARM, numbers=[prompt])
        assert ids_of(alone)[0] == ids_of(together)[3 * prompt]


@pytest.mark.parametrize(
    ("family", "store"),
    [
        ("llama", PlainStore),
        ("gpt2", PlainStore),
        ("gemma3_text", MergedStore),
        ("mamba2", MergedStore),
        ("qwen3_next", MergedStore),
        ("gemma2", LockstepStore),
    ],
)
def test_each_model_gets_the_store_that_fits(family: str, store: type) -> None:
    assert type(new_store(tiny(family), 8)) is store


def test_a_quantized_cache_is_used_when_asked_for() -> None:
    model, tokenizer = tiny("llama", head_dim=64), loaded()[1]
    exact = rollouts(model, tokenizer, MIXED, WARM, group_size=3)
    rough = rollouts(model, tokenizer, MIXED, WARM, group_size=3, kv_bits=8)
    assert largest_error(model, MIXED, exact, 1.3) < 1e-5
    assert 1e-5 < largest_error(model, MIXED, rough, 1.3) < 0.1


@pytest.mark.parametrize("decode", ["auto", "plain", "window", "layers", "kernels"])
def test_adapters_are_used(decode: Any) -> None:
    tokenizer = loaded()[1]
    adapted, _ = load_model(
        LLAMA, adapter=PARITY / "models" / "llama-tiny-lora-adapter", local_only=True
    )
    found = rollouts(adapted, tokenizer, prompts(), WARM, group_size=2, decode=decode)
    assert largest_error(adapted, prompts(), found, 1.3) < 1e-5
    assert largest_error(loaded()[0], prompts(), found, 1.3) > 1e-2


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_step_sent_off_ahead_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, temperature: float, penalty: float
) -> None:
    model, tokenizer = loaded("qwen3-tiny")
    config = SamplingConfig(
        max_tokens=12,
        temperature=temperature,
        top_k=30,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=penalty,
        seed=3,
    )
    want = rollouts(model, tokenizer, MIXED, config, group_size=3)
    for module in ("engine", "engines", "forwards"):
        monkeypatch.setattr(f"chuk_lib.inference.decoder.{module}.on_cpu", lambda: False)
    for decode, most_runs in (("auto", 8), ("auto", 1), ("plain", 8)):
        monkeypatch.setattr("chuk_lib.inference.decoder.forwards.MOST_RUNS", most_runs)
        for budget in (None, 200):
            got = rollouts(
                model, tokenizer, MIXED, config, group_size=3, token_budget=budget, decode=decode
            )
            assert ids_of(got) == ids_of(want)
            np.testing.assert_allclose(got[4].logps, want[4].logps, atol=1e-5)


def test_numbers_members_and_seeds_choose_what_is_drawn() -> None:
    model, tokenizer = loaded()
    same = [prompts()[0]] * 2
    first = ids_of(rollouts(model, tokenizer, same, WARM, group_size=8))
    assert len({tuple(ids) for ids in first}) == 16
    again = rollouts(model, tokenizer, same, WARM, group_size=8, numbers=[1, 0])
    assert ids_of(again) == [*first[8:], *first[:8]]
    assert ids_of(rollouts(model, tokenizer, same, WARM, group_size=3)) == [
        *first[:3],
        *first[8:11],
    ]
    other = SamplingConfig(max_tokens=12, temperature=1.3, seed=6)
    assert ids_of(rollouts(model, tokenizer, same, other, group_size=8)) != first


def test_without_a_seed_the_global_state_decides() -> None:
    model, tokenizer = loaded()
    config = SamplingConfig(max_tokens=8, temperature=1.0)
    mx.random.seed(9)
    drawn = ids_of(rollouts(model, tokenizer, prompts(), config))
    assert drawn != ids_of(rollouts(model, tokenizer, prompts(), config))
    mx.random.seed(9)
    assert drawn == ids_of(rollouts(model, tokenizer, prompts(), config))


def test_rows_end_with_any_end_token_and_make_room() -> None:
    model, tokenizer = loaded()
    first = rollouts(model, tokenizer, prompts(), WARM, group_size=4)
    before = set(tokenizer.eos_token_ids)
    try:
        ends = {int(first[0].ids[3]), int(first[5].ids[6]), *before}
        tokenizer.eos_token_ids = ends
        for budget in (None, 150):
            cut = rollouts(model, tokenizer, prompts(), WARM, group_size=4, token_budget=budget)
            for whole, part in zip(first, cut, strict=True):
                at = next((i for i, token in enumerate(whole.ids.tolist()) if token in ends), None)
                assert part.ids.tolist() == whole.ids.tolist()[: None if at is None else at + 1]
                np.testing.assert_allclose(part.logps, whole.logps[: len(part.logps)], atol=1e-5)
                assert part.reason == ("length" if at is None else "eos")
                kept = part.ids[:-1] if part.reason == "eos" else part.ids
                assert part.text == tokenizer.decode(kept.tolist(), skip_special_tokens=True)
    finally:
        tokenizer.eos_token_ids = before


def test_stop_texts_end_a_row_with_the_token_that_completes_one() -> None:
    model, tokenizer = loaded()
    config = SamplingConfig(max_tokens=30, temperature=1.0, seed=4)
    free = rollouts(model, tokenizer, prompts(), config, group_size=2)
    stops = [free[0].text[9:11], free[3].text[4:5]]
    cut = rollouts(
        model,
        tokenizer,
        prompts(),
        SamplingConfig(max_tokens=30, temperature=1.0, seed=4, stop=stops),
        group_size=2,
    )
    for whole, part in zip(free, cut, strict=True):
        texts = [
            tokenizer.decode(whole.ids[:n].tolist(), skip_special_tokens=True)
            for n in range(len(whole.ids) + 1)
        ]
        ends = [n for n, text in enumerate(texts) if any(stop in text for stop in stops)]
        assert part.ids.tolist() == whole.ids[: ends[0] if ends else None].tolist()
        assert part.reason == ("stop" if ends else whole.reason)
        assert not any(stop in part.text for stop in stops)
        assert texts[-1].startswith(part.text)
    assert {part.reason for part in cut} >= {"stop"}


def test_samples_follow_the_filtered_distribution() -> None:
    model, tokenizer = loaded()
    config = SamplingConfig(max_tokens=1, temperature=0.9, top_k=20, top_p=0.9, min_p=0.01, seed=2)
    drawn = [
        int(r.ids[0]) for r in rollouts(model, tokenizer, [prompts()[0]], config, group_size=3000)
    ]
    from chuk_lib.inference.decoder.sampling import filtered_logps

    expected = np.exp(np.array(filtered_logps(model(mx.array([prompts()[0]]))[:, -1], config)))[0]
    counts = np.bincount(drawn, minlength=len(expected))
    kept = expected > 0
    assert not counts[~kept].any()
    squares = (counts[kept] - 3000 * expected[kept]) ** 2 / (3000 * expected[kept])
    degrees = kept.sum() - 1
    assert squares.sum() < degrees + 4 * np.sqrt(2 * degrees)


def peak_of(budget: int, group_size: int = 4) -> int:
    model, tokenizer = loaded()
    with Decoder(model, tokenizer, token_budget=budget) as decoder:
        decoder.submit(
            [
                Request(ids, WARM, at, m)
                for at, ids in enumerate(prompts())
                for m in range(group_size)
            ]
        )
        decoder.run()
    return decoder.peak_rows


def test_the_budget_bounds_the_rows() -> None:
    columns = max(map(len, prompts())) + 12
    assert peak_of(10**9) == 4 * len(prompts())
    assert peak_of(5 * columns) <= 5 + 4  # shorter prompts leave room for more rows
    assert peak_of(1) == 1
    limits = Budget(100)
    assert limits.fits(1, 1000)
    assert limits.fits(2, 50)
    assert not limits.fits(3, 40)
    assert not Budget(100, most_rows=2).fits(3, 1)


def test_the_default_budget_comes_from_the_model() -> None:
    model = tiny("llama")
    # Layers, keys and values, heads, width, float32.
    assert token_bytes(model) == 2 * 2 * 2 * 16 * 4
    assert default_token_budget(model) * token_bytes(model) > 1 << 26
    assert token_bytes(tiny("mamba2")) > 0


@pytest.mark.parametrize("decode", ["plain", "window", "layers"])
def test_nothing_is_held_when_the_last_row_has_ended(decode: Any) -> None:
    model, tokenizer = loaded()
    rollouts(model, tokenizer, prompts(), WARM, group_size=8, decode=decode)
    gc.collect()
    before = mx.get_active_memory()
    gc.disable()
    try:
        rollouts(model, tokenizer, prompts(), WARM, group_size=8, decode=decode)
        # Less than a column.
        assert mx.get_active_memory() - before < 8 * len(prompts()) * token_bytes(model)
    finally:
        gc.enable()


@pytest.mark.parametrize(("backend", "known", "free"), [("cuda", CUDA, 70), ("metal", METAL, 12)])
def test_a_gpu_s_memory_decides_how_many_rows_decode_together(
    backend: str, known: dict[str, object], free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    cost = token_bytes(model)
    total = known.get("total_memory", 12 << 30)
    monkeypatch.setattr(rollout_budget, "on_cpu", lambda: False)
    monkeypatch.setattr(rollout_budget, "token_bytes", lambda model: cost)
    as_if_on(monkeypatch, backend, known)
    assert default_token_budget(model) * cost == pytest.approx(
        0.5 * ((free << 30) - 0.1 * total), rel=1e-3
    )


@pytest.mark.parametrize(("backend", "known"), [("cuda", CUDA), ("metal", METAL)])
def test_a_gpu_joins_weights_when_copies_are_a_small_part_of_its_memory(
    backend: str, known: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = read_llama(tiny("llama"))
    assert parts is not None
    size = sum(
        b.q.weight.nbytes + 2 * b.k.weight.nbytes + 2 * b.gate.weight.nbytes for b in parts.blocks
    )
    as_if_on(monkeypatch, backend, known)
    assert may_join(parts)
    as_if_on(monkeypatch, "cuda", {"total_memory": 19 * size, "free_memory": 19 * size})
    assert not may_join(parts)


def test_completions_are_told_as_they_end() -> None:
    model, tokenizer = loaded()
    told: list[Rollout] = []
    found = rollouts(
        model, tokenizer, prompts(), WARM, group_size=2, token_budget=200, on_finish=told.append
    )
    assert sorted(map(id, told)) == sorted(map(id, found))


def test_a_long_prompt_runs_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded()
    asked = [[(i * 7) % 300 + 4 for i in range(length)] for length in (200, 90)]
    whole = rollouts(model, tokenizer, asked, WARM, group_size=2)
    monkeypatch.setattr("chuk_lib.inference.decoder.prefill.prefill_tokens", lambda: 64)
    pieces = rollouts(model, tokenizer, asked, WARM, group_size=2)
    assert ids_of(pieces) == ids_of(whole)
    np.testing.assert_allclose(pieces[0].logps, whole[0].logps, atol=1e-5)


def test_the_fast_engine_is_taken_where_it_is_right(cpu: None) -> None:
    assert isinstance(new_engine(loaded()[0], 12), NumpyEngine)
    assert isinstance(new_engine(tiny("gpt2"), 12), ModelEngine)
    half, _ = load_model(LLAMA, dtype="bfloat16", local_only=True)
    assert isinstance(new_engine(half, 12), ModelEngine)
    unlike, _ = load_model(LLAMA, local_only=True)
    unlike.model.layers[1].self_attn.rope = nn.RoPE(16, base=10.0)
    assert isinstance(new_engine(unlike, 12), NumpyEngine)  # every layer's own rotation is read
    unlike.model.layers[1].self_attn.scale *= -1.0
    found = rollouts(unlike, loaded()[1], MIXED, WARM, decode="layers")
    assert largest_error(unlike, MIXED, found, 1.3) < 1e-5


def test_rows_that_have_ended_may_stay_while_others_go_on() -> None:
    config = SamplingConfig(max_tokens=4, temperature=1.0)
    engine = new_engine(loaded()[0], 4)
    engine.admit([Arrival([5, 6, 7], config, 0, 0, 4)], engine.prefill([[5, 6, 7]]))
    for _ in range(4):
        engine.step()
    engine.admit([Arrival([5, 6, 7], config, 1, 0, 4)], engine.prefill([[5, 6, 7]]))
    late = [engine.step()[0][1] for _ in range(4)]
    engine = new_engine(loaded()[0], 4)
    engine.admit([Arrival([5, 6, 7], config, 1, 0, 4)], engine.prefill([[5, 6, 7]]))
    assert [engine.step()[0][0] for _ in range(4)] == late


def test_the_context_is_the_limit() -> None:
    model, tokenizer = loaded()
    with pytest.raises(ModelError, match="600 tokens"):
        rollouts(model, tokenizer, [[5] * 600], WARM)
    found = rollouts(model, tokenizer, [[5] * 508, [5] * 9], WARM)
    assert [len(r.ids) for r in found] == [4, 12]


def test_impossible_requests_are_refused() -> None:
    model, tokenizer = loaded()
    assert rollouts(model, tokenizer, [], WARM) == []
    for wrong in ({"group_size": 0}, {"numbers": [1, 2, 3]}, {"token_budget": 0}):
        with pytest.raises(ConfigError):
            rollouts(model, tokenizer, [[5, 6]], WARM, **wrong)
    with pytest.raises(ConfigError, match="prompt 1 is empty"):
        rollouts(model, tokenizer, [[5], []], WARM)


def test_a_broken_model_is_told_and_its_mode_put_back() -> None:
    model, tokenizer = load_model(LLAMA, local_only=True)
    model.train()
    rollouts(model, tokenizer, [[5, 6]], WARM)
    assert model.training
    model.lm_head.weight = model.lm_head.weight * float("nan")
    for decode in ("auto", "plain"):
        with pytest.raises(ModelError, match="not a number"):
            rollouts(model, tokenizer, [[5, 6]], WARM, decode=decode)
    assert model.training


def test_the_parity_suite_passes() -> None:
    checks = parity.run(PARITY, ["generation"])
    assert len(checks) > 20
    assert [check for check in checks if not check.passed] == []
