"""Writing: one, many or streamed give the same; seeds, stops, limits and adapters do what they
say."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from chuk_lib.errors import ModelError
from chuk_lib.inference import Completion, SamplingConfig, generate, generate_many, stream
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.models import load_model
from chuk_lib.models.randomness import evaluating
from tests.inference.generation_models import LLAMA, MODELS, PARITY, answers, loaded, prompts

SHORT = SamplingConfig(max_tokens=16)


def ids_of(completions: list[Completion]) -> list[list[int]]:
    return [list(completion.tokens) for completion in completions]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_what_transformers_writes(name: str) -> None:
    model, tokenizer = loaded(name)
    assert ids_of(
        [generate(model, tokenizer, prompt, SHORT) for prompt in prompts(name)]
    ) == answers(name)
    assert ids_of(generate_many(model, tokenizer, prompts(name), SHORT)) == answers(name)


@pytest.mark.parametrize("batch_rows", [1, 2, 5, 64])
def test_many_rows_give_what_each_gives_alone(batch_rows: int) -> None:
    model, tokenizer = loaded()
    asked = [prompt[: 1 + (7 * i) % len(prompt)] for i, prompt in enumerate(prompts() * 2)]
    alone = [generate(model, tokenizer, prompt, SHORT) for prompt in asked]
    together = generate_many(model, tokenizer, asked, SHORT, batch_rows=batch_rows)
    assert ids_of(together) == ids_of(alone)
    assert [c.text for c in together] == [c.text for c in alone]
    assert [c.finish_reason for c in together] == [c.finish_reason for c in alone]
    assert [c.prompt_tokens for c in together] == [len(prompt) for prompt in asked]


def test_rows_that_end_early_make_room() -> None:
    model, tokenizer = loaded()
    first = generate(model, tokenizer, prompts()[0], SHORT)
    ends = [first.tokens[3], *tokenizer.eos_token_ids]
    before = set(tokenizer.eos_token_ids)
    try:
        tokenizer.eos_token_ids = ends
        asked = prompts() * 5
        together = generate_many(model, tokenizer, asked, SHORT, batch_rows=4)
        assert ids_of(together) == ids_of(
            [generate(model, tokenizer, prompt, SHORT) for prompt in asked]
        )
        assert together[0].finish_reason == "eos"
        assert together[0].tokens == first.tokens[: first.tokens.index(ends[0]) + 1]
        assert together[0].text == tokenizer.decode(
            together[0].tokens[:-1], skip_special_tokens=True
        )
    finally:
        tokenizer.eos_token_ids = before


def test_a_stream_is_the_completion_in_pieces() -> None:
    model, tokenizer = loaded()
    config = SamplingConfig(max_tokens=30, temperature=1.0, seed=4)
    chunks = list(stream(model, tokenizer, "Tell me", config))
    whole = generate(model, tokenizer, "Tell me", config, logprobs=True)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(chunk.token for chunk in chunks) == whole.tokens
    assert whole.logprobs == pytest.approx([chunk.logprob for chunk in chunks], abs=1e-5)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == whole.finish_reason
    assert whole.generation_tokens == len(chunks)
    assert whole.tokens_per_second > 0


def test_logprobs_are_those_of_a_forward_pass_at_the_temperature() -> None:
    model, tokenizer = loaded()
    row = generate(
        model,
        tokenizer,
        prompts()[0],
        SamplingConfig(max_tokens=8, temperature=1.5, seed=1),
        logprobs=True,
    )
    ids = mx.array([[*prompts()[0], *row.tokens]])
    logits = model(ids)[0, len(prompts()[0]) - 1 : -1] / 1.5
    logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    expected = [logps[i, token].item() for i, token in enumerate(row.tokens)]
    assert row.logprobs == pytest.approx(expected, abs=1e-4)
    assert generate(model, tokenizer, prompts()[0], SHORT).logprobs is None


def test_a_seed_repeats_and_another_does_not() -> None:
    model, tokenizer = loaded()

    def write(seed: int | None, **more: Any) -> list[list[int]]:
        config = SamplingConfig(max_tokens=12, temperature=1.0, seed=seed)
        return ids_of(generate_many(model, tokenizer, prompts() * 3, config, **more))

    assert write(1) == write(1) == write(1, batch_rows=4)
    assert write(1) != write(2)
    same_prompt = write(1)[:: len(prompts())]
    assert same_prompt[0] != same_prompt[1]
    mx.random.seed(9)
    drawn = write(None)
    assert drawn != write(None)
    mx.random.seed(9)
    assert drawn == write(None)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 2.0},
        {"top_k": 2},
        {"top_p": 0.2},
        {"min_p": 0.9},
        {"repetition_penalty": 5.0},
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"max_tokens": 3},
    ],
    ids=str,
)
def test_every_option_changes_what_is_written(change: dict[str, Any]) -> None:
    model, tokenizer = loaded()
    options = {"max_tokens": 24, "temperature": 1.0, "seed": 3}
    plain = generate_many(model, tokenizer, prompts(), SamplingConfig(**options))
    changed = generate_many(model, tokenizer, prompts(), SamplingConfig(**{**options, **change}))
    assert ids_of(plain) != ids_of(changed)


def test_the_penalty_sees_prompt_and_answer() -> None:
    model, tokenizer = loaded()
    prompt = prompts()[0]
    row = generate(model, tokenizer, prompt, SamplingConfig(max_tokens=24, repetition_penalty=1e9))
    assert len({*row.tokens}) == len(row.tokens)
    assert not {*row.tokens} & {*prompt}
    many = generate_many(
        model, tokenizer, prompts(), SamplingConfig(max_tokens=24, repetition_penalty=1e9)
    )
    assert many[0].tokens == row.tokens


def test_a_stop_text_ends_the_answer_and_is_left_out() -> None:
    model, tokenizer = loaded()
    whole = generate(model, tokenizer, prompts()[0], SamplingConfig(max_tokens=30))
    stop = whole.text[3:5]
    config = SamplingConfig(max_tokens=30, stop=[stop, "never written"])
    cut = generate(model, tokenizer, prompts()[0], config)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert len(cut.tokens) < len(whole.tokens)
    assert (
        "".join(chunk.text for chunk in stream(model, tokenizer, prompts()[0], config)) == cut.text
    )
    assert generate_many(model, tokenizer, prompts(), config)[0].text == cut.text


def test_the_context_is_the_limit() -> None:
    model, tokenizer = loaded()
    with pytest.raises(ModelError, match="600 tokens"):
        generate(model, tokenizer, [5] * 600)
    row = generate(model, tokenizer, [5] * 508, SamplingConfig(max_tokens=50))
    assert (len(row.tokens), row.finish_reason) == (4, "length")


def test_a_long_prompt_runs_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded()
    prompt = [(i * 7) % 300 + 4 for i in range(200)]
    whole = generate(model, tokenizer, prompt, SHORT)
    monkeypatch.setattr("chuk_lib.inference.decoder.prefill.prefill_tokens", lambda: 1)
    assert generate(model, tokenizer, prompt, SHORT).tokens == whole.tokens
    assert generate_many(model, tokenizer, [prompt, prompt[:40]], SHORT)[0].tokens == whole.tokens


def test_adapters_are_used() -> None:
    tokenizer = loaded()[1]
    adapted, _ = load_model(
        LLAMA, adapter=PARITY / "models" / "llama-tiny-lora-adapter", local_only=True
    )
    assert ids_of(generate_many(adapted, tokenizer, prompts(), SHORT)) != answers()


def test_the_mode_of_the_model_is_put_back() -> None:
    model, tokenizer = loaded()
    model.train()
    try:
        generate(model, tokenizer, [5, 6], SHORT)
        assert model.training
        with evaluating(model):
            assert not model.training
    finally:
        model.eval()


def test_a_broken_model_is_told() -> None:
    model, tokenizer = load_model(LLAMA, local_only=True)
    model.lm_head.weight = model.lm_head.weight * float("nan")
    for call in (generate, lambda *given: list(stream(*given))):
        with pytest.raises(ModelError, match="not a number"):
            call(model, tokenizer, [5, 6], SHORT)


def test_nothing_asked_nothing_written() -> None:
    model, tokenizer = loaded()
    assert generate_many(model, tokenizer, []) == []
    with Decoder(model, tokenizer) as decoder:
        assert decoder.submit([]) == []
        assert not decoder.busy
        assert decoder.step().rows == []
