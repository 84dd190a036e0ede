"""Tasks of reasoning-gym: rows that their own scorer accepts, the same for a seed, none twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chuk_lib.data.generators import gym
from chuk_lib.errors import ConfigError, DataError
from tests.data.conftest import Chuk

pytest.importorskip("reasoning_gym")
SEVERAL = [
    "chain_sum",
    "countdown",
    "knights_knaves",
    "maze",
    "word_sorting",
    "graph_color",
    "syllogism",
    "base_conversion",
]


@pytest.mark.parametrize("task", SEVERAL)
def test_the_task_s_scorer_takes_its_own_answer_back_from_json(task: str) -> None:
    import reasoning_gym

    score = reasoning_gym.get_score_answer_fn(task)
    rows = [json.loads(json.dumps(row)) for row in gym.problems(task, 5, seed=3)]
    assert len({row["prompt"] for row in rows}) == 5
    for row in rows:
        assert set(row) == {"prompt", "answer", "task", "metadata"}
        assert row["task"] == row["metadata"]["source_dataset"] == task
        entry = {"question": row["prompt"], "answer": row["answer"], "metadata": row["metadata"]}
        right = (
            row["answer"]
            if row["answer"] is not None
            else json.dumps(row["metadata"]["possible_answer"])
        )
        assert score(right, entry) == 1.0
        assert score("no answer at all", entry) < 1.0


def test_a_seed_decides_and_settings_count() -> None:
    first = list(gym.problems("chain_sum", 300, seed=1))
    assert first == list(gym.problems("chain_sum", 300, seed=1))
    assert first != list(gym.problems("chain_sum", 300, seed=2))
    assert len({row["prompt"] for row in first}) == 300
    beside = {row["prompt"] for row in gym.problems("chain_sum", 300, seed=2)}
    assert len(beside & {row["prompt"] for row in first}) < 10
    longer = list(gym.problems("chain_sum", 3, settings={"min_terms": 9, "max_terms": 9}))
    assert all(row["metadata"]["num_terms"] == 9 for row in longer)
    (chat,) = gym.problems("chain_sum", 1, seed=1, as_messages=True)
    assert chat["prompt"] == [{"role": "user", "content": first[0]["prompt"]}]


def test_requests_that_cannot_be_met() -> None:
    with pytest.raises(ConfigError, match="there is no task `chainsum`") as caught:
        next(gym.problems("chainsum", 1))
    assert "chain_sum" in caught.value.hint
    with pytest.raises(ConfigError, match="no setting `terms`"):
        next(gym.problems("chain_sum", 1, settings={"terms": 3}))
    with pytest.raises(ConfigError, match="does not take these settings"):
        next(gym.problems("chain_sum", 1, settings={"min_terms": 5, "max_terms": 2}))
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(DataError, match=r"only about \d+ different"):
        list(gym.problems("chain_sum", 5000, settings=few))


def test_the_commands(chuk: Chuk, tmp_path: Path) -> None:
    listed = chuk("data", "tasks", "--json")
    assert {"task": "countdown", "kind": "games"} in json.loads(listed.stdout)
    settings = json.loads(chuk("data", "tasks", "chain_sum", "--json").stdout)["settings"]
    assert settings["min_terms"] == 2
    asked = [
        "--samples",
        "40",
        "--set",
        "min_terms=4",
        "--messages",
        "--valid",
        "0.1",
        "--test",
        "0",
        "--json",
    ]
    dry = chuk("data", "generate", "chain_sum", "-o", "sums", *asked, "--dry-run")
    assert (json.loads(dry.stdout)["rows"], (tmp_path / "sums").exists()) == (
        {"train": 36, "valid": 4},
        False,
    )
    done = chuk("data", "generate", "chain_sum", "-o", "sums", *asked)
    assert json.loads(done.stdout)["rows"] == {"train": 36, "valid": 4}
    assert chuk("data", "check", "sums").returncode == 0
    again = chuk("data", "generate", "chain_sum", "-o", "sums", *asked)
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    piped = chuk("data", "generate", "chain_sum", "-n", "2", "--seed", "5", "-o", "-")
    assert [json.loads(line)["task"] for line in piped.stdout.splitlines()] == ["chain_sum"] * 2
