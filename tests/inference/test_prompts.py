"""Prompts of every kind become the right ids; what does not fit is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.inference.prompts import context_length, encode_prompt, room
from chuk_lib.models.provenance import provenance_of, remember
from tests.inference.generation_models import loaded


def as_text(prompt: Any, **options: Any) -> str:
    tokenizer = loaded()[1]
    return str(tokenizer.decode(encode_prompt(tokenizer, prompt, **options)))


def test_text_is_a_user_s_message_where_there_is_a_template() -> None:
    assert as_text("Hi") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert as_text("Hi", chat=True) == as_text("Hi") == as_text([{"role": "user", "content": "Hi"}])
    assert as_text("Hi", chat=False) == "Hi"


def test_a_system_message_comes_first() -> None:
    assert as_text("Hi", system="Be kind").startswith(
        "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi"
    )


def test_an_assistant_s_last_message_is_continued() -> None:
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    assert as_text(said).endswith("<|im_start|>assistant\nWell")


def test_ids_are_taken_as_they_are() -> None:
    assert encode_prompt(loaded()[1], [5, 6, 7]) == [5, 6, 7]


class WithBegin:
    """A tokenizer that puts a begin token before every text, and none in its template."""

    has_chat_template = False
    bos_token_id = 1

    def encode(self, text: str) -> list[int]:
        return [1, *[1 if word == "<s>" else 9 for word in text.split()]]


def test_a_begin_token_is_never_put_twice() -> None:
    assert encode_prompt(WithBegin(), "a b") == [1, 9, 9]
    assert encode_prompt(WithBegin(), "<s> a b") == [1, 9, 9]
    assert encode_prompt(WithBegin(), "") == [1]


def test_what_cannot_be_is_told() -> None:
    tokenizer = loaded()[1]
    with pytest.raises(ConfigError, match="empty"):
        encode_prompt(tokenizer, [])
    with pytest.raises(ConfigError, match="empty"):
        encode_prompt(tokenizer, "", chat=False)
    with pytest.raises(ConfigError, match="system message"):
        encode_prompt(tokenizer, "Hi", chat=False, system="x")
    with pytest.raises(ConfigError, match="token ids"):
        encode_prompt(tokenizer, [1, 2], system="x")
    with pytest.raises(ModelError, match="no chat template"):
        encode_prompt(WithBegin(), "Hi", chat=True)
    with pytest.raises(ModelError, match="chat template does not take"):
        encode_prompt(tokenizer, [{"role": "user"}])


def test_room_is_what_the_context_leaves() -> None:
    model = loaded()[0]
    assert context_length(model) == 512
    assert room(model, 500, 100) == 12
    assert room(model, 500, 5) == 5
    for full in (512, 600):
        with pytest.raises(ModelError, match=f"{full} tokens.*512"):
            room(model, full, 1)


def test_a_stretched_context_is_longer() -> None:
    model = loaded()[0]
    known = provenance_of(model)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    try:
        for rope, length in ((yarn, 2048), (llama3, 512)):
            remember(model, replace(known, config=known.config | {"rope_scaling": rope}))
            assert context_length(model) == length
    finally:
        remember(model, known)
