"""Data that cannot be trained on: file and line, what is wrong, and what would fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_input.conftest import Fails

ROLES = b'{"messages": [{"role": "user", "content": "Hi"}]}\n'
FILES = {
    "blank.jsonl": b"\n\n",
    "latin.jsonl": b'{"text": "ok"}\n{"text": "caf\xe9"}\n',
    "broken.jsonl": b'{"text": "ok"}\n{"text": \n',
    "cut.jsonl": b'{"text": "ok"}\n{"text": "o',
    "list.jsonl": b'{"text": "ok"}\n[1, 2]\n',
    "columns.jsonl": b'{"query": "a", "response": "b"}\n',
    "null.jsonl": b'{"prompt": "a", "completion": null}\n',
    "number.jsonl": b'{"prompt": "a", "completion": "b"}\n{"prompt": 3, "completion": "b"}\n',
    "object.jsonl": b'{"text": {"a": 1}}\n',
    "mixed.jsonl": b'{"text": "a b"}\n{"prompt": "a", "completion": "b"}\n',
    "half.jsonl": b'{"text": "a \\ud83d b"}\n',
    "no_content.jsonl": b'{"messages": [{"role": "user"}]}\n',
    "no_messages.jsonl": b'{"messages": []}\n',
    "user_only.jsonl": ROLES,
    "words.docx": b"hello",
    "broken.json": b'[{"text": "a"},\n {"text": ]',
    "half.json": b'[{"text": "\\udc00"}]',
    "wide.csv": b"prompt,completion\n1,2,3\n",
    "not.parquet": b"hello",
    "not.jsonl.gz": b"hello",
    "nothing.jsonl": b"",
}
CASES = [
    ("zzzz", "`zzzz` does not exist", "owner/name"),
    ("goood.jsonl", "`goood.jsonl` does not exist", "did you mean `good.jsonl`?"),
    ("no/such.jsonl", "`no/such.jsonl` does not exist", "the folder `no` does not exist either"),
    (
        "some/dataset",
        "hub cannot be reached (HF_HUB_OFFLINE is set)",
        "hf download --repo-type dataset some/dataset",
    ),
    ("nothing.jsonl", "`nothing.jsonl` holds no records", '{"text": "…"}'),
    ("blank.jsonl", "`blank.jsonl` holds no records", '{"text": "…"}'),
    ("empty", "`empty` has no train file (found: no data file)", "train.jsonl"),
    (
        "latin.jsonl",
        "`latin.jsonl` line 2 is not UTF-8 (byte 0xe9 at position 14)",
        "iconv -f ENCODING -t UTF-8 latin",
    ),
    (
        "broken.jsonl",
        "`broken.jsonl` line 2 is not JSON: expecting value at column 9",
        "one JSON object",
    ),
    ("cut.jsonl", "`cut.jsonl` line 2 is not JSON: unterminated string", "may be cut off"),
    ("list.jsonl", "`list.jsonl` line 2 is a list, not an object", '{"text": "…"}'),
    (
        "columns.jsonl",
        "line 1 has the columns `query`, `response`, which fit no format",
        "--rename query=prompt --rename response=completion",
    ),
    (
        "null.jsonl",
        "`null.jsonl` line 1: `completion` should be text, not null",
        "write it as a string",
    ),
    (
        "number.jsonl",
        "`number.jsonl` line 2: `prompt` should be text, not a number",
        "write it as a string",
    ),
    (
        "object.jsonl",
        "`object.jsonl` line 1: `text` should be text, not an object",
        "write it as a string",
    ),
    (
        "mixed.jsonl",
        "`mixed.jsonl` line 2 has no `text` (it has `prompt`, `completion`)",
        "one format per file",
    ),
    ("half.jsonl", "`half.jsonl` line 1 holds half a character (`\\ud83d`)", "write the row again"),
    ("half.json", "`half.json` row 1 holds half a character (`\\udc00`)", "write the row again"),
    (
        "no_content.jsonl",
        "line 1: message 1 of `messages` has no `content`",
        '{"role": "user", "content": "…"}',
    ),
    (
        "no_messages.jsonl",
        "line 1: `messages` should be a list of messages, not an empty list",
        '{"role": "user"',
    ),
    ("words.docx", "`words.docx` has no suffix that says what it holds", ".jsonl"),
    ("broken.json", "`broken.json` line 2 column 11 is not JSON", "array of rows"),
    ("wide.csv", "`wide.csv` line 2 has 3 fields, the header has 2", "quote fields"),
    ("not.parquet", "`not.parquet` is not readable as Parquet", "download the file again"),
    ("not.jsonl.gz", "`not.jsonl.gz` cannot be read: Not a gzipped file", "check the file"),
]


@pytest.fixture(scope="module", autouse=True)
def files(bench: Path) -> None:
    """All the broken files, beside the good one."""
    for name, content in FILES.items():
        (bench / name).write_bytes(content)


@pytest.mark.parametrize(("data", "says", "hint"), CASES, ids=[case[0] for case in CASES])
def test_training_says_what_is_wrong_with_the_data(
    fails: Fails, data: str, says: str, hint: str
) -> None:
    fails(f"train sft -m good -d {data} -o out", 1, says, hint)


@pytest.mark.parametrize(
    "command", ["eval -m good", "data preview -m good", "train sft -m good -o out"]
)
@pytest.mark.parametrize("index", [0, 4, 7, 8, 10, 11], ids=lambda index: CASES[index][0])
def test_every_reader_of_data_says_the_same(fails: Fails, command: str, index: int) -> None:
    data, says, hint = CASES[index]
    fails(f"{command} -d {data}", 1, says, hint)


def test_validation_data_is_checked_before_anything_is_written(fails: Fails) -> None:
    fails(
        "train sft -m good -d good.jsonl --eval-data broken.jsonl -o out",
        1,
        "broken.jsonl` line 2",
        "JSON object",
    )


def test_rows_without_anything_to_learn(fails: Fails) -> None:
    train = "train sft -m good -o out"
    fails(
        f"{train} -d user_only.jsonl --assistant-only-loss",
        1,
        "none of the 1 rows has a token",
        "assistant turns",
    )
    fails(
        f"{train} -d good.jsonl --max-length 4",
        1,
        "none of the 16 rows has a token",
        "max_length (4 tokens): raise",
    )
    fails(
        f"{train} -d good.jsonl --max-length 3 --packing",
        1,
        "none of the 16 rows",
        "max_length (3 tokens): raise",
    )
    fails(
        f"{train} -d good.jsonl --assistant-only-loss",
        1,
        "`good.jsonl` line 1 holds plain text",
        "give messages",
    )


def test_standard_input(fails: Fails) -> None:
    train = "train sft -m good -d - -o out"
    fails(train, 1, "stdin holds no records", "one row a line")
    fails(train, 1, "`stdin` line 1 is not JSON", "JSON object", stdin=b'{"text": \n')
    fails(train, 1, "`stdin` line 2 is not UTF-8", "iconv", stdin=FILES["latin.jsonl"])
    fails("infer -m good", 2, "there is no prompt: stdin is empty", "--prompt TEXT")
    fails(
        "infer -m good -p -",
        1,
        "stdin is not UTF-8 text (byte 0xff at position 1)",
        "iconv",
        stdin=b"\xff\xfe",
    )


def test_formats_and_splits_that_are_not_there(fails: Fails) -> None:
    fails(
        "train sft -m good -d good.jsonl -o out --set format=chatt",
        2,
        "`format` should be one of tokens",
        "unset",
    )
    fails(
        "train sft -m good -d good.jsonl -o out --set format=text",
        1,
        "line 1 has no `text`",
        "prompt_completion",
    )
    fails(
        "data preview -m good -d good.jsonl --split valid",
        1,
        "is one file and has no valid split",
        "valid file",
    )
    fails("eval -m good -d good.jsonl --split tset", 2, "has no tset split", "test, valid, train")
    fails("eval -m good -d mixed.jsonl", 1, "`mixed.jsonl` line", "")
