"""Converting: what a row means survives, and what the new format cannot say is refused with its
place."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data import Renderer, read_records
from chuk_lib.data.workbench.convert import WRITERS, converted, template_of
from chuk_lib.errors import ConfigError, DataError
from tests.data.conftest import Chuk

USER, REPLY = {"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}
CALLS = {
    "messages": [
        USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "add"}}],
        },
        {"role": "tool", "name": "add", "content": "5"},
        REPLY,
    ],
    "tools": [TOOL],
}
CHATS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, REPLY]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}]
    },
    "alpaca": {"instruction": "2 + 3?", "input": "", "output": "5"},
    "prompt_response": {"prompt": "2 + 3?", "response": "5"},
    "input_output": {"input": "2 + 3?", "output": "5"},
    "prompt_completion": {"prompt": [USER], "completion": [REPLY]},
}


def convert(row: dict[str, Any], to: str, **options: Any) -> list[dict[str, Any]]:
    return [record.columns for record in converted(read_records([row]), to, **options)]


def ids(row: dict[str, Any], tokenizer: Any) -> list[int]:
    (example,) = Renderer(tokenizer, completion_only_loss=False).render(read_records([row]))
    return list(example.input_ids)


@pytest.mark.parametrize(("source", "to"), list(itertools.permutations(CHATS, 2)))
def test_a_chat_trains_the_same_in_every_format(source: str, to: str, tokenizer: Any) -> None:
    (made,) = convert(CHATS[source], to)
    assert ids(made, tokenizer) == ids(CHATS[source], tokenizer)


@pytest.mark.parametrize("to", ["sharegpt", "prompt_completion"])
def test_calls_of_tools_survive_there_and_back(to: str) -> None:
    (there,) = convert(CALLS, to)
    (back,) = convert(there, "messages")
    assert back == CALLS


def test_notes_go_along_and_columns_can_be_renamed_and_dropped() -> None:
    row = {"question": "2 + 3?", "answer": "5", "id": 7, "noise": "x"}
    renamed = {"question": "prompt", "answer": "completion"}
    (made,) = convert(row, "messages", rename=renamed, drop=["noise"])
    assert made == {"messages": [USER, REPLY], "id": 7}
    assert convert(row, "same", rename={"question": "prompt"}) == [
        {"prompt": "2 + 3?", "answer": "5", "id": 7, "noise": "x"}
    ]
    with pytest.raises(DataError, match="no column `questoin` to rename"):
        convert(row, "same", rename={"questoin": "prompt"})
    with pytest.raises(DataError, match="`answer` twice"):
        convert(row, "same", rename={"question": "answer"})


def test_preferences() -> None:
    text = {"prompt": "2 + 3?", "chosen": "5", "rejected": "6", "id": 1}
    assert convert(text, "unpaired") == [
        {"prompt": "2 + 3?", "completion": "5", "label": True, "id": 1},
        {"prompt": "2 + 3?", "completion": "6", "label": False, "id": 1},
    ]
    assert convert(text, "prompt_completion") == [{"prompt": "2 + 3?", "completion": "5", "id": 1}]
    whole = {"chosen": [USER, REPLY], "rejected": [USER, {"role": "assistant", "content": "6"}]}
    (pair,) = convert(whole, "preference")
    assert pair == {
        "prompt": [USER],
        "chosen": [REPLY],
        "rejected": [{"role": "assistant", "content": "6"}],
    }
    assert convert(whole, "messages") == [{"messages": [USER, REPLY]}]


@pytest.mark.parametrize("to", sorted(set(WRITERS) - {"unpaired", "preference", "tokens", "text"}))
def test_labels_are_never_lost(to: str) -> None:
    good, bad = ({"prompt": "2 + 3?", "completion": "5", "label": label} for label in (True, False))
    (made,) = convert(good, to)
    assert made["label"] is True
    with pytest.raises(DataError, match="label"):
        convert(bad, to)
    (dropped,) = convert(bad, to, drop=["label"])
    assert "label" not in dropped


def test_what_has_no_place_is_said(chuk: Chuk, rows_file: Callable[..., Path]) -> None:
    path = rows_file(
        {"prompt": "2 + 3?", "chosen": "5", "rejected": "6"},
        {"prompt": "a", "chosen": "b", "rejected": ""},
    )
    done = chuk("data", "convert", path, "--to", "messages")
    assert "2 rejected answers are left out: `messages` has no place for them" in done.stderr
    assert "left out" not in chuk("data", "convert", path, "--to", "unpaired").stderr
    path.write_text('{"text": "a", "x": NaN}\n{"text": "b", "y": [1, -Infinity]}\n{"text": "c"}\n')
    for command in (
        ["convert"],
        ["dedupe"],
        ["filter", "--min-characters", "1"],
        ["convert", "--dry-run"],
    ):
        done = chuk("data", command[0], path, *command[1:])
        assert "2 rows hold NaN or infinity, which JSON does not have" in done.stderr, command
    done = chuk("data", "split", path, "--exact", "--valid", "1", "--test", "0", "-o", "parts")
    assert "2 rows hold NaN or infinity" in done.stderr


def test_prompts_keep_their_answer_for_rewards() -> None:
    assert convert(CHATS["messages"], "prompt") == [{"prompt": [USER], "answer": "5"}]
    assert convert({"prompt": "2 + 3?", "completion": "5"}, "prompt") == [
        {"prompt": "2 + 3?", "answer": "5"}
    ]
    known = {"prompt": "2 + 3?", "completion": "It is 5", "answer": "5"}
    assert convert(known, "prompt") == [{"prompt": "2 + 3?", "answer": "5"}]


def test_text_of_messages_needs_a_template(
    tokenizer: Any, with_template: Callable[[str | None], Any]
) -> None:
    (made,) = convert(CHATS["messages"], "text", render=template_of(tokenizer))
    assert made["text"] == tokenizer._tokenizer.apply_chat_template([USER, REPLY], tokenize=False)
    assert convert({"prompt": "a", "completion": "b"}, "text") == [{"text": "ab"}]
    with pytest.raises(DataError, match="need a chat template"):
        convert(CHATS["messages"], "text")
    with pytest.raises(DataError, match="has no chat template"):
        template_of(with_template(None))
    picky = template_of(with_template("{{ raise_exception('no users') }}"))
    with pytest.raises(DataError, match=r"`rows` row 1: .*no users"):
        convert(CHATS["messages"], "text", render=picky)


@pytest.mark.parametrize(
    ("row", "to", "says"),
    [
        (CALLS, "alpaca", "has tools"),
        ({"messages": [USER, REPLY, USER, REPLY]}, "alpaca", "3 messages"),
        ({"text": "a"}, "messages", "plain text, which has no roles"),
        ({"input_ids": [1, 2]}, "messages", "token ids"),
        ({"messages": [USER]}, "prompt_completion", "does not end with an answer"),
        ({"prompt": "a"}, "prompt_completion", "holds no answer"),
        ({"prompt": "a", "completion": "b"}, "preference", "no worse answer"),
        ({"prompt": "a", "completion": "b"}, "unpaired", "does not say whether"),
        ({"prompt": "a", "completion": "b"}, "tokens", "no token ids"),
        ({"question": "a"}, "messages", "fit no format"),
        (
            {"prompt": "a", "chosen": "b", "rejected": [REPLY]},
            "unpaired",
            "one of `chosen` and `rejected` is text",
        ),
        (
            {"prompt": "a", "completion": "b", "label": False},
            "messages",
            "`label` says that the answer is bad",
        ),
        (
            {"prompt": "a", "completion": "b", "label": "0"},
            "prompt",
            "`label` says that the answer is bad",
        ),
        (
            {"prompt": "a", "completion": "b", "label": "maybe"},
            "unpaired",
            "`label` should be true or false",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_with_its_place(
    row: dict[str, Any], to: str, says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        convert(row, to)
    assert "`rows` row 1" in caught.value.message
    assert caught.value.hint


def test_formats_are_named_in_the_message() -> None:
    with pytest.raises(ConfigError, match="unknown format `chatt`") as caught:
        convert(CHATS["messages"], "chatt")
    assert all(name in caught.value.hint for name in WRITERS)


def test_the_command_reads_and_writes_every_kind(
    chuk: Chuk, rows_file: Callable[..., Path]
) -> None:
    path = rows_file({"question": "2 + 3?", "answer": "5"}, {"question": "ü", "answer": '"x", y'})
    names = ["--rename", "question=prompt", "--rename", "answer=completion"]
    for name in ("a.parquet", "a.csv", "a.json", "a.jsonl.gz"):
        done = chuk("data", "convert", path, *names, "-o", name, "--json")
        assert (done.returncode, json.loads(done.stdout)["rows"]) == (0, 2), done.stderr
        back = chuk("data", "convert", name, "--to", "prompt_completion")
        assert [json.loads(line) for line in back.stdout.splitlines()] == [
            {"prompt": "2 + 3?", "completion": "5"},
            {"prompt": "ü", "completion": '"x", y'},
        ]
    again = chuk("data", "convert", path, "-o", "a.csv")
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
