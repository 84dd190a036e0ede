"""Prompts: what counts as one, what the model sees of it, and what is left for rewards."""

import pytest

from chuk_lib.data.prompt_dataset import PromptDataset, columns_of
from chuk_lib.data.tokenizers.loader import load_tokenizer
from chuk_lib.errors import DataError, ModelError
from tests.conftest import ROOT

CHAT = ROOT / "tests" / "fixtures" / "parity" / "models" / "llama-tiny"
USER = {"role": "user", "content": "2 + 3?"}
SAID = {"role": "assistant", "content": "It is 5."}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(CHAT)


@pytest.fixture
def plain(with_template):
    """A tokenizer without a chat template."""
    return with_template(None)


def shown(dataset, tokenizer):
    return tokenizer.decode(dataset[0].ids, skip_special_tokens=False)


def test_text_stays_text_and_other_columns_are_kept(tokenizer):
    dataset = PromptDataset([{"prompt": "Count: 1, 2", "answer": 3, "level": "low"}], tokenizer)
    assert shown(dataset, tokenizer) == "Count: 1, 2"
    assert (dataset[0].prompt, dataset[0].columns) == ("Count: 1, 2", {"answer": 3, "level": "low"})
    assert (dataset.columns, dataset.report.conversational) == (("answer", "level"), False)


def test_messages_get_the_header_of_the_answer(tokenizer):
    dataset = PromptDataset([{"prompt": [USER]}], tokenizer)
    assert (
        shown(dataset, tokenizer) == "<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert dataset.report.conversational


def test_a_last_turn_of_the_assistant_is_continued(tokenizer):
    dataset = PromptDataset(
        [{"prompt": [USER, {"role": "assistant", "content": "It is"}]}], tokenizer
    )
    assert shown(dataset, tokenizer).endswith("<|im_start|>assistant\nIt is")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, SAID]},
        {
            "conversations": [
                {"from": "human", "value": "2 + 3?"},
                {"from": "gpt", "value": "It is 5."},
            ]
        },
        {"prompt": [USER], "completion": [SAID]},
        {"question": "2 + 3?", "completion": "It is 5."},
        {"question": "2 + 3?", "answer": "It is 5."},
    ],
    ids=str,
)
def test_rows_of_other_kinds_give_prompt_and_answer(tokenizer, row):
    dataset = PromptDataset([row], tokenizer)
    assert (dataset[0].prompt, dataset[0].columns) == ([USER], {"answer": "It is 5."})


def test_a_completion_that_is_labelled_bad_is_no_answer(tokenizer):
    rows = [{"prompt": "2 + 3 = ", "completion": word, "label": word == "5"} for word in ("5", "6")]
    with pytest.raises(DataError, match="`rows` row 2: `label` says that the completion is bad"):
        PromptDataset(rows, tokenizer)
    dataset = PromptDataset([{**rows[1], "answer": "5"}], tokenizer)
    assert dataset[0].columns == {"completion": "6", "answer": "5", "label": False}


def test_an_answer_that_is_there_stays_beside_the_completion(tokenizer):
    dataset = PromptDataset(
        [{"prompt": "2 + 3 = ", "completion": "It is 5.", "answer": "5"}], tokenizer
    )
    assert dataset[0].columns == {"answer": "5", "completion": "It is 5."}


def test_a_question_is_plain_text_without_a_chat_template(plain):
    assert PromptDataset([{"question": "2 + 3?"}], plain)[0].prompt == "2 + 3?"


def test_template_options_and_tools_are_for_the_template(tokenizer):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    row = {"prompt": [USER], "tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    dataset = PromptDataset([row], tokenizer)
    assert dataset[0].columns == {}
    assert "add" in shown(dataset, tokenizer)


def test_long_prompts_are_left_out_and_counted(tokenizer):
    rows = [{"prompt": "a"}, {"prompt": "one two three four five six seven eight nine"}]
    dataset = PromptDataset(rows, tokenizer, max_prompt_length=8)
    assert (len(dataset), dataset.report.dropped) == (1, 1)
    assert (dataset.report.dropped, dataset.report.max_prompt_length) == (1, 8)
    with pytest.raises(DataError, match="all 2 prompts have more"):
        PromptDataset([rows[1]] * 2, tokenizer, max_prompt_length=2)


def test_a_prompt_that_fills_the_context_is_refused(tokenizer):
    dataset = PromptDataset([{"prompt": "one two three four five six seven eight nine"}], tokenizer)
    dataset.check_context(None)
    dataset.check_context(len(dataset[0]) + 1)
    with pytest.raises(DataError, match="row 1: the prompt has"):
        dataset.check_context(len(dataset[0]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x"}], "no `prompt`"),
        ([{"prompt": 5}], "`prompt` should be text"),
        ([{"prompt": []}], "should be a list of messages"),
        ([{"prompt": "a"}, {"prompt": [USER]}], "row 2 holds messages, the first row holds text"),
        ([{"prompt": ""}], "the prompt is empty"),
        ([{"prompt": "a", "completion": 5}], "`completion` should be text"),
        ([], "no rows|no records|empty"),
    ],
)
def test_rows_without_a_prompt_are_named(tokenizer, rows, message):
    with pytest.raises(DataError, match=message):
        PromptDataset(rows, tokenizer)


def test_messages_need_a_chat_template(plain):
    with pytest.raises(ModelError, match="no chat template"):
        PromptDataset([{"prompt": [USER]}], plain)


def test_columns_that_some_rows_lack_are_null_there(tokenizer):
    dataset = PromptDataset([{"prompt": "a", "answer": "1"}, {"prompt": "b"}], tokenizer)
    assert columns_of(dataset.rows) == {"answer": ["1", None]}
    assert "`answer`" in dataset.report.notes[0]


def test_the_fingerprint_follows_prompts_and_columns(tokenizer):
    base = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"}]
    same = PromptDataset([dict(row) for row in base], tokenizer).fingerprint
    assert PromptDataset(base, tokenizer).fingerprint == same
    for changed in (
        base[::-1],
        [base[0], {"prompt": "b", "answer": "3"}],
        [base[0], {"prompt": "c", "answer": "2"}],
    ):
        assert PromptDataset(changed, tokenizer).fingerprint != same


def test_prompts_are_shown_with_their_roles(tokenizer):
    dataset = PromptDataset(
        [{"prompt": [{"role": "system", "content": "Be short."}, USER]}], tokenizer
    )
    assert dataset[0].text == "system: Be short.\nuser: 2 + 3?"
    assert PromptDataset([{"prompt": [USER]}], tokenizer)[0].text == "2 + 3?"
