"""What evaluations show of a row: the prompt up to the last answer, and what should follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chuk_cli.app import run

ASK, SAY = (
    {"role": "user", "content": "What is 18 * 2?"},
    {"role": "assistant", "content": "18 * 2 = 36"},
)
AGAIN = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes 36"}]


@pytest.mark.parametrize(
    "turns",
    [[ASK, SAY, *AGAIN], [ASK, SAY | {"weight": 0}, *AGAIN], AGAIN],
    ids=["every token", "one of no weight", "one turn"],
)
@pytest.mark.parametrize("flags", [[], ["--assistant-only-loss"]], ids=["default", "answers"])
def test_a_chat_is_cut_at_its_last_answer(
    tiny_model_dir: Path, tmp_path: Path, turns: list[dict[str, Any]], flags: list[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"messages": turns}) + "\n")
    words = [
        "train",
        "sft",
        "-m",
        tiny_model_dir,
        "--data",
        data,
        "--eval-data",
        data,
        "--max-steps",
        1,
        "-q",
    ]
    assert run([str(word) for word in [*words, "-o", tmp_path / "run", *flags]]) == 0
    events = [
        json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    ]
    (sample,) = [event["data"] for event in events if event["kind"] == "sample"]
    assert sample["prompt"].endswith("assistant\n")
    assert sample["target"].strip() == "Yes 36"
