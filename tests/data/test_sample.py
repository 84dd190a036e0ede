"""Rejection sampling with a real tiny model: what rewards accept is kept, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data import read_records
from chuk_lib.errors import ConfigError, DataError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.models import load_model
from chuk_lib.rewards import load_rewards
from chuk_lib.training.rejection_sampling import SampleCounts, SampleRules, sampled
from tests.data.conftest import Chuk

ROWS: list[dict[str, Any]] = [{"prompt": f"{n}+1=", "id": n} for n in range(6)]
HOT = SamplingConfig(temperature=1.0, max_tokens=40, seed=7)


def letters(completions: list[Any], **columns: Any) -> list[float | None]:
    """The share of signs that are letters; None for answers of one sign."""
    plain = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [sum(map(str.isalpha, text)) / len(text) if len(text) > 1 else None for text in plain]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> tuple[Any, Any]:
    loaded, tokenizer = load_model(str(tiny_model_dir))
    return loaded, tokenizer


def sample(
    model: tuple[Any, Any], rules: SampleRules, rows: Any = ROWS, **options: Any
) -> tuple[list[Any], SampleCounts]:
    counts = SampleCounts()
    rewards = load_rewards([options.pop("reward", letters)])
    config = options.pop("config", HOT)
    made = sampled(*model, read_records(rows), rewards, config, rules, counts, **options)
    return list(made), counts


def test_the_best_accepted_answer_of_each_prompt(model: tuple[Any, Any]) -> None:
    every, counts = sample(model, SampleRules(answers=8, threshold=0.3, keep="all"))
    best, _ = sample(model, SampleRules(answers=8, threshold=0.3))
    assert counts.prompts == 6
    assert counts.answers == 48
    assert 0 < counts.accepted < counts.answers - counts.cut
    assert 0 < counts.cut < 48
    assert all(
        row["reward"] >= 0.3 and row["reward"] == pytest.approx(letters([row["completion"]])[0])
        for row in every
    )
    assert [row["id"] for row in best] == sorted({row["id"] for row in every})
    for row in best:
        assert row["reward"] == max(other["reward"] for other in every if other["id"] == row["id"])
    stricter, _ = sample(model, SampleRules(answers=8, threshold=0.8, keep="all"))
    assert len(stricter) < len(every)


def test_the_result_does_not_hang_on_how_many_are_asked_at_once(model: tuple[Any, Any]) -> None:
    rules = SampleRules(answers=4, threshold=0.2, keep="all")
    assert sample(model, rules)[0] == sample(model, rules, prompts_at_once=2)[0]
    other = SamplingConfig(temperature=1.0, max_tokens=40, seed=8)
    assert sample(model, rules)[0] != sample(model, rules, config=other)[0]


def test_pairs_prefer_the_better_answer(model: tuple[Any, Any]) -> None:
    pairs, _ = sample(model, SampleRules(answers=8, threshold=0.15, format="preference"))
    assert pairs
    for pair in pairs:
        assert pair["chosen_reward"] >= 0.15 > pair["rejected_reward"]
        assert letters([pair["chosen"], pair["rejected"]]) == pytest.approx(
            [pair["chosen_reward"], pair["rejected_reward"]]
        )
    apart, _ = sample(
        model, SampleRules(answers=8, threshold=0.15, format="preference", margin=0.2)
    )
    assert len(apart) < len(pairs)
    assert all(pair["chosen_reward"] - pair["rejected_reward"] > 0.199 for pair in apart)


def test_prompts_of_messages_give_messages(parity: Path) -> None:
    chat = load_model(str(parity / "models" / "llama-tiny"))
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "id": 1}]
    config = SamplingConfig(
        temperature=1.0, max_tokens=8, seed=1, stop=("e", "a", "i", "o", "t", "n")
    )
    made, _ = sample(
        chat,
        SampleRules(answers=16, threshold=0, keep="all", format="messages"),
        rows,
        config=config,
    )
    assert made
    assert [turn["role"] for turn in made[0]["messages"]] == ["user", "assistant"]
    sides, _ = sample(chat, SampleRules(answers=16, threshold=0), rows, config=config)
    assert sides[0]["completion"][0]["role"] == "assistant"


def test_requests_that_cannot_be_met(model: tuple[Any, Any]) -> None:
    for wrong in ({"keep": "worst"}, {"format": "alpaca"}, {"answers": 1, "format": "preference"}):
        with pytest.raises(ConfigError):
            SampleRules(**wrong)
    with pytest.raises(ConfigError, match="would be the same"):
        sample(model, SampleRules(), config=SamplingConfig())
    with pytest.raises(DataError, match="needs the column"):
        sample(model, SampleRules(), reward="exact_match")


def test_the_command(
    chuk: Chuk, rows_file: Callable[..., Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = rows_file(*ROWS)
    (tmp_path / "mine.py").write_text(
        "def share(completions, **columns):\n"
        "    return [sum(map(str.isalpha, text)) / max(1, len(text)) for text in completions]\n"
    )
    asked = [
        "--model",
        tiny_model_dir,
        "--reward",
        "mine.py:share",
        "--threshold",
        "0.3",
        "--max-tokens",
        "40",
        "-n",
        "8",
    ]
    done = chuk("data", "sample", path, *asked, "-o", "out.jsonl", "--json", "--batch-size", "4")
    result = json.loads(done.stdout)
    assert (result["prompts"], result["answers"]) == (6, 48)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == result["rows"] == result["solved"] > 0
    assert set(rows[0]) == {"prompt", "completion", "reward", "id"}
    dry = chuk("data", "sample", path, *asked, "--dry-run", "--batch-size", "2", "--json")
    assert (dry.stdout, json.loads(dry.stderr.splitlines()[-1])["prompts"]) == ("", 2)
