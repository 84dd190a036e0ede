"""Preferences that cannot be learned from: file and line or option, what is wrong, and what to
do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.bad_input.conftest import Fails
from tests.conftest import ROOT

GOOD = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
FILES = {
    "no_rejected": [GOOD, {"prompt": "a", "chosen": "b"}],
    "equal": [GOOD, GOOD | {"rejected": "2"}],
    "numbers": [GOOD | {"chosen": 2}],
    "mixed": [GOOD | {"chosen": [{"role": "assistant", "content": "2"}]}],
    "no_label": [{"prompt": "a", "completion": "b"}],
    "odd_label": [{"prompt": "a", "completion": "b", "label": "maybe"}],
    "long": [GOOD | {"prompt": "1+1=" * 200}],
    "pairs": [GOOD] * 4,
    "text": [{"text": "plain"}],
}
CASES = [
    (
        "dpo --data no_rejected.jsonl",
        1,
        "`no_rejected.jsonl` line 2 has no `rejected`",
        '"rejected": "…"',
    ),
    (
        "dpo --data equal.jsonl",
        1,
        "`equal.jsonl` line 2: `chosen` and `rejected` are equal",
        "remove the row",
    ),
    (
        "dpo --data numbers.jsonl",
        1,
        "`numbers.jsonl` line 1: `chosen` should be text, not a number",
        "as a string",
    ),
    (
        "dpo --data mixed.jsonl",
        1,
        "line 1: one of `chosen` and `rejected` is text, the other messages",
        "the same",
    ),
    ("dpo --data text.jsonl", 1, "`text.jsonl` line 1 has no `chosen`", "a preference row is"),
    (
        "dpo --data long.jsonl --max-length 64",
        1,
        "none of the 1 rows has room",
        "max_length (64 tokens): raise it",
    ),
    (
        "reward --data long.jsonl --max-length 64",
        1,
        "none of the 1 rows has room",
        "rows are longer than max_length",
    ),
    ("orpo --data equal.jsonl", 1, "line 2: `chosen` and `rejected` are equal", "remove the row"),
    ("kto --data no_label.jsonl", 1, "`no_label.jsonl` line 1 has no `label`", '"label": true'),
    (
        "kto --data odd_label.jsonl",
        1,
        "line 1: `label` should be true or false, not `maybe`",
        '"label": true',
    ),
    ("kto --data pairs.jsonl --batch-size 1", 2, "there is one row in it", "raise batch_size"),
    (
        "dpo --data pairs.jsonl --loss-type sigmod",
        2,
        "there is no loss_type `sigmod`",
        "did you mean `sigmoid`?",
    ),
    (
        "dpo --data pairs.jsonl --loss-type exo_pair",
        2,
        "needs label smoothing above 0",
        "label_smoothing=1e-3",
    ),
    (
        "dpo --data pairs.jsonl --ref-model alien",
        2,
        "has another vocabulary (320 tokens",
        "the policy's tokenizer",
    ),
    ("dpo --data pairs.jsonl --ref-model gone", 1, "no model at `gone`", "name a folder"),
    ("cpo --data pairs.jsonl --loss-type simpo --beta 0", 2, "should be above 0", "beta"),
    ("dpo", 2, "no data given", "--data"),
]


@pytest.fixture(scope="module")
def rows(bench: Path) -> None:
    for name, content in FILES.items():
        (bench / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    shutil.copytree(
        ROOT / "tests" / "fixtures" / "parity" / "models" / "llama-tiny", bench / "alien"
    )


@pytest.mark.parametrize(("args", "code", "says", "hint"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.usefixtures("rows")
def test_it_says_what_is_wrong(args: str, code: int, says: str, hint: str, fails: Fails) -> None:
    fails(f"train {args} --model good --output out", code, says, hint)
