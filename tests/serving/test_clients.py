"""The `openai` and `anthropic` clients against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.serving.servers import LLAMA, MODELS, NAME, Server, serving

HELLO: Any = [{"role": "user", "content": "say hello"}]
HOT: dict[str, Any] = {"temperature": 2, "max_tokens": 24, "messages": HELLO, "model": NAME}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "sunny": {"type": "boolean"}},
    "required": ["city", "sunny"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "of a city", "parameters": SCHEMA},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--adapter", f"bent={MODELS / 'llama-tiny-lora-adapter'}") as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as one:
        yield one


def test_models_are_what_was_loaded(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME, "bent"]
    assert client.models.retrieve("bent").id == "bent"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="/etc", messages=HELLO)
    assert caught.value.code == "model_not_found"


def test_an_adapter_answers_by_its_name(client: openai.OpenAI) -> None:
    texts = {
        name: client.completions.create(model=name, prompt="hello", temperature=0).choices[0].text
        for name in (NAME, "bent")
    }
    assert texts[NAME] != texts["bent"]


@pytest.mark.parametrize("seed", range(4))
def test_tokens_that_are_told_are_the_text_at_temperature_2(
    client: openai.OpenAI, seed: int
) -> None:
    said = client.chat.completions.create(**HOT, seed=seed, n=6, logprobs=True, top_logprobs=20)
    for choice in said.choices:
        told = choice.logprobs.content
        assert "".join(one.token for one in told) == choice.message.content
        for one in told:
            assert bytes(one.bytes).decode() == one.token
            tops = [top.logprob for top in one.top_logprobs]
            assert len(tops) == 20
            assert tops == sorted(tops, reverse=True)
            assert one.logprob <= tops[0] + 1e-5
            if one.logprob >= tops[-1]:
                assert (one.token, one.logprob) in [
                    (top.token, top.logprob) for top in one.top_logprobs
                ]


def test_a_stream_is_the_answer_with_usage_and_log_probs(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {**HOT, "seed": 3, "n": 3, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options)
    stream = list(
        client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    )
    assert stream[-1].choices == []
    assert stream[-1].usage.total_tokens == whole.usage.total_tokens
    for choice in whole.choices:
        own = [part.choices[0] for part in stream[:-1] if part.choices[0].index == choice.index]
        assert "".join(one.delta.content or "" for one in own) == choice.message.content
        told = [entry for one in own if one.logprobs for entry in one.logprobs.content]
        assert told == choice.logprobs.content
        assert own[-1].finish_reason == choice.finish_reason


def test_stop_ends_before_its_text_in_streams_too(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {**HOT, "seed": 5, "max_tokens": 60}
    free = client.chat.completions.create(**options).choices[0].message.content
    stop = free[7:9]
    options |= {"stop": ["never there", stop], "logprobs": True}
    said = client.chat.completions.create(**options).choices[0]
    assert said.message.content == free[: free.index(stop)]
    assert said.finish_reason == "stop"
    assert "".join(one.token for one in said.logprobs.content) == said.message.content
    parts = list(client.chat.completions.create(**options, stream=True))
    assert "".join(p.choices[0].delta.content or "" for p in parts) == said.message.content


def test_seeds_decide_and_settings_have_an_effect(client: openai.OpenAI) -> None:
    def said(**more: Any) -> str:
        return (
            client.chat.completions.create(**{**HOT, "seed": 1, **more}).choices[0].message.content
        )

    assert said() == said()
    for more in (
        {"seed": 2},
        {"temperature": 0.2},
        {"top_p": 0.1},
        {"extra_body": {"top_k": 1}},
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
    ):
        assert said(**more) != said(), more
    assert said(logit_bias={"42": 100}) == said(logit_bias={"42": 100}, seed=9)
    assert said(max_completion_tokens=5, max_tokens=None) == said()[: len(said(max_tokens=5))]


def test_an_answer_is_held_to_a_schema(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}
    options: Any = {**HOT, "seed": 1, "max_tokens": 200, "response_format": form}
    found = json.loads(client.chat.completions.create(**options).choices[0].message.content)
    assert found["city"] in ("Rome", "Oslo")
    form["json_schema"]["schema"] = {"type": "object", "unevaluatedProperties": 1}
    with pytest.raises(openai.BadRequestError, match="schema"):
        client.chat.completions.create(**options)
    # llguidance lets it pass; the finished text is looked at.
    form["json_schema"]["schema"] = {"oneOf": [{"type": "boolean"}, {"enum": [True, False]}]}
    with pytest.raises(openai.InternalServerError, match="not what was asked for"):
        client.chat.completions.create(**{**options, "max_tokens": 400})


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_must_be_called_is(client: openai.OpenAI, stream: bool) -> None:
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    options: Any = {
        **HOT,
        "seed": 1,
        "max_tokens": 400,
        "tools": [TOOL],
        "tool_choice": choice,
    }
    if stream:
        parts = list(client.chat.completions.create(**options, stream=True))
        assert not any(one.choices[0].delta.content for one in parts)
        (call,) = next(
            one.choices[0].delta.tool_calls for one in parts if one.choices[0].delta.tool_calls
        )
        reason = parts[-1].choices[0].finish_reason
    else:
        said = client.chat.completions.create(**options).choices[0]
        (call,), reason = said.message.tool_calls, said.finish_reason
    assert (call.function.name, reason) == ("weather", "tool_calls")
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    free = client.chat.completions.create(**{**options, "tool_choice": "auto", "max_tokens": 8})
    assert free.choices[0].message.tool_calls is None


def test_completions_take_lists_and_ids_and_echo(client: openai.OpenAI) -> None:
    options: Any = {"model": NAME, "seed": 4, "max_tokens": 6}
    alone = client.completions.create(prompt="hello", **options).choices[0].text
    many = client.completions.create(prompt=["hello", "there"], n=2, echo=True, **options)
    assert [one.index for one in many.choices] == [0, 1, 2, 3]
    assert [one.text[:5] for one in many.choices] == ["hello"] * 2 + ["there"] * 2
    assert many.choices[0].text == "hello" + alone
    ids = [100, 101, 102]
    for prompt in (ids, [ids]):
        echoed = client.completions.create(prompt=prompt, echo=True, **options).choices[0].text
        plain = client.completions.create(prompt=prompt, **options).choices[0].text
        assert echoed.endswith(plain)
        assert len(echoed) > len(plain)
    by_ids = client.completions.create(prompt=[ids, ids], logprobs=3, **options)
    assert by_ids.usage.prompt_tokens == 6
    for one in by_ids.choices:
        assert "".join(one.logprobs.tokens) == one.text
        for place, token in zip(one.logprobs.text_offset, one.logprobs.tokens, strict=True):
            assert one.text[place:].startswith(token)
    parts = list(client.completions.create(prompt="hello", stream=True, **options))
    assert "".join(part.choices[0].text for part in parts) == alone


def test_embeddings_are_means_of_hidden_states(client: openai.OpenAI) -> None:
    import mlx.core as mx
    import numpy as np

    from chuk_lib.models import load_model

    texts = ["hello there", "good bye"]
    found = client.embeddings.create(model=NAME, input=texts)
    model, tokenizer = load_model(LLAMA, local_only=True)
    for text, one in zip(texts, found.data, strict=True):
        mean = np.array(model.model(mx.array([tokenizer.encode(text)]))[0].mean(axis=0))
        assert one.embedding == pytest.approx((mean / np.linalg.norm(mean)).tolist(), abs=1e-4)
    plain = client.embeddings.create(model=NAME, input=texts, encoding_format="float")
    assert plain.data[1].embedding == pytest.approx(found.data[1].embedding)


def test_anthropics_client(claude: anthropic.Anthropic) -> None:
    options: Any = {"model": NAME, "max_tokens": 16, "messages": HELLO}
    more: Any = {"extra_body": {"seed": 3, "temperature": 0.9}}
    said = claude.messages.create(**options, system="be kind", **more)
    assert (said.stop_reason, said.usage.output_tokens) == ("max_tokens", 16)
    with claude.messages.stream(**options, system="be kind", **more) as stream:
        got = stream.get_final_message()
    text = said.content[0].text
    assert (got.content[0].text, got.usage.output_tokens) == (text, 16)
    cut = claude.messages.create(**options, system="be kind", stop_sequences=[text[5:8]], **more)
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", text[5:8])
    counted = claude.messages.count_tokens(model=NAME, messages=HELLO, system="be kind")
    assert counted.input_tokens == said.usage.input_tokens
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(**{**options, "max_tokens": 0})


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_tools(claude: anthropic.Anthropic, stream: bool) -> None:
    options: Any = {
        "model": NAME,
        "max_tokens": 400,
        "messages": HELLO,
        "tools": [{"name": "weather", "description": "of a city", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "weather"},
        "extra_body": {"seed": 3},
    }
    if stream:
        with claude.messages.stream(**options) as parts:
            said = parts.get_final_message()
    else:
        said = claude.messages.create(**options)
    (block,) = said.content
    assert (block.type, block.name, said.stop_reason) == ("tool_use", "weather", "tool_use")
    assert block.input["city"] in ("Rome", "Oslo")
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
    options["messages"] = [
        *HELLO,
        {
            "role": "assistant",
            "content": [block.model_dump(include={"type", "id", "name", "input"})],
        },
        {"role": "user", "content": [result, {"type": "text", "text": "and now?"}]},
    ]
    assert claude.messages.create(**options).content[0].type == "tool_use"
