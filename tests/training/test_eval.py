"""`chuk eval`: exact match, rewards, pass@k, two models, and the file of all completions."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chuk_cli.app import run
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.models.create import create_model
from chuk_lib.training.measuring.measure import Question, answer, compare, measure, read_question

PROMPTS = ["1+1=", "2+2=", "Name a colour.", "abc", "12", "x"]
REWARDS = """
def length(completion):
    return len(completion) / 10

def starts_low(completions, limit=100):
    return [float(ord(c[:1] or "z") < limit) for c in completions]

def odd_rows_only(prompt, completion, answer):
    return None if answer == "none" else 1.0
"""


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(create_model("nano", tmp_path_factory.mktemp("other") / "nano", seed=5))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Prompts with an answer each, and a file of reward functions beside them."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [
        {"prompt": prompt, "answer": "none" if at % 2 else "7"} for at, prompt in enumerate(PROMPTS)
    ]
    return write(tmp_path / "prompts.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chuk(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(["eval", *map(str, words)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_rewards_of_samples_as_json_and_as_a_file(
    data: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base = ["-m", tiny_model_dir, "-d", data, "--max-tokens", 8]
    words = [
        "--reward",
        f"{data.parent}/rewards.py:starts_low",
        "--reward",
        f"{data.parent}/rewards.py:odd_rows_only=0.5",
    ]
    file = tmp_path / "out" / "all.jsonl"
    found = json.loads(
        chuk(capsys, *base, *words, "--samples", 4, "--k", "1,2,4", "-o", file, "--json")
    )
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 24
    assert found["completions"] == rows[:20]
    assert [row["sample"] for row in rows] == [0, 1, 2, 3] * 6
    assert [row["prompt"] for row in rows] == [prompt for prompt in PROMPTS for _ in range(4)]
    assert (found["prompts"], found["samples"], found["rows"], found["metrics"]) == (6, 4, 6, {})
    low = np.array([row["rewards"]["starts_low"] for row in rows])
    assert found["rewards"]["starts_low"]["mean"] == pytest.approx(low.mean())
    assert found["rewards"]["starts_low"]["std"] == pytest.approx(low.std(ddof=1))
    assert found["rewards"]["odd_rows_only"] == {
        "mean": 1.0,
        "std": 0.0,
        "weight": 0.5,
        "unscorable": 12,
    }
    assert found["pass_reward"] == "starts_low"
    any_of_four = low.reshape(6, 4).any(axis=1).mean()
    assert found["pass_at_k"]["4"] == pytest.approx(any_of_four)
    assert found["pass_at_k"]["1"] == pytest.approx(low.mean())
    assert found["pass_at_k"]["1"] <= found["pass_at_k"]["2"] <= found["pass_at_k"]["4"]
    assert rows[0]["reward"] == pytest.approx(rows[0]["rewards"]["starts_low"] + 0.5)
    assert rows[4]["rewards"]["odd_rows_only"] is None


def test_every_option_of_sampling_changes_what_is_written(data: Path, tiny_model_dir: Path) -> None:
    def texts(samples: int = 2, **more: Any) -> list[str]:
        sampling = SamplingConfig(**{"seed": 0, **more.pop("sampling", {})})
        question = Question(
            str(data),
            max_tokens=6,
            samples=samples,
            sampling=sampling,
            rewards=("length:max=5",),
            **more,
        )
        return [
            row["completion"]
            for row in answer(read_question(question), str(tiny_model_dir)).completions()
        ]

    usual = texts()
    assert usual == texts()
    changes: list[dict[str, Any]] = [
        {"temperature": 0.3},
        {"sampling": {"seed": 1}},
        {"sampling": {"top_k": 2}},
        {"sampling": {"top_p": 0.3}},
        {"sampling": {"min_p": 0.9}},
        {"sampling": {"stop": (next(filter(None, usual))[0],)}},
        {"max_rows": 3},
        {"samples": 1},
    ]
    for change in changes:
        assert texts(**change) != usual, change
    assert texts(samples=1) == texts(samples=1, sampling={"seed": 9}), "one sample is greedy"
    assert texts(samples=1) != texts(samples=1, temperature=2.0)


def test_the_score_that_passes(
    data: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "-m",
        tiny_model_dir,
        "-d",
        data,
        "--max-tokens",
        8,
        "--json",
        "--reward",
        f"{data.parent}/rewards.py:length",
    ]
    assert json.loads(chuk(capsys, *words))["pass_at_k"] == {"1": 0.0}
    assert json.loads(chuk(capsys, *words, "--pass-score", 0))["pass_at_k"] == {"1": 1.0}


def test_exact_match_loss_and_perplexity_of_data_with_targets(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": prompt, "completion": "xyz", "problem_type": f"t{at % 2}"}
        for at, prompt in enumerate(PROMPTS)
    ]
    said = measure(
        str(tiny_model_dir), str(write(tmp_path / "a.jsonl", rows)), max_tokens=3
    ).answers
    for row, one in zip(rows[:4], said, strict=False):
        row["completion"] = one.completion
    file = tmp_path / "answers.jsonl"
    known = write(tmp_path / "b.jsonl", rows)
    found = json.loads(
        chuk(capsys, "-m", tiny_model_dir, "-d", known, "--max-tokens", 3, "--json", "-o", file)
    )
    assert (found["correct"], found["rows"]) == (4, 6)
    assert found["exact_match"] == pytest.approx(4 / 6)
    assert found["metrics"]["eval_perplexity"] == pytest.approx(
        math.exp(found["metrics"]["eval_loss"])
    )
    assert found["by_type"] == {"t0": {"correct": 2, "rows": 3}, "t1": {"correct": 2, "rows": 3}}
    assert [json.loads(line)["correct"] for line in file.read_text().splitlines()] == [True] * 4 + [
        False
    ] * 2
    same = json.loads(
        chuk(
            capsys,
            "-m",
            tiny_model_dir,
            "-d",
            known,
            "--max-tokens",
            3,
            "--json",
            "--reward",
            "exact_match",
        )
    )
    assert same["reward"] == pytest.approx(4 / 6)
    assert same["metrics"] == found["metrics"]
    human = chuk(capsys, "-m", tiny_model_dir, "-d", known, "--max-tokens", 3)
    assert human.startswith(
        f"exact match 66.7 %  (4 of 6)  loss {found['metrics']['eval_loss']:.4g}"
    )


def test_exact_match_wants_the_completion_when_there_is_an_answer_too(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": prompt, "completion": "xyz", "answer": "zyx"} for prompt in PROMPTS]
    file = write(tmp_path / "a.jsonl", rows)
    for row, one in zip(
        rows, measure(str(tiny_model_dir), str(file), max_tokens=3).answers, strict=True
    ):
        row["completion"] = one.completion
    question = Question(str(write(file, rows)), max_tokens=3, rewards=("exact_match",))
    assert answer(read_question(question), str(tiny_model_dir)).as_dict()["reward"] == 1.0


def test_two_models_side_by_side(
    data: Path,
    tiny_model_dir: Path,
    other_model: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    reward = f"{data.parent}/rewards.py:length"
    words = [
        "-m",
        tiny_model_dir,
        "--against",
        other_model,
        "-d",
        data,
        "--max-tokens",
        8,
        "--reward",
        reward,
    ]
    file = tmp_path / "both.jsonl"
    found = json.loads(chuk(capsys, *words, "--samples", 3, "--json", "-o", file))
    gap = found["differences"]["reward"]
    assert gap["difference"] == pytest.approx(found["reward"] - found["against"]["reward"])
    assert gap["low"] <= gap["difference"] <= gap["high"]
    assert set(found["differences"]) == {"reward", "rewards/length", "pass@1", "pass@3"}
    assert [json.loads(line)["model"] for line in file.read_text().splitlines()] == [
        str(tiny_model_dir)
    ] * 18 + [str(other_model)] * 18
    assert "95 % interval" in chuk(capsys, *words)
    prepared = read_question(Question(str(data), max_tokens=4, samples=2, rewards=(reward,)))
    twice = [answer(prepared, str(tiny_model_dir)) for _ in range(2)]
    assert {(d.difference, d.low, d.high) for d in compare(*twice).values()} == {(0.0, 0.0, 0.0)}


def test_chats_and_data_without_targets(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [
        {"role": "user", "content": "Say a number."},
        {"role": "assistant", "content": "It is 7."},
    ]
    chats = write(tmp_path / "chats.jsonl", [{"messages": turns}, {"messages": turns}])
    found = json.loads(
        chuk(
            capsys,
            "-m",
            tiny_model_dir,
            "-d",
            chats,
            "--reward",
            "numeric",
            "--json",
            "--max-tokens",
            4,
        )
    )
    assert found["rewards"]["numeric"]["unscorable"] == 0
    assert found["metrics"]["eval_loss"] > 0
    assert found["completions"][0]["prompt"] == turns[:1]
    asked = write(tmp_path / "asked.jsonl", [{"messages": turns[:1]}])
    found = json.loads(
        chuk(
            capsys,
            "-m",
            tiny_model_dir,
            "-d",
            asked,
            "--reward",
            "length:max=4",
            "--json",
            "--max-tokens",
            4,
        )
    )
    assert found["metrics"] == {}
    assert found["rewards"]["length"]["mean"] == 1.0


def test_what_a_person_and_a_script_see(
    data: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "-m",
        tiny_model_dir,
        "-d",
        data,
        "--max-tokens",
        4,
        "--reward",
        "length:max=4",
        "--reward",
        "format=0.2",
    ]
    human = chuk(capsys, *words, "--samples", 2)
    assert human.startswith("reward 1  (6 prompts × 2 samples)")
    assert "pass@1 100.0 %  pass@2 100.0 %  (length at least 1)" in human
    assert not [letter for letter in human if letter != "\n" and not letter.isprintable()]
    assert chuk(capsys, *words, "--quiet") == "1.0000\n"


def test_what_is_to_be_known_is_said_once(
    data: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(tiny_model_dir, run_dir / "checkpoints" / "step_000001")
    (run_dir / "config.yaml").write_text("{}\n")
    words = [
        "-m",
        run_dir,
        "-d",
        data,
        "--max-tokens",
        4,
        "--reward",
        "length:max=4",
        "--top-p",
        0.5,
    ]
    assert run(["eval", *map(str, words)]) == 0
    told = capsys.readouterr().err
    assert told.count("step_000001") == 1, told
    assert "without chance `--top-p` changes nothing" in told
    assert run(["eval", *map(str, words), "--samples", "2"]) == 0
    assert "chance" not in capsys.readouterr().err


def test_the_list_of_rewards(capsys: pytest.CaptureFixture[str]) -> None:
    from chuk_lib.rewards.builtin import BUILT_IN

    listed = chuk(capsys, "--list-rewards")
    assert all(f"\n{name} " in listed for name in BUILT_IN)
    assert "pattern (needed)" in listed
