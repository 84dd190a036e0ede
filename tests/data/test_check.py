"""Checking: every kind of problem is found, with its file and line, and clean data passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data.generators import MathProblemGenerator
from chuk_lib.data.generators.rows import FORMATS, to_row
from chuk_lib.data.workbench.check import KINDS, RowChecker, RowProblem
from chuk_lib.errors import ConfigError, DataError, ModelError
from tests.data.conftest import Chuk

U, A, T = (
    {"role": role, "content": f"words of the {role}"} for role in ("user", "assistant", "tool")
)
LONG = (
    "the quick brown fox jumps over the lazy dog and runs into the dark green forest to find some"
    " food for itself"
)


def check(path: Path, **options: Any) -> list[RowProblem]:
    return list(RowChecker(**options).problems([(path.name, path, "train")]))


def found(path: Path, **options: Any) -> list[tuple[str, int]]:
    return [(problem.kind, problem.line) for problem in check(path, **options)]


@pytest.mark.parametrize("format", FORMATS)
def test_generated_data_is_clean(
    rows_file: Callable[..., Path], tokenizer: Any, format: str
) -> None:
    samples = MathProblemGenerator(3).generate_batch(300)
    path = rows_file(*(to_row(sample, format) for sample in samples))
    assert check(path, near=False) == []
    assert found(path, tokenizer=tokenizer, max_length=2000, ignore=["near", "template"]) == []


def test_rows_that_cannot_be_read_are_all_found(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "a good one"}\n{"text": \n[1]\n{"text": "caf\xe9"}\n\n{"text": "half \\ud83d"}\n'
        b'{"text": 5}\n{"prompt": "x", "completion": "y"}\n{"text": "another"}\n{"text": "cut'
    )
    assert found(path) == [
        ("broken", 2),
        ("broken", 3),
        ("encoding", 4),
        ("encoding", 6),
        ("format", 7),
        ("format", 8),
        ("broken", 10),
    ]
    first, *_ = check(path)
    assert str(first) == f"{path}:2: broken: is not JSON: expecting value at column 9"
    assert first.hint
    table = tmp_path / "a.csv"
    table.write_text("prompt,completion\na,b\nc\nd,e,f\ng,h\n")
    assert found(table) == [("broken", 3), ("broken", 4)]


def test_a_file_that_cannot_be_read_at_all_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 this is none PAR1")
    (problem,) = check(path)
    assert (problem.kind, problem.file, problem.line) == ("broken", str(path), 0)
    with pytest.raises(DataError, match="does not exist"):
        check(tmp_path / "b.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no records"):
        check(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        ({"text": "  \n"}, "empty", "the text is empty"),
        ({"prompt": "a", "completion": " "}, "empty", "the answer is empty"),
        ({"prompt": "", "completion": "b"}, "empty", "the prompt is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "empty", "the rejected answer is empty"),
        ({"prompt": "a", "completion": "", "label": True}, "empty", "the answer is empty"),
        (
            {"messages": [U, {"role": "assistant", "content": ""}]},
            "empty",
            "message 2 is an empty answer",
        ),
        ({"input_ids": [1]}, "empty", "1 tokens leave nothing"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "preference", "are equal"),
        ({"text": "lost \ufffd sign"}, "encoding", "U+FFFD"),
        ({"text": "a \x00 byte"}, "encoding", "U+0000"),
        ({"text": "cafÃ© au lait"}, "encoding", "decoded wrongly"),
        ({"messages": [A, U]}, "roles", "the assistant speaks before the user"),
        ({"messages": [U, U, A]}, "roles", "user after user"),
        ({"messages": [U, A, A]}, "roles", "speaks twice"),
        (
            {"messages": [U, A, {"role": "system", "content": "late"}, A]},
            "roles",
            "system after assistant",
        ),
        ({"messages": [U, T, A]}, "roles", "a tool's result after user"),
        ({"messages": [U, A, U]}, "roles", "the last message is the user's"),
        ({"messages": [U, {"role": "narrator", "content": "x"}]}, "roles", "`narrator` is no role"),
        ({"prompt": [U, A], "answer": "x"}, "roles", "the prompt ends with the assistant's"),
        ({"prompt": [A], "chosen": [A], "rejected": [T]}, "roles", ""),
        (
            {
                "messages": [U, {**A, "tool_calls": [{"function": {"name": "mul"}}]}, T, A],
                "tools": [{"type": "function", "function": {"name": "add"}}],
            },
            "roles",
            "calls `mul`",
        ),
    ],
)
def test_every_fault_of_a_row(
    rows_file: Callable[..., Path], row: dict[str, Any], kind: str, says: str
) -> None:
    problems = check(rows_file(row))
    assert (kind, 1) in [(problem.kind, problem.line) for problem in problems]
    assert any(says in problem.message for problem in problems)
    assert all(problem.hint for problem in problems)
    assert found(rows_file(row), ignore=KINDS) == []


def test_a_clean_conversation_has_no_fault(rows_file: Callable[..., Path]) -> None:
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "add", "arguments": {}}}],
    }
    row = {
        "messages": [
            {"role": "system", "content": "be brief"},
            U,
            call,
            T,
            T,
            A,
            {**U, "content": "more"},
            A,
        ]
    }
    assert check(rows_file(row)) == []


def test_repeated_rows(rows_file: Callable[..., Path]) -> None:
    near = LONG.replace("dark", "deep")
    path = rows_file(
        {"text": LONG, "id": 1},
        {"text": "short one"},
        {"text": f"  {LONG.replace(' ', '  ')}\n", "id": 2},
        {"text": near},
        {"text": "short two"},
        {"text": " ".join(reversed(LONG.split()))},
    )
    assert found(path, threshold=0.7) == [("duplicate", 3), ("near", 4)]
    assert found(path, near=False) == [("duplicate", 3)]
    assert found(path, threshold=0.95) == [("duplicate", 3)]
    assert "line 1" in check(path)[0].message
    ids = rows_file({"text": "a", "id": 1}, {"text": "b", "id": 1}, name="ids.jsonl")
    assert found(ids, by=["id"]) == [("duplicate", 2)]


def test_leaks_across_splits(tmp_path: Path, rows_file: Callable[..., Path]) -> None:
    rows_file(
        {"prompt": "2 + 3?", "completion": "5"},
        {"prompt": LONG, "completion": "yes"},
        name="train.jsonl",
    )
    rows_file(
        {"prompt": "9 + 9?", "completion": "18"},
        {"prompt": "2 +  3?", "completion": "it is 5"},
        name="valid.jsonl",
    )
    rows_file({"prompt": LONG.replace("dark", "deep"), "completion": "yes"}, name="test.jsonl")
    sources = [(name, tmp_path, name) for name in ("train", "valid", "test")]
    checker = RowChecker(threshold=0.7)
    problems = list(checker.problems(sources))
    assert [(problem.kind, Path(problem.file).name, problem.line) for problem in problems] == [
        ("leak", "valid.jsonl", 2),
        ("leak", "test.jsonl", 1),
    ]
    assert "is in train" in problems[0].message
    assert checker.rows == {"train": 2, "valid": 2, "test": 1}


def test_tokens_and_template(
    rows_file: Callable[..., Path], tokenizer: Any, with_template: Callable[[str | None], Any]
) -> None:
    chat = {"messages": [U, A]}
    path = rows_file(chat, {"messages": [{**U, "content": "word " * 300}, A]})
    assert found(path, tokenizer=tokenizer, max_length=200, near=False) == [("long", 2)]
    assert found(path, tokenizer=tokenizer, near=False) == []
    forgetful = with_template(
        "{% for m in messages %}{{ m['content'][:100] }}{% endfor %}{{ eos_token }}"
    )
    assert found(path, tokenizer=forgetful, near=False) == [("template", 2)]
    picky = with_template(
        "{% if messages[0]['content']|length > 99 %}{{ raise_exception('long') }}{% endif %}"
    )
    assert ("template", 2) in found(path, tokenizer=picky, near=False)
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "add", "arguments": {}}}],
    }
    calls = rows_file({"messages": [U, call, T, A]}, name="calls.jsonl")
    assert found(calls, tokenizer=forgetful) == [("template", 1)]
    with pytest.raises(ModelError, match="has no chat template"):
        check(calls, tokenizer=with_template(None))
    pairs = rows_file({"prompt": "a", "chosen": "b", "rejected": "c " * 300}, name="pairs.jsonl")
    assert found(pairs, tokenizer=tokenizer, max_length=100) == [("long", 1)]


def test_kinds_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="unknown kind of problem `dupes`"):
        RowChecker(ignore=["dupes"])


def test_the_command(chuk: Chuk, tmp_path: Path, rows_file: Callable[..., Path]) -> None:
    rows_file(*({"text": "same"} for _ in range(30)), {"text": ""}, name="train.jsonl")
    rows_file({"text": "same"}, {"text": "other"}, name="test.jsonl")
    done = chuk("data", "check", tmp_path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert f"{tmp_path}/train.jsonl:31: empty: the text is empty" in lines
    assert sum(": duplicate: " in line for line in lines) == 20
    assert any(line.startswith("duplicate        29") for line in lines)
    assert "--limit 0" in done.stderr
    everything = chuk("data", "check", tmp_path, "--json")
    *problems, summary = [json.loads(line) for line in everything.stdout.splitlines()]
    assert summary == {
        "ok": False,
        "rows": {"train": 31, "test": 2},
        "problems": 31,
        "counts": {"duplicate": 29, "empty": 1, "leak": 1},
    }
    assert len(problems) == 31
    quiet = chuk("data", "check", "train.jsonl", "--against", "test.jsonl", "-q", "--limit", "1")
    assert quiet.stdout.split() == [
        "train.jsonl:31:empty",
        "train.jsonl:2:duplicate",
        "test.jsonl:1:leak",
    ]
    clean = chuk("data", "check", "test.jsonl")
    assert (clean.returncode, "nothing wrong with 2 rows" in clean.stdout) == (0, True)
