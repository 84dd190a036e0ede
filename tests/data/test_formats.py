"""Formats: what each kind of row becomes, and what is said about rows that fit none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chuk_lib.data import Example, SFTDataset
from chuk_lib.errors import ConfigError, DataError, ModelError

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def shown(tokenizer: Any, example: Example, learned: bool) -> str:
    ids = example.input_ids[example.loss_mask] if learned else example.input_ids
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False))


def only(tokenizer: Any, *rows: dict[str, Any], **settings: Any) -> tuple[str, str, SFTDataset]:
    """The whole text and the learned text of the first row, and the data set."""
    data = SFTDataset(list(rows), tokenizer, **settings)
    return shown(tokenizer, data[0], False), shown(tokenizer, data[0], True), data


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


ASKED = turn("user", "Hi") + "<|im_start|>assistant\n"
ROWS: list[tuple[str, dict[str, Any], str, str]] = [
    ("text", {"text": "Hi Ho"}, "Hi Ho<|im_end|>", "Hi Ho<|im_end|>"),
    ("text", {"text": "Hi<|im_end|>"}, "Hi<|im_end|>", "Hi<|im_end|>"),
    ("prompt_completion", {"prompt": "Hi ", "completion": "Ho"}, "Hi Ho<|im_end|>", "Ho<|im_end|>"),
    (
        "prompt_response",
        {"prompt": "Hi", "response": "Ho"},
        f"{ASKED}Ho<|im_end|>\n",
        "Ho<|im_end|>\n",
    ),
    ("input_output", {"input": "Hi", "output": "Ho"}, f"{ASKED}Ho<|im_end|>\n", "Ho<|im_end|>\n"),
    ("alpaca", {"instruction": "Hi", "output": "Ho"}, f"{ASKED}Ho<|im_end|>\n", "Ho<|im_end|>\n"),
    (
        "alpaca",
        {"instruction": "Add", "input": "1 2", "output": "3", "text": "ignored"},
        f"{turn('user', 'Add' + chr(10) * 2 + '1 2')}<|im_start|>assistant\n3<|im_end|>\n",
        "3<|im_end|>\n",
    ),
    (
        "prompt_completion",
        {
            "prompt": [{"role": "user", "content": "Hi"}],
            "completion": [{"role": "assistant", "content": "Ho"}],
        },
        f"{ASKED}Ho<|im_end|>\n",
        "Ho<|im_end|>\n",
    ),
    (
        "prompt_completion",
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": "Ho"},
        f"{ASKED}Ho<|im_end|>\n",
        "Ho<|im_end|>\n",
    ),
]


@pytest.mark.parametrize(("name", "row", "whole", "learned"), ROWS)
def test_rows_with_a_chat_template(
    tokenizer: Any, name: str, row: dict[str, Any], whole: str, learned: str
) -> None:
    got, trained, data = only(tokenizer, row)
    assert (got, trained) == (whole, learned)
    assert data.report.format == name
    assert data.report.how


@pytest.mark.parametrize(
    ("row", "whole"),
    [
        ({"prompt": "Hi ", "response": "Ho"}, "Hi Ho<|im_end|>"),
        ({"input": "Hi ", "output": "Ho"}, "Hi Ho<|im_end|>"),
        (
            {"instruction": "Add", "input": "1 2", "output": "3"},
            (
                "Below is an instruction that describes a task, paired with an input that provides"
                " further context. Write a response that appropriately completes the"
                " request.\n\n### Instruction:\nAdd\n\n### Input:\n1 2\n\n###"
                " Response:\n3<|im_end|>"
            ),
        ),
        (
            {"instruction": "Hi", "input": "", "output": "Ho"},
            (
                "Below is an instruction that describes a task. Write a response that appropriately"
                " completes the request.\n\n### Instruction:\nHi\n\n### Response:\nHo<|im_end|>"
            ),
        ),
    ],
)
def test_pairs_without_a_chat_template_are_plain_text(
    with_template: Callable[[str | None], Any], row: dict[str, Any], whole: str
) -> None:
    bare = with_template(None)
    got, trained, data = only(bare, row)
    assert got == whole
    assert whole.endswith(trained)
    assert "no chat template" in data.report.how


CHATS: list[tuple[str, dict[str, Any], str]] = [
    (
        "messages",
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
        f"{ASKED}Ho<|im_end|>\n",
    ),
    (
        "messages",
        {
            "messages": '[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]',
            "prompt": "Hi",
        },
        turn("user", "Hi"),
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
        f"{ASKED}Ho<|im_end|>\n",
    ),
    (
        "sharegpt",
        {"conversations": [{"role": "user", "content": "Hi"}], "system": "Be kind."},
        turn("system", "Be kind.") + turn("user", "Hi"),
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
            ]
        },
        f'{ASKED}<tool_call>{{"name": "add", "arguments": {{"a": 1}}}}</tool_call><|im_end|>\n',
    ),
]


@pytest.mark.parametrize(("name", "row", "whole"), CHATS)
def test_conversations(tokenizer: Any, name: str, row: dict[str, Any], whole: str) -> None:
    got, trained, data = only(tokenizer, row)
    assert (got, trained, data.report.format) == (whole, whole, name)


def test_tools_may_be_a_json_string_and_arguments_text(tokenizer: Any) -> None:
    text_call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    made = []
    for call, tools in ((CALL, [{"name": "add"}]), (text_call, '[{"name": "add"}]')):
        talk = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        made.append(only(tokenizer, {"messages": talk, "tools": tools})[0])
    assert made[0] == made[1]
    assert '<tools>\n{"name": "add"}\n</tools>' in made[0]


def test_template_options_of_a_row_are_passed_on(
    with_template: Callable[[str | None], Any],
) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ mark }}\n{% endfor %}"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    got, _, _ = only(
        with_template(template), {"messages": talk, "chat_template_kwargs": {"mark": "!"}}
    )
    assert got == "user: a!\nassistant: b!\n"


@pytest.mark.parametrize(
    ("row", "mask"),
    [
        ({"input_ids": [5, 6, 7]}, [1, 1, 1]),
        ({"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}, [0, 1, 0]),
        ({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}, [0, 1, 1]),
        (
            {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "assistant_masks": [1, 1, 0]},
            [0, 1, 0],
        ),
    ],
)
def test_tokenised_rows(tokenizer: Any, row: dict[str, Any], mask: list[int]) -> None:
    data = SFTDataset([row], tokenizer)
    assert data[0].input_ids.tolist() == [5, 6, 7]
    assert data[0].loss_mask.tolist() == [bool(bit) for bit in mask]
    assert data.report.format == "tokens"


def test_a_completion_mask_can_be_switched_off(tokenizer: Any) -> None:
    row = {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}
    assert SFTDataset([row], tokenizer, completion_only_loss=False)[0].loss_mask.all()


def test_format_can_be_forced(tokenizer: Any) -> None:
    row = {"prompt": "Hi ", "completion": "Ho", "text": "plain"}
    assert only(tokenizer, row)[0] == "Hi Ho<|im_end|>"
    got, _, data = only(tokenizer, row, format="text")
    assert got == "plain<|im_end|>"
    assert only(tokenizer, {"body": "plain"}, text_field="body")[0] == "plain<|im_end|>"
    assert not data.report.notes
    assert "also fit text" in only(tokenizer, row)[2].report.notes[0]


@pytest.mark.parametrize("name", ["chat", "openai", "Messages"])
def test_formats_have_other_names(tokenizer: Any, name: str) -> None:
    assert only(tokenizer, CHATS[0][1], format=name)[2].report.format == "messages"


OK = {"text": "a b"}
CHAT = {"messages": [{"role": "user", "content": "a"}]}
BROKEN: list[tuple[list[dict[str, Any]], dict[str, Any], str, str]] = [
    (
        [{"query": "a", "reply": "b"}],
        {},
        "`rows` row 1 has the columns `query`, `reply`, which fit no",
        "chuk data convert FILE --rename query=prompt --rename reply=completion",
    ),
    (
        [{"ask": "a", "target": "b", "id": 1}],
        {},
        "fit no",
        "--rename ask=prompt --rename target=completion",
    ),
    ([{"prompt": "a", "answer": "b"}], {}, "fit no", "FILE --rename answer=completion"),
    ([{"article": "a"}], {}, "`rows` row 1 has the columns `article`, which fit no", "text_field"),
    ([{"prompt": "a", "chosen": "b", "rejected": "c"}], {}, "fit no", "`chuk train dpo --dry-run`"),
    (
        [
            {"prompt": "a", "completion": "b", "label": True},
            {"prompt": "a", "completion": "c", "label": False},
        ],
        {},
        "`rows` row 2: `label` says that the answer is bad",
        "chuk train kto",
    ),
    (
        [{"prompt": "a", "completion": "b", "label": "0"}],
        {},
        "`label` says that the answer is bad",
        "--format",
    ),
    ([{**CHAT, "label": False}], {}, "`label` says that the answer is bad", "--match"),
    (
        [OK, {"txt": "a"}],
        {},
        "`rows` row 2 has no `text` (it has `txt`), but the first row is text",
        "one format",
    ),
    (
        [OK, {"prompt": "a", "completion": "b"}],
        {},
        "`rows` row 2 has no `text`",
        "one format per file",
    ),
    (
        [OK],
        {"format": "alpaca"},
        "`rows` row 1 has no `instruction` and `output or response`",
        "fit: text",
    ),
    ([{"text": None}], {}, "`rows` row 1: `text` should be text, not null", "string"),
    (
        [{"prompt": "a", "completion": 3}],
        {},
        "`rows` row 1: `completion` should be text, not a number",
        "string",
    ),
    (
        [{"messages": []}],
        {},
        "`rows` row 1: `messages` should be a list of messages, not an empty list",
        "role",
    ),
    ([{"messages": "hi"}], {}, "`messages` is text that is not JSON", "JSON"),
    ([{"messages": ["hi"]}], {}, "message 1 of `messages` is text, not an object", "role"),
    ([{"messages": [{"content": "a"}]}], {}, "message 1 of `messages` has no `role`", "role"),
    ([{"messages": [{"role": "user"}]}], {}, "message 1 of `messages` has no `content`", "role"),
    (
        [{"messages": [{"role": "user", "content": 3}]}],
        {},
        "message 1 of `messages`: `content` should be text",
        "role",
    ),
    (
        [{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}],
        {},
        "message 1 of `messages` holds a part of type `image_url`",
        "only text",
    ),
    (
        [CHAT | {"tools": {"name": "f"}}],
        {},
        "`tools` should be a list of tool descriptions",
        "JSON",
    ),
    (
        [CHAT | {"chat_template_kwargs": [1]}],
        {},
        "`chat_template_kwargs` should be an object",
        "enable_thinking",
    ),
    ([{"input_ids": "1 2"}], {}, "`input_ids` should be a list of token ids", "text or messages"),
    (
        [{"input_ids": [1, 2], "labels": [1]}],
        {},
        "`labels` (1) should be as long as `input_ids` (2)",
        "one per token",
    ),
    (
        [{"input_ids": [1, 2], "labels": [2, 1]}],
        {},
        "`labels` should equal `input_ids` or be -100",
        "not shifted",
    ),
    (
        [{"input_ids": [1, 320]}],
        {},
        "token 320 is not one of the tokenizer's 320",
        "this model's tokenizer",
    ),
    (
        [OK],
        {"assistant_only_loss": True},
        "assistant_only_loss is on, but `rows` row 1 holds plain text",
        "messages",
    ),
    ([{"input_ids": [1, 2]}], {"assistant_only_loss": True}, "has no `assistant_masks`", "column"),
    (
        [OK],
        {"completion_only_loss": True},
        "completion_only_loss is on, but `rows` row 1 has no completion",
        "prompt",
    ),
    (
        [{"messages": [{"role": "user", "content": "a"}]}],
        {"completion_only_loss": True},
        "completion_only_loss is on, but `rows` row 1 does not end with the assistant",
        "assistant_only_loss",
    ),
    (
        [
            {"prompt": "a", "completion": "b"},
            {"prompt": [{"role": "user", "content": "a"}], "completion": "b"},
        ],
        {},
        "`rows` row 2 holds messages, the first row holds text",
        "one format",
    ),
]


@pytest.mark.parametrize(("rows", "settings", "says", "hint"), BROKEN)
def test_wrong_rows_are_explained(
    tokenizer: Any, rows: list[dict[str, Any]], settings: dict[str, Any], says: str, hint: str
) -> None:
    with pytest.raises(DataError) as caught:
        SFTDataset(rows, tokenizer, **settings)
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_unknown_formats_are_a_setting_s_fault(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="`format` should be one of tokens, messages"):
        SFTDataset([OK], tokenizer, format="csv")


def test_messages_need_a_chat_template(with_template: Callable[[str | None], Any]) -> None:
    with pytest.raises(
        ModelError, match="`rows` row 1 holds messages, but the tokenizer has no chat template"
    ):
        SFTDataset([CHAT], with_template(None))
