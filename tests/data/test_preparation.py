"""What a conversation is made of before it meets the template: calls of tools, system and history
columns, weights, plain text with BOS, and templates that write a header unasked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chuk_lib.data import SFTDataset
from chuk_lib.data.preference_dataset import PairDataset, UnpairedDataset
from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.data.tokenizers.loader import load_tokenizer
from chuk_lib.data.tokenizers.ready import READY
from chuk_lib.errors import DataError, ModelError
from tests.data.conftest import Chuk, WriteRows
from tests.data.test_nothing_lost import TEMPLATES

WithTemplate = Callable[[str | None], Any]
ASK, SAY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
RESULT = {"role": "tool", "content": "5"}
TOJSON = TEMPLATES["qwen-like"]
ITEMS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in"
    " m.tool_calls or [] %}{{ '<call>' + c.function.name }}{% for k, v in c.function.arguments |"
    " items %}{{ ' ' + k + '=' + v | string }}{% endfor %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor"
    " %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALWAYS = TEMPLATES["llama-3-like"]


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "add", "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
        **more,
    }


def whole(tokenizer: Any, *rows: dict[str, Any], **settings: Any) -> list[str]:
    data = SFTDataset(list(rows), tokenizer, **settings)
    return [tokenizer.decode(one.input_ids.tolist(), skip_special_tokens=False) for one in data]


def learned(tokenizer: Any, row: dict[str, Any], **settings: Any) -> list[str]:
    (example,) = SFTDataset([row], tokenizer, **settings)
    edges = np.flatnonzero(
        np.diff(np.concatenate([[False], example.loss_mask, [False]]).astype(int))
    )
    runs = zip(edges[::2], edges[1::2], strict=True)
    return [
        tokenizer.decode(example.input_ids[a:b].tolist(), skip_special_tokens=False)
        for a, b in runs
    ]


@pytest.mark.parametrize("template", [ITEMS, READY["chatml"].text], ids=["items", "is string"])
@pytest.mark.parametrize("text", ['{"a": 1}', "", " "])
def test_arguments_as_text_are_those_as_an_object(
    with_template: WithTemplate, template: str, text: str
) -> None:
    tokenizer = with_template(template)
    rows = [
        {"messages": [ASK, call(given), RESULT, SAY]}
        for given in (text, json.loads(text.strip() or "{}"))
    ]
    as_text, as_object = (whole(tokenizer, row)[0] for row in rows)
    assert as_text == as_object
    prompts = [PromptDataset([{"prompt": row["messages"][:3]}], tokenizer)[0].ids for row in rows]
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [('{"a": 1', "not JSON"), ("[1]", "a list"), ("5", "a number"), ([1], "a list")],
)
def test_arguments_that_are_no_object_are_refused(
    tokenizer: Any, arguments: Any, said: str
) -> None:
    turns = [ASK, call(arguments), RESULT, SAY]
    for read in (
        lambda: SFTDataset([{"messages": [ASK, SAY]}, {"messages": turns}], tokenizer),
        lambda: PromptDataset([{"prompt": [ASK]}, {"prompt": turns[:3]}], tokenizer),
    ):
        with pytest.raises(
            DataError, match=f"row 2: message 2 .* calls `add` with arguments that are {said}"
        ):
            read()


def test_check_names_cut_off_arguments(chuk: Chuk, rows_file: WriteRows) -> None:
    path = rows_file({"messages": [ASK, call('{"city": "Os'), RESULT, SAY]})
    done = chuk("data", "check", path)
    assert done.returncode == 1
    assert (
        "rows.jsonl:1: format: message 2 of `messages` calls `add` with arguments that are not JSON"
        in done.stdout
    )


def test_every_form_of_a_call_is_the_same(with_template: WithTemplate) -> None:
    tokenizer = with_template(READY["chatml"].text)
    function = {"name": "add", "arguments": {"a": 1}}
    tools = [{"name": "add", "description": "Adds.", "parameters": {}}]
    wrapped = [{"type": "function", "function": tool} for tool in tools]
    openai = {"messages": [ASK, call({"a": 1}), RESULT, SAY], "tools": wrapped}
    older = {
        "role": "assistant",
        "content": None,
        "function_call": {**function, "arguments": '{"a": 1}'},
    }
    back = {"role": "function", "name": "add", "content": "5"}
    talk = [
        {"from": "human", "value": "Hi"},
        {"from": "function_call", "value": json.dumps(function)},
        {"from": "observation", "value": "5"},
        {"from": "gpt", "value": "Ho"},
    ]
    rows = [
        {"messages": [ASK, older, back, SAY], "functions": tools},
        {"conversations": talk, "tools": json.dumps(tools)},
    ]
    for row in rows:
        assert whole(tokenizer, row) == whole(tokenizer, openai)


@pytest.mark.parametrize("value", ["add(1)", '{"arguments": {}}', "[]", '{"name": 5}'])
def test_a_function_call_that_is_none_is_refused(tokenizer: Any, value: str) -> None:
    talk = [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": value}]
    with pytest.raises(
        DataError, match="`rows` row 1: message 2 of `conversations` is a call of a tool"
    ):
        SFTDataset([{"conversations": talk}], tokenizer)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, SAY]},
        {"conversations": [ASK, SAY]},
        {"instruction": "Hi", "output": "Ho"},
        {"prompt": "Hi", "response": "Ho"},
        {"input": "Hi", "output": "Ho"},
        {"prompt": [ASK], "completion": [SAY]},
    ],
    ids=str,
)
def test_a_system_column_is_a_system_message(tokenizer: Any, row: dict[str, Any]) -> None:
    want = whole(tokenizer, {"messages": [{"role": "system", "content": "Be kind."}, ASK, SAY]})
    assert whole(tokenizer, {**row, "system": "Be kind."}) == want
    assert whole(tokenizer, {**row, "system": ""}) == whole(tokenizer, row)


def test_two_system_messages_that_differ_are_refused(tokenizer: Any) -> None:
    row = {"messages": [{"role": "system", "content": "Be kind."}, ASK, SAY]}
    assert whole(tokenizer, {**row, "system": "Be kind."}) == whole(tokenizer, row)
    with pytest.raises(DataError, match="row 1 has a column `system` and begins with another"):
        SFTDataset([{**row, "system": "Be brief."}], tokenizer)


def test_a_pair_with_system_and_question(tokenizer: Any) -> None:
    turns = [{"role": "system", "content": "Be kind."}, ASK]
    want = PairDataset(
        [{"prompt": turns, "chosen": [SAY], "rejected": [ASK | {"role": "assistant"}]}], tokenizer
    )
    row = {"system": "Be kind.", "question": "Hi", "chosen": "Ho", "rejected": "Hi"}
    assert PairDataset([row], tokenizer).fingerprint == want.fingerprint


def test_history_is_earlier_turns(tokenizer: Any, with_template: WithTemplate) -> None:
    row = {"instruction": "Hi", "output": "Ho", "history": [["a", "b"]], "system": "Be kind."}
    earlier = [
        {"role": "system", "content": "Be kind."},
        ASK | {"content": "a"},
        SAY | {"content": "b"},
    ]
    assert whole(tokenizer, row) == whole(tokenizer, {"messages": [*earlier, ASK, SAY]})
    assert learned(tokenizer, row) == ["Ho<|im_end|>\n"]
    (text,) = whole(with_template(None), row)
    assert (
        text == "Be kind.\n\n### Instruction:\na\n\n### Response:\nb\n\n### Instruction:\nHi\n\n###"
        " Response:\nHo<|im_end|>"
    )
    with pytest.raises(DataError, match="turn 1 of `history` should be a question and an answer"):
        SFTDataset([{**row, "history": ["a", "b"]}], tokenizer)


def test_developer_is_system_where_the_template_passes_over_it(with_template: WithTemplate) -> None:
    row = {"messages": [{"role": "developer", "content": "Be kind."}, ASK, SAY]}
    system = {"messages": [{"role": "system", "content": "Be kind."}, ASK, SAY]}
    knows_few = with_template(TEMPLATES["no tools"])
    assert whole(knows_few, row) == whole(knows_few, system)
    data = SFTDataset([row, system, row], knows_few)
    assert any(
        note.startswith("in 2 rows the role `developer` is shown as `system`")
        for note in data.report.notes
    )
    asked = PromptDataset([{"prompt": turns["messages"][:2]} for turns in (row, system)], knows_few)
    assert asked[0].ids == asked[1].ids
    knows_all = with_template(ITEMS)
    assert "<|im_start|>developer\nBe kind." in whole(knows_all, row)[0]
    assert not SFTDataset([row], knows_all, assistant_only_loss=True).report.notes


MARKED = READY["chatml"].text
AFTER = [ASK | {"content": "again"}, SAY | {"content": "good", "weight": 1}]


@pytest.mark.parametrize("key", [{"weight": 0}, {"weight": 0.0}, {"train": False}], ids=str)
@pytest.mark.parametrize(
    "template", [MARKED, ITEMS, TOJSON], ids=["marked", "searched", "training form"]
)
def test_turns_of_no_weight_are_not_learned(
    with_template: WithTemplate, template: str, key: dict[str, Any]
) -> None:
    turns = [ASK, SAY | {"content": "bad", **key}, *AFTER]
    tokenizer = with_template(template)
    only = "".join(learned(tokenizer, {"messages": turns}, assistant_only_loss=True))
    assert "good<|im_end|>" in only
    assert "bad" not in only
    weighed = "".join(learned(tokenizer, {"messages": turns}))
    assert "good<|im_end|>" in weighed
    assert "again" in weighed
    assert "bad" not in weighed
    notes = SFTDataset([{"messages": turns}] * 2, tokenizer).report.notes
    assert "in 2 rows messages with `weight: 0` or `train: false` are not learned" in notes


def test_a_question_of_no_weight_is_not_learned(tokenizer: Any) -> None:
    turns = [ASK | {"weight": 0}, SAY]
    assert learned(tokenizer, {"messages": turns}) == [
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n",
    ]


@pytest.mark.parametrize(
    "key", [{"weight": 0.5}, {"weight": "0"}, {"train": "no"}, {"train_detail": [{"a": 1}]}]
)
def test_other_weights_are_refused(tokenizer: Any, key: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="row 1: message 2 of `messages`"):
        SFTDataset([{"messages": [ASK, SAY | key]}], tokenizer)


def test_preferences_refuse_weights_in_completions(tokenizer: Any) -> None:
    silent = [SAY | {"weight": 0}]
    with pytest.raises(DataError, match="row 1: message 1 of `rejected` has `weight: 0`"):
        PairDataset([{"prompt": [ASK], "chosen": [ASK], "rejected": silent}], tokenizer)
    with pytest.raises(DataError, match="row 1: message 1 of `completion` has `weight: 0`"):
        UnpairedDataset([{"prompt": [ASK], "completion": silent, "label": True}], tokenizer)


def test_a_header_that_nobody_asked_for_is_not_learned(with_template: WithTemplate) -> None:
    tokenizer = with_template(ALWAYS)
    row = {"messages": [ASK, SAY, ASK | {"content": "More?"}, SAY | {"content": "Yes"}]}
    assert learned(tokenizer, row, assistant_only_loss=True) == ["Ho<|im_end|>", "Yes<|im_end|>"]
    assert whole(tokenizer, row)[0].endswith("Yes<|im_end|>")
    prompt = PromptDataset([{"prompt": [ASK]}], tokenizer)[0].ids
    assert tokenizer.decode(prompt, skip_special_tokens=False).endswith(
        "<|begin|>assistant<|close|>\n\n"
    )
    notes = SFTDataset([row], tokenizer).report.notes
    assert any("at the end without being asked" in note for note in notes)


@pytest.fixture
def adds_ends(tmp_path: Path, parity: Path) -> Any:
    """A tokenizer that puts BOS before and EOS after plain text."""
    source = parity / "models" / "llama-tiny"
    for item in source.iterdir():
        if item.suffix in (".json", ".jinja") and item.is_file():
            (tmp_path / item.name).write_bytes(item.read_bytes())
    path = tmp_path / "tokenizer.json"
    parts = json.loads(path.read_text())
    ids = {token["content"]: token["id"] for token in parts["added_tokens"]}
    bos, eos = "<|im_start|>", "<|im_end|>"
    pieces = [{"SpecialToken": {"id": name, "type_id": 0}} for name in (bos, eos)]
    parts["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [pieces[0], {"Sequence": {"id": "A", "type_id": 0}}, pieces[1]],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (bos, eos)
        },
    }
    path.write_text(json.dumps(parts))
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"bos_token": bos, "eos_token": eos})
    )
    return load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "text", ["a b", "<|im_start|>a b", "a b<|im_end|>", "<|im_start|>a b<|im_end|>"]
)
def test_text_has_one_bos_and_one_eos(adds_ends: Any, text: str, tmp_path: Path) -> None:
    assert whole(adds_ends, {"text": text}) == ["<|im_start|>a b<|im_end|>"]
    prompt = text.removesuffix("<|im_end|>")
    row = {"prompt": prompt, "completion": " c"}
    assert whole(adds_ends, row) == ["<|im_start|>a b c<|im_end|>"]
    assert learned(adds_ends, row) == [" c<|im_end|>"]
    assert not SFTDataset([row], adds_ends).report.notes
    ids = PromptDataset([{"prompt": prompt}], adds_ends)[0].ids
    assert adds_ends.decode(ids, skip_special_tokens=False) == "<|im_start|>a b"


@pytest.mark.parametrize(
    "row", [{"text": "<|im_start|>a b"}, {"prompt": "<|im_start|>a", "completion": " b"}], ids=str
)
def test_batches_make_the_same_of_bos(adds_ends: Any, row: dict[str, Any]) -> None:
    from chuk_lib.data.batches.documents import Maker, plan_of
    from chuk_lib.data.batches.spec import BatchSpec
    from chuk_lib.data.reader import read_records

    (record,) = read_records([row])
    plan = plan_of(BatchSpec(), record, adds_ends, None)
    assert plan.direct is not None
    documents = Maker(plan)([record]).documents
    (want,) = SFTDataset([row], adds_ends)
    assert documents.ids.tolist() == want.input_ids.tolist()


def test_padding_of_token_rows_is_left_out(tokenizer: Any) -> None:
    row = {
        "input_ids": [0, 0, 5, 6, 7, 0],
        "attention_mask": [0, 0, 1, 1, 1, 0],
        "loss_mask": [1, 1, 0, 1, 1, 1],
    }
    (example,) = SFTDataset([row], tokenizer)
    assert example.input_ids.tolist() == [5, 6, 7]
    assert example.loss_mask.tolist() == [False, True, True]
    with pytest.raises(DataError, match="`attention_mask` hides tokens in the middle"):
        SFTDataset([{"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}], tokenizer)


def test_a_tokenizer_without_a_template_says_how_to_get_one(with_template: WithTemplate) -> None:
    bare = with_template(None)
    for read in (
        lambda: SFTDataset([{"messages": [ASK, SAY]}], bare),
        lambda: PromptDataset([{"prompt": [ASK]}], bare),
    ):
        with pytest.raises(ModelError) as caught:
            read()
        assert "`chuk tokenizer doctor MODEL --fix OUT --chat-template chatml`" in caught.value.hint


def test_all_rows_are_counted(with_template: WithTemplate) -> None:
    tokenizer = with_template(TEMPLATES["no tools"])
    rows = [
        {"messages": [ASK, SAY]},
        *({"messages": [ASK, call({"a": 1}), RESULT, SAY]} for _ in range(3)),
    ]
    notes = SFTDataset(rows, tokenizer).report.notes
    assert "in 3 rows the chat template leaves out tool calls" in notes
    pairs = [
        {"prompt": row["messages"][:-1], "chosen": [SAY], "rejected": [ASK | {"role": "assistant"}]}
        for row in rows
    ]
    assert (
        "in 3 rows the chat template leaves out tool calls"
        in PairDataset(pairs, tokenizer).report.notes
    )
    asked = PromptDataset([{"messages": row["messages"]} for row in rows], tokenizer)
    assert "in 3 rows the chat template leaves out tool calls" in asked.report.notes


def test_a_question_is_text_without_a_template_and_no_second_one_beside_messages(
    with_template: WithTemplate,
) -> None:
    bare = with_template(None)
    as_question = {"question": "Hi ", "chosen": "Ho", "rejected": "No"}
    as_prompt = {"prompt": "Hi ", "chosen": "Ho", "rejected": "No"}
    assert (
        PairDataset([as_question], bare).fingerprint == PairDataset([as_prompt], bare).fingerprint
    )
    chats = {"chosen": [ASK, SAY], "rejected": [ASK, SAY | {"content": "No"}]}
    marked = with_template(MARKED)
    with_question = PairDataset([{"question": "Hi", **chats}], marked)
    assert with_question.fingerprint == PairDataset([chats], marked).fingerprint


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Ho"},
        {"prompt": "Hi", "chosen": "Ho", "rejected": "No"},
        {"prompt": "Hi", "completion": "Ho", "label": True},
        {"prompt": "Hi", "answer": "Ho"},
    ],
    ids=str,
)
def test_check_refuses_a_system_column_as_training_does(
    chuk: Chuk, rows_file: WriteRows, parity: Path, row: dict[str, Any]
) -> None:
    path = rows_file(row, {**row, "system": "Be kind."})
    done = chuk(
        "data", "check", path, "--model", parity / "models" / "llama-tiny", "--ignore", "near"
    )
    assert done.returncode == 1
    assert "rows.jsonl:2: template: plain text does not show the column `system`" in done.stdout
