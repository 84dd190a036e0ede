"""The renderer against TRL's token ids and masks, and assistant turns found without the template's
help."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data import Example, Renderer, SFTDataset, read_records
from chuk_lib.errors import DataError

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pc_completion_only": ("sft_prompt_completion", {}),
    "pc_full_sequence": ("sft_prompt_completion", {"completion_only_loss": False}),
    "pc_conv_completion_only": ("sft_prompt_completion_conv", {}),
    "conv_full": ("sft_conversational", {}),
    "conv_assistant_only": ("sft_conversational", {"assistant_only_loss": True}),
    "tools_assistant_only": ("sft_tools", {"assistant_only_loss": True}),
    "lm_text": ("sft_lm", {}),
    "lm_text_maxlen16": ("sft_lm", {"max_length": 16}),
}
"""Settings of TRL's `SFTTrainer` behind each case of `sft_tokenized.json`."""


def labels(example: Example) -> list[int]:
    return [
        int(token) if bit else -100
        for token, bit in zip(example.input_ids, example.loss_mask, strict=True)
    ]


@pytest.mark.parametrize("case", CASES)
def test_ids_and_labels_are_trl_s(parity: Path, tokenizer: Any, case: str) -> None:
    name, settings = CASES[case]
    want = json.loads((parity / "expected" / "sft_tokenized.json").read_text())[case]
    data = SFTDataset(
        parity / "data" / f"{name}.jsonl", tokenizer, **{"max_length": 512, **settings}
    )
    assert [example.input_ids.tolist() for example in data] == [row["input_ids"] for row in want]
    assert [labels(example) for example in data] == [row["labels"] for row in want]


@pytest.mark.parametrize("case", ["conv_assistant_only", "tools_assistant_only"])
def test_turns_are_found_without_markers(parity: Path, unmarked: Any, case: str) -> None:
    name, settings = CASES[case]
    want = json.loads((parity / "expected" / "sft_tokenized.json").read_text())[case]
    data = SFTDataset(parity / "data" / f"{name}.jsonl", unmarked, max_length=512, **settings)
    assert [labels(example) for example in data] == [row["labels"] for row in want]


def test_a_conversation_prompt_and_its_completion_combine_both_masks(tokenizer: Any) -> None:
    row = {
        "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "completion": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}],
    }
    assert turns(tokenizer, row) == ["d<|im_end|>"]
    assert turns(tokenizer, row, completion_only_loss=False) == ["b<|im_end|>", "d<|im_end|>"]


def turns(tokenizer: Any, row: dict[str, Any], **settings: Any) -> list[str]:
    """The runs of learned tokens of one row as text."""
    settings = {"assistant_only_loss": True, **settings}
    example = next(Renderer(tokenizer, **settings).render(read_records([row])))
    runs: list[list[int]] = [[]]
    for token, bit in zip(example.input_ids.tolist(), example.loss_mask, strict=True):
        if bit:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs if run]


def talk(*contents: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": text} for index, text in enumerate(contents)]


CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}],
}
USES_TOOL = [
    {"role": "user", "content": "sum?"},
    CALL,
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "It is."},
]

PLAIN = """{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{%- if m.role == 'assistant' %}</s>{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}<|assistant|>{%- endif %}"""
INSTRUCTION = """{%- for m in messages %}{%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- else %}{{ ' ' + m.content + '</s>' }}{%- endif %}{%- endfor %}"""
NO_END = """{%- for m in messages %}{{ '### ' + m.role + '\n' + m.content + '\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '### assistant\n' }}{%- endif %}"""
TRAILER = """{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{%- else %}<eos>{%- endif %}"""
OTHER_END = """{%- for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content }}
{%- if m.role == 'assistant' and loop.last %}<|return|>{%- else %}<|end|>{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{%- endif %}"""
THINKING = """{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}
{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and (loop.index0 > ns.last and (loop.last or m.reasoning)) %}
{{- '<think>\n' + (m.reasoning or '') + '\n</think>\n\n' + m.content.split('</think>')[-1] }}
{%- else %}{{- m.content.split('</think>')[-1] }}{%- endif %}
{%- if m.tool_calls %}<tool_call>add</tool_call>{%- endif %}{{ '<|im_end|>\n' }}
{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"""
CALL_END = """{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{%- if m.tool_calls %}add<|eom|>
{%- else %}<|eot|>{%- endif %}{%- endfor %}{%- if add_generation_prompt %}<|assistant|>{%- endif %}"""
FORCED_THOUGHT = """{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{%- endif %}"""

