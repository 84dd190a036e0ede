"""What is played outside of a training: `chuk eval`, `chuk infer`, `chuk data sample` and
`chuk env show` with an environment or a tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunChuk
from tests.env.conftest import CALL, write

ROW = '{"prompt": "1+2=", "answer": "3"}'
WRONG = '''
class Raises:
    def __init__(self):
        raise RuntimeError("no licence")

    def reset(self, **row):
        return None


class NoReset:
    def go(self, a: int) -> str:
        """Go.

        Args:
            a: It.
        """
        return "x"


class Untyped:
    def reset(self, **row):
        return None

    def go(self, a):
        return a
'''
COUNTER = ["--env", "mine.py:Counter"]


def answered(run_chuk: RunChuk, *words: Any) -> Any:
    done = run_chuk(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_plays_are_measured(run_chuk: RunChuk, caller: Path, tmp_path: Path) -> None:
    write(tmp_path)
    words = ["eval", "--model", caller, "--data", "prompts.jsonl", *COUNTER, "--rows", "2"]
    found = answered(run_chuk, *words, "--output", "all.jsonl")
    assert list(found["rewards"]) == ["environment"]
    assert found["reward"] == found["plays"]["calls"] == found["plays"]["success"] == 1
    assert found["plays"] == found["plays"] | {"turns": 2, "failed_calls": 0, "reasons": {"eos": 2}}
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert lines[0]["messages"] == [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "name": "add"},
        {"role": "assistant", "content": "3"},
    ]
    # One turn: the call is made, and nothing comes of it.
    once = answered(run_chuk, *words, "--max-turns", "1", "--reward", "exact_match")
    assert list(once["rewards"]) == ["exact_match", "environment"]
    assert (once["plays"]["turns"], once["plays"]["calls"], once["plays"]["success"]) == (1, 0, 0)
    shown = run_chuk(*words)
    assert "success 100.0 %  turns 2  calls 1, 0.0 % failed  ended: 2 × eos" in shown.stdout


def test_a_play_is_watched_turn_by_turn(run_chuk: RunChuk, caller: Path, tmp_path: Path) -> None:
    write(tmp_path)
    words = ["infer", "--model", caller, *COUNTER]
    seen = run_chuk(*words, "--row", ROW)
    assert seen.returncode == 0, seen.stderr
    turns = ["user: 1+2=", "assistant: add(a=1, b=2)", "tool: 3", "assistant: 3"]
    assert seen.stderr.splitlines()[1:] == turns  # behind "loading …"
    assert seen.stdout == "reward 1\n"
    found = answered(run_chuk, *words, "--prompt", "1+2=")
    assert [turn["role"] for turn in found["turns"]] == ["user", "assistant", "tool", "assistant"]
    assert (found["reward"], found["calls"], found["finish_reason"]) == (1, 1, "eos")


@pytest.mark.parametrize("form", ["messages", "prompt_completion"])
def test_plays_that_won_train_as_they_are(
    form: str, run_chuk: RunChuk, caller: Path, tmp_path: Path
) -> None:
    write(tmp_path)
    words = ["data", "sample", "prompts.jsonl", "--model", caller, *COUNTER, "--rows", "2"]
    words += ["--samples", "2", "--temperature", "0.2", "--seed", "1", "--max-tokens", "160"]
    made = answered(run_chuk, *words, "--to", form, "--output", "won.jsonl")
    assert made["rows"] == made["solved"] == 2
    row = json.loads((tmp_path / "won.jsonl").read_text().splitlines()[0])
    turns = row["messages"] if form == "messages" else [*row["prompt"], *row["completion"]]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "assistant"]
    assert turns[1]["tool_calls"] == [CALL]
    assert row["tools"][0]["function"]["name"] == "add"
    assert (row["reward"], row["answer"], "environments" in row) == (1, "3", False)
    trained = run_chuk(
        "train", "sft", "--model", caller, "--data", "won.jsonl", "--max-steps", "1", "--output",
        "run", "--quiet", "--assistant-only-loss",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    # It is what the model does already: the rows are rendered as they were played.
    events = map(json.loads, (tmp_path / "run/events.jsonl").read_text().splitlines())
    assert next(one["data"]["loss"] for one in events if one["kind"] == "step") < 0.1


def test_won_and_lost_plays_make_pairs(run_chuk: RunChuk, caller: Path, tmp_path: Path) -> None:
    write(tmp_path)
    words = ["data", "sample", "prompts.jsonl", "--model", caller, *COUNTER, "--to", "preference"]
    words += ["--samples", "16", "--temperature", "1.2", "--seed", "2", "--max-tokens", "160"]
    made = answered(run_chuk, *words, "--output", "pairs.jsonl")
    assert made["rows"] > 0
    row = json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])
    assert row["chosen_reward"] >= 1 > row["rejected_reward"]
    assert [turn["role"] for turn in row["chosen"]][:2] == ["assistant", "tool"]
    assert isinstance(row["prompt"], list)
    words = ["train", "dpo", "--model", caller, "--data", "pairs.jsonl", "--max-steps", "1"]
    trained = run_chuk(*words, "--output", "run", "--quiet")
    assert trained.returncode == 0, trained.stderr


def test_what_a_model_is_shown(run_chuk: RunChuk, caller: Path, tmp_path: Path) -> None:
    write(tmp_path)
    words = ["env", "show", "mine.py:Counter", "--row", ROW]
    found = answered(run_chuk, *words, "--model", caller)
    assert found["tools"][0]["function"]["parameters"]["required"] == ["a", "b"]
    assert found["reward"] is True
    assert "Add two numbers." in found["prompt"]
    assert "1+2=" in found["prompt"]
    assert "ANSWER" in found["between"]
    assert found["calls"].startswith("<tool_call>")
    assert found["template"] == "as the model has it"
    plain = run_chuk(*words)
    assert plain.returncode == 0, plain.stderr
    assert "reward: get_reward" in plain.stdout


def test_what_cannot_be_made_is_listed_with_its_reason(run_chuk: RunChuk, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    (one, other) = answered(run_chuk, "env", "ls", "wrong.py")["environments"]
    assert one["problems"] == {"Raises": "environment `Raises` cannot be made: no licence"}
    assert "has no docstring" in other["problems"]["go"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "--data", "prompts.jsonl", "--max-turns", "2"], "`--max-turns` is of plays"),
        (["eval", "--tasks", "arc_easy", "--max-turns", "2"], "`--max-turns` is of plays"),
        (["infer", "--prompt", "1", "--row", ROW], "`--row` is of plays"),
        (["infer", *COUNTER, "--prompt", "1", "--row", ROW], "both say what is asked"),
        (["infer", *COUNTER, "--input", "prompts.jsonl"], "`--input` means nothing"),
        (["infer", *COUNTER, "--prompt", "1", "--system", "x"], "`--system` means nothing"),
        (["eval", *COUNTER, "--tasks", "sciq"], "`--env` means nothing beside `--tasks`"),
        (["eval", "--data", "prompts.jsonl", "--env", "mine.py:Bare"], "has no tools"),
        (["data", "sample", "prompts.jsonl", "--tool", "mine.py:add"], "no reward says"),
        (["env", "show", "mine.py:Bare"], "has no tools"),
        (["env", "show", "--row", ROW], "nothing to show"),
        (["env", "show", "wrong.py:Raises"], "cannot be made: no licence"),
        (["env", "show", "wrong.py:NoReset"], "has no method `reset`"),
        (["env", "show", "wrong.py:Untyped"], "tool `go` has no schema"),
        (["env", "play", "wrong.py:Raises"], "cannot be made: no licence"),
        (["env", "play", "mine.py:Bare"], "has no tools"),
    ],
)
def test_what_makes_no_play_is_refused(
    words: list[str], said: str, run_chuk: RunChuk, caller: Path, tmp_path: Path
) -> None:
    (write(tmp_path) / "wrong.py").write_text(WRONG)
    done = run_chuk(*words, *(() if words[0] == "env" else ("--model", caller)))
    assert done.returncode == 2
    assert said in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1
