"""Which rows are the same: all of what a row says counts, notes about it do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data.workbench.content import ask_of, content_columns, content_of
from chuk_lib.data.workbench.stats import script_of
from tests.data.conftest import Chuk

PUBLIC: dict[str, Callable[[int], dict[str, Any]]] = {
    "SST-2": lambda n: {"sentence": f"film {n}", "label": n % 2},
    "NLI": lambda n: {"premise": f"walks {n}", "hypothesis": f"moved {n * 7 % 40}", "label": n % 3},
    "HellaSwag": lambda n: {
        "ind": n % 4,
        "ctx": f"he {n}",
        "endings": ["a", "b"],
        "label": str(n % 4),
    },
    "PIQA": lambda n: {"goal": "open it", "sol1": f"pull {n}", "sol2": "push", "label": n % 2},
    "COPA": lambda n: {
        "premise": f"p {n}",
        "choice1": "a",
        "choice2": "b",
        "question": "cause",
        "label": n % 2,
    },
    "MMLU": lambda n: {
        "question": "Which is true?",
        "subject": "x",
        "choices": [str(n), "b"],
        "answer": n % 4,
    },
    "MMLU with prompts": lambda n: {
        "prompt": "Which is true?",
        "choices": [str(n), "b"],
        "completion": "A",
    },
    "query": lambda n: {"query": f"q {n}", "response": "yes"},
    "target": lambda n: {"question": "why", "target": f"t {n}"},
    "summary": lambda n: {"document": f"d {n}", "summary": "s", "instruction": "sum up"},
    "document": lambda n: {"document": f"d {n}", "output": "o"},
    "numbers": lambda n: {"x": n, "y": n * 2},
}


@pytest.mark.parametrize("name", PUBLIC)
def test_different_rows_of_public_sets_stay(
    chuk: Chuk, rows_file: Callable[..., Path], name: str
) -> None:
    path = rows_file(*map(PUBLIC[name], range(40)), PUBLIC[name](7))
    done = chuk("data", "dedupe", path, "--exact", "--quiet", "-o", "out.jsonl")
    assert done.returncode == 0
    assert len(path.with_name("out.jsonl").read_text().splitlines()) == 40
    if name != "MMLU with prompts":  # rows of one prompt stay together
        assert (
            chuk(
                "data", "split", path, "--exact", "--valid", "4", "--test", "4", "-o", "parts"
            ).returncode
            == 0
        )


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (
            {"prompt": "a", "completion": "b", "id": 1, "source": "x", "score": 0.5},
            ["prompt", "completion"],
        ),
        ({"messages": [], "prompt_id": "x", "url": "y", "created_at": "z"}, ["messages"]),
        (
            {"prompt": "a", "completion": "b", "rating": 3, "choices": ["c"]},
            ["prompt", "completion", "choices"],
        ),
        ({"text": "a", "label": 1, "language": "en"}, ["label", "text", "language"]),
        ({"premise": "a", "idx": 7}, ["idx", "premise"]),
    ],
)
def test_columns_that_decide(row: dict[str, Any], columns: list[str]) -> None:
    assert content_columns(row) == columns


def test_questions_of_rows_without_a_format() -> None:
    row = {"question": "Which?", "choices": ["x", "y"], "answer": 0, "idx": 1}
    assert ask_of(row) == ask_of({**row, "answer": 1, "idx": 2})
    assert ask_of(row) != ask_of({**row, "choices": ["x", "z"]})
    assert content_of(row) != content_of({**row, "answer": 1})


def test_dedupe_says_what_was_compared(chuk: Chuk, rows_file: Callable[..., Path]) -> None:
    path = rows_file({"premise": "a", "label": 1})
    assert "(compared: label, premise)" in chuk("data", "dedupe", path, "-o", "out.jsonl").stdout


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ([{"prompt": "2+2?", "completion": "4"}, {"prompt": "2+2?", "completion": "5"}], [2]),
        ([{"prompt": "2+2?", "completion": "4"}, {"prompt": "2+2? ", "completion": "4.0"}], []),
        (
            [
                {"prompt": "Hi", "completion": "Hello my friend"},
                {"prompt": "Hi", "completion": "Good day to you"},
            ],
            [],
        ),
        (
            [{"prompt": "a", "completion": "b", "label": label} for label in (True, True, False)],
            [3],
        ),
        (
            [
                {"prompt": "a", "chosen": "b", "rejected": "c"},
                {"prompt": "a", "chosen": "c", "rejected": "b"},
            ],
            [2],
        ),
        (
            [
                {"prompt": "a", "chosen": "b", "rejected": "c"},
                {"prompt": "a", "chosen": "b", "rejected": "d"},
            ],
            [],
        ),
    ],
)
def test_contradictions(
    chuk: Chuk, rows_file: Callable[..., Path], rows: list[dict[str, Any]], lines: list[int]
) -> None:
    path = rows_file(*rows)
    done = chuk("data", "check", path, "--exact", "--quiet", "--ignore", "duplicate")
    assert [line for line in done.stdout.splitlines() if line.endswith(":contradiction")] == [
        f"{path}:{line}:contradiction" for line in lines
    ]


@pytest.mark.parametrize(
    ("letters", "script"),
    [
        ("aßﬁªº𝐁Ａ℃", "Latin"),
        ("µαΩ", "Greek"),
        ("漢々", "Han"),
        ("カｶ", "Katakana"),
        ("ℵא", "Hebrew"),
        ("ʻー1 ", ""),
    ],
)
def test_scripts_are_scripts(letters: str, script: str) -> None:
    assert {script_of(letter) for letter in letters if letter.isalpha()} <= {script}