FOUND: list[tuple[str, list[dict[str, Any]], list[str]]] = [
    (PLAIN, talk("a", "b", "c", "b"), ["b</s>", "b</s>"]),
    (PLAIN, talk("b</s>", "b"), ["b</s>"]),
    (PLAIN, talk("a", "x</s>y", "c", "d"), ["x</s>y</s>", "d</s>"]),
    (INSTRUCTION, talk("a", "b", "c", "d"), [" b</s>", " d</s>"]),
    (NO_END, talk("a", "b", "c", "d"), ["b\n", "d\n"]),
    (TRAILER, talk("a", "b", "c", "d"), ["b<|end|>", "d<|end|>\n<eos>"]),
    (OTHER_END, talk("a", "b", "c", "d"), ["<|message|>b<|end|>", "<|message|>d<|return|>"]),
    (THINKING, talk("a", "b", "c", "d"), ["b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"]),
    (
        THINKING,
        talk("a", "<think>w</think>b", "c", "d"),
        ["b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"],
    ),
    (
        THINKING,
        USES_TOOL,
        ["<tool_call>add</tool_call><|im_end|>", "<think>\n\n</think>\n\nIt is.<|im_end|>"],
    ),
    (
        THINKING,
        [USES_TOOL[0], {**CALL, "reasoning": "why"}, *USES_TOOL[2:], *talk("c", "d")],
        [
            "<tool_call>add</tool_call><|im_end|>",
            "It is.<|im_end|>",
            "<think>\n\n</think>\n\nd<|im_end|>",
        ],
    ),
    (CALL_END, USES_TOOL, ["add<|eom|>", "It is.<|eot|>"]),
    (FORCED_THOUGHT, talk("a", "<think>\nhm</think>b"), ["hm</think>b<|end|>"]),
    (FORCED_THOUGHT, talk("a", "b", "c", "<d>"), ["b<|end|>", "<d><|end|>"]),
]


@pytest.mark.parametrize(("template", "messages", "want"), FOUND)
def test_turns_of_many_templates(
    with_template: Callable[[str | None], Any],
    template: str,
    messages: list[dict[str, Any]],
    want: list[str],
) -> None:
    assert turns(with_template(template), {"messages": messages}) == want


def test_a_first_message_by_the_assistant(with_template: Callable[[str | None], Any]) -> None:
    messages = [{"role": "assistant", "content": "hello"}, *talk("a", "b")]
    assert turns(with_template(PLAIN), {"messages": messages}) == ["hello</s>", "b</s>"]


REWRITES = """{%- for m in messages %}{{ m.role + ':' + (m.content if loop.last else m.content | upper) + ' ' }}
{%- endfor %}{%- if add_generation_prompt %}{{ 'assistant:' }}{%- endif %}"""


def test_a_template_that_rewrites_turns_is_refused(
    with_template: Callable[[str | None], Any],
) -> None:
    row = {"messages": talk("a", "b", "c", "d")}
    with pytest.raises(DataError) as caught:
        turns(with_template(REWRITES), row)
    assert "`rows` row 1: the chat template shows message 2 differently" in caught.value.message
    assert "{% generation %}" in caught.value.hint
    assert turns(with_template(REWRITES), row, assistant_only_loss=False)


