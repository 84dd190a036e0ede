"""Templates of known families, without markers of their own, learn what TRL's edited copies of them
learn.

The fixtures are small templates of the same construction as the real ones; `test_real_masks.py` has
those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from chuk_lib.data import Renderer, read_records
from chuk_lib.data.tokenizers.templates import render
from chuk_lib.data.tokenizers.training_forms import training_form
from tests.tokenizers.conftest import TEMPLATES

FAMILIES = {
    "thinks": "Qwen3",
    "shares_a_branch": "Qwen2.5",
    "joins_header_and_text": "Qwen3-2507",
    "channels": "gpt-oss",
    "one_line_for_all_roles": "Gemma",
    "ends_with_eos": "Phi-3",
    "plain_chatml": "plain ChatML",
    "stops_at_next_turn": "GLM-4 MoE",
}
USER = {"role": "user", "content": "why?"}
TALK = [
    USER,
    {"role": "assistant", "content": "one"},
    USER,
    {"role": "assistant", "content": "two 🙂"},
]
CALLS = [
    USER,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "add", "arguments": {}}}],
    },
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "four"},
]
THOUGHTS = [
    (
        {**message, "reasoning_content": f"about {message['content']}"}
        if message["role"] == "assistant"
        else message
    )
    for message in TALK
]


def source(name: str) -> str:
    return (TEMPLATES / "families" / f"{name}.jinja").read_text()


def learned(
    tokenizer: Any, messages: list[dict[str, Any]], renderer: Renderer | None = None
) -> list[str]:
    """The runs of learned tokens as text."""
    renderer = renderer or Renderer(tokenizer, assistant_only_loss=True)
    example = next(renderer.render(read_records([{"messages": messages}])))
    edges = np.flatnonzero(
        np.diff(np.concatenate([[False], example.loss_mask, [False]]).astype(int))
    )
    runs = zip(edges[::2], edges[1::2], strict=True)
    return [
        tokenizer.decode(example.input_ids[a:b].tolist(), skip_special_tokens=False)
        for a, b in runs
    ]


LEARNED = [
    (
        "thinks",
        TALK,
        ["<think>\n\n</think>\n\none<|im_end|>\n", "<think>\n\n</think>\n\ntwo 🙂<|im_end|>\n"],
    ),
    (
        "thinks",
        THOUGHTS,
        [
            "<think>\nabout one\n</think>\n\none<|im_end|>\n",
            "<think>\nabout two 🙂\n</think>\n\ntwo 🙂<|im_end|>\n",
        ],
    ),
    (
        "thinks",
        CALLS,
        [
            "<think>\n\n</think>\n\n<tool_call>add</tool_call><|im_end|>\n",
            "<think>\n\n</think>\n\nfour<|im_end|>\n",
        ],
    ),
    ("shares_a_branch", TALK, ["\none<|im_end|>\n", "\ntwo 🙂<|im_end|>\n"]),
    ("shares_a_branch", CALLS, ["\n<tool_call>add</tool_call><|im_end|>\n", "\nfour<|im_end|>\n"]),
    ("joins_header_and_text", TALK, ["one<|im_end|>\n", "two 🙂<|im_end|>\n"]),
    (
        "joins_header_and_text",
        CALLS,
        ["<tool_call>add</tool_call><|im_end|>\n", "four<|im_end|>\n"],
    ),
    (
        "channels",
        TALK,
        [
            "<|start|>assistant<|channel|>final<|message|>one<|end|>",
            "<|start|>assistant<|channel|>final<|message|>two 🙂<|return|>",
        ],
    ),
    (
        "channels",
        CALLS,
        [
            "<|start|>assistant to=add<|message|>{}<|call|>",
            "<|start|>assistant<|channel|>final<|message|>four<|return|>",
        ],
    ),
    (
        "channels",
        THOUGHTS[2:],
        [
            "<|start|>assistant<|channel|>analysis<|message|>about two 🙂<|end|>"
            "<|start|>assistant<|channel|>final<|message|>two 🙂<|return|>"
        ],
    ),
    ("one_line_for_all_roles", TALK, ["one<end_of_turn>\n", "two 🙂<end_of_turn>\n"]),
    ("ends_with_eos", TALK, ["one<|end|>\n", "two 🙂<|end|>\n<|im_end|>"]),
    ("plain_chatml", TALK, ["one<|im_end|>", "two 🙂<|im_end|>"]),
    (
        "stops_at_next_turn",
        TALK,
        ["\n<think></think>\none<|user|>", "\n<think></think>\ntwo 🙂<|user|>"],
    ),
    (
        "stops_at_next_turn",
        CALLS,
        [
            "\n<think></think>\n<tool_call>add\n</tool_call><|observation|>",
            "\n<think></think>\nfour<|user|>",
        ],
    ),
    (
        "stops_at_next_turn",
        THOUGHTS,
        ["\n<think></think>\none<|user|>", "\n<think>about two 🙂</think>\ntwo 🙂<|user|>"],
    ),
]


@pytest.mark.parametrize(("name", "messages", "want"), LEARNED)
def test_what_is_learned(
    with_template: Callable[[str | None], Any],
    name: str,
    messages: list[dict[str, Any]],
    want: list[str],
) -> None:
    assert learned(with_template(source(name)), messages) == want


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_is_known_and_its_markers_change_no_text(name: str) -> None:
    form = training_form(source(name))
    assert form is not None
    assert form.family == FAMILIES[name]
    for messages in (TALK, CALLS, THOUGHTS[2:], TALK[:1]):
        for prompt in (False, True):
            given = {"prompt": prompt, "values": {"eos_token": "<|im_end|>"}}
            # There it shows what the template hides.
            if not (form.keeps_reasoning and messages in (TALK, CALLS)):
                want = render(source(name), messages, **given).text
                if form.adds_stop and messages[-1]["role"] == "assistant":
                    header = "<|assistant|>" if prompt else ""
                    want = want.removesuffix(header) + "<|user|>" + header
                assert render(form.template, messages, **given).text == want


def test_templates_with_markers_or_of_no_family_stay() -> None:
    assert (
        training_form("{% generation %}" + source("plain_chatml") + "{% endgeneration %}") is None
    )
    assert training_form("{% for m in messages %}{{ m.content }}{% endfor %}") is None
    assert (
        training_form(source("plain_chatml") + "{% if messages[0].tool_calls %}x{% endif %}")
        is None
    )


def test_only_assistant_masks_use_the_copy(with_template: Callable[[str | None], Any]) -> None:
    thinks = with_template(source("thinks"))
    example = next(Renderer(thinks).render(read_records([{"messages": TALK}])))
    text = thinks.decode(example.input_ids.tolist(), skip_special_tokens=False)
    assert text == render(source("thinks"), TALK).text
    assert "<think>" not in text.split("two")[0].split("one")[0]
    assert thinks._tokenizer.chat_template == source("thinks")


def test_a_note_says_that_reasoning_is_kept(with_template: Callable[[str | None], Any]) -> None:
    renderer = Renderer(with_template(source("thinks")), assistant_only_loss=True)
    learned(renderer._encoder.tokenizer, TALK[2:], renderer)
    assert not renderer.notes
    learned(renderer._encoder.tokenizer, TALK, renderer)
    assert "every assistant turn keeps its reasoning, as TRL trains Qwen3" in renderer.notes[0]


def test_prompt_and_completion_keep_to_the_copy(with_template: Callable[[str | None], Any]) -> None:
    row = {"prompt": TALK[:3], "completion": TALK[3:]}
    thinks = with_template(source("thinks"))
    example = next(Renderer(thinks, assistant_only_loss=True).render(read_records([row])))
    text = thinks.decode(example.input_ids[example.loss_mask].tolist(), skip_special_tokens=False)
    assert text == "<think>\n\n</think>\n\ntwo 🙂<|im_end|>\n"


def test_all_of_a_character_is_learned_where_a_block_ends_in_it(
    with_template: Callable[[str | None], Any],
) -> None:
    """🙂 is four tokens here; a template may put no token after it."""
    template = (
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{"
        " m.content }}"
    )
    template += "{% endgeneration %}{% else %}{{ m.content }}{% endif %} {% endfor %}"
    assert learned(with_template(template), TALK) == ["one", " two 🙂"]  # ` t` is one token