def test_a_template_may_refuse_a_conversation(with_template: Callable[[str | None], Any]) -> None:
    strict = (
        "{%- if messages[0].role != 'user' %}{{ raise_exception('user first') }}{%- endif %}"
        + PLAIN
    )
    rows = [
        {"messages": talk("a", "b")},
        {"messages": [{"role": "system", "content": "s"}, *talk("a", "b")]},
    ]
    with pytest.raises(
        DataError, match="`rows` row 2: the chat template refuses this conversation: user first"
    ):
        SFTDataset(rows, with_template(strict))


def test_the_row_that_a_marking_template_refuses_is_named(
    tokenizer: Any, with_template: Callable[..., Any]
) -> None:
    marked = "{%- if messages[0].role != 'user' %}{{ raise_exception('user first') }}{%- endif %}"
    marked += tokenizer._tokenizer.chat_template
    rows = [
        {"messages": talk("a", "b")},
        {"messages": [{"role": "system", "content": "s"}, *talk("a", "b")]},
    ]
    with pytest.raises(DataError, match="`rows` row 2: the chat template refuses"):
        SFTDataset(rows, with_template(marked), assistant_only_loss=True)


def test_the_completion_starts_at_the_common_prefix(tokenizer: Any) -> None:
    """` the` is one token: a prompt that ends in the space, and the same with its completion, part
    before it."""
    renderer = Renderer(tokenizer)
    rows = [
        {"prompt": "The ", "completion": "the end"},
        {"prompt": "The", "completion": " the end"},
    ]
    merged, clean = renderer.render(read_records(rows))
    assert merged.input_ids.tolist() == clean.input_ids.tolist()
    assert merged.loss_mask.tolist() == clean.loss_mask.tolist()
    assert merged.loss_mask.tolist() == [False, *[True] * (len(merged) - 1)]
    assert any(
        "in 1 rows the prompt alone has other last tokens" in note for note in renderer.notes
    )


ALL_LEARNED = (
    "every token is learned, the user's words too; assistant_only_loss learns the answers alone"
)


def test_notes_say_what_the_template_hides(with_template: Callable[[str | None], Any]) -> None:
    deaf = with_template("{% for m in messages %}{{ m.role }}{% endfor %}<|im_end|>")
    notes = SFTDataset([{"messages": talk("a", "hello there")}], deaf).report.notes
    assert notes == ("in 1 rows the chat template leaves out the assistant's text", ALL_LEARNED)
    no_tools = SFTDataset([{"messages": USES_TOOL}], with_template(PLAIN)).report.notes
    assert "in 1 rows the chat template leaves out tool calls" in no_tools


def test_notes_say_when_no_end_is_learned(with_template: Callable[[str | None], Any]) -> None:
    notes = SFTDataset([{"messages": talk("a", "b")}], with_template(NO_END)).report.notes
    assert notes == (
        "no row learns an end-of-text token: the model may not learn to stop",
        ALL_LEARNED,
    )


def test_notes_say_when_history_is_rewritten(with_template: Callable[[str | None], Any]) -> None:
    thinking = with_template(THINKING)
    one = SFTDataset([{"messages": talk("a", "b")}], thinking, assistant_only_loss=True)
    two = SFTDataset([{"messages": talk("a", "b", "c", "d")}], thinking, assistant_only_loss=True)
    assert not one.report.notes
    assert "earlier assistant turns without their reasoning" in two.report.notes[0]


def test_spans_name_the_roles(tokenizer: Any) -> None:
    row = {"messages": [{"role": "system", "content": "s"}, *talk("a", "b")]}
    example = next(Renderer(tokenizer, spans=True).render(read_records([row])))
    assert [span.role for span in example.spans] == ["system", "user", "assistant"]
    assert example.spans[0].start == 0
    assert example.spans[-1].end == len(example)
    assert all(
        left.end == right.start
        for left, right in zip(example.spans, example.spans[1:], strict=False)
    )
    text = tokenizer.decode(
        example.input_ids[example.spans[1].start : example.spans[1].end].tolist()
    )
    assert text == "<|im_start|>user\na<|im_end|>\n"
