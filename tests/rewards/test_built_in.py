"""What each built-in reward pays, and that every argument changes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chuk_lib.errors import ConfigError, TrainingError
from chuk_lib.parity import run
from chuk_lib.rewards import Completions, load_rewards
from tests.conftest import ROOT


def batch(
    texts: list[str], ids: list[list[int]] | None = None, **columns: list[Any]
) -> Completions:
    return Completions([""] * len(texts), [*texts], ids or [[1]] * len(texts), columns)


def pay(
    spec: str, texts: list[str], ids: list[list[int]] | None = None, **columns: list[Any]
) -> list[float | None]:
    scores = load_rewards([spec], max_completion_length=10).score(batch(texts, ids, **columns))[
        :, 0
    ]
    return [None if np.isnan(score) else round(float(score), 6) for score in scores]


def test_exact_match_compares_with_what_should_be_written() -> None:
    assert pay("exact_match", ["Paris", " Paris\n", "paris", "Paris."], answer=["Paris"] * 4) == [
        1.0,
        1.0,
        0.0,
        0.0,
    ]
    assert pay("exact_match", ["975"], completion=["975"], answer=["579"]) == [1.0]
    assert pay("exact_match:column=answer", ["975"], completion=["975"], answer=["579"]) == [0.0]
    assert pay(
        "exact_match", ["a", "b", "c"], completion=[None, "b", None], response=["a", "x", None]
    ) == [
        1.0,
        1.0,
        None,
    ]
    assert pay(
        "exact_match", ["7", "Yes"], target=[7, [{"role": "assistant", "content": "Yes"}]]
    ) == [1.0, 1.0]
    assert pay("exact_match:ignore_case=true", ["PARIS"], answer=["Paris"]) == [1.0]
    tagged = [
        "<answer> 7 </answer>",
        "7",
        "<answer>1</answer><answer>7</answer>",
        "</answer>7<answer>",
    ]
    assert pay("exact_match:tag=answer", tagged, answer=["7"] * 4) == [1.0, 0.0, 1.0, 0.0]


def test_exact_match_of_chats() -> None:
    chats = Completions(
        [[{"role": "user", "content": "Capital?"}]],
        [[{"role": "assistant", "content": "Paris"}]],
        [[1]],
        {"answer": ["Paris"]},
    )
    assert load_rewards(["exact_match"]).score(chats).tolist() == [[1.0]]


def test_regex() -> None:
    assert pay(r"regex:pattern=\d+", ["a 7", "b", ""]) == [1.0, 0.0, 0.0]
    assert pay(r"regex:pattern=\d+,full=true", ["7", "a 7"]) == [1.0, 0.0]
    assert pay("regex:pattern=yes,ignore_case=true", ["YES"]) == [1.0]
    assert pay("regex:pattern=yes", ["YES"]) == [0.0]
    assert pay("regex:pattern=a.b", ["a\nb"]) == [1.0]
    last = ["answer: 1, answer: 2", "answer: 2, answer: 1", "none", "answer: 2"]
    assert pay(
        r"regex:pattern='answer: (\d)',column=answer", last, answer=["2", "2", "2", None]
    ) == [1, 0, 0, None]


def test_format_is_all_or_nothing_and_tags_is_a_share() -> None:
    good = "<think>so</think>\n<answer>7</answer>"
    wrong = [
        good + " bye",
        "hi " + good,
        "<think> </think><answer>7</answer>",
        "<answer>7</answer><think>so</think>",
        "<think>a</think><think>b</think><answer>7</answer>",
        "<think><answer>7</answer></think>",
        "7",
        "",
    ]
    assert pay("format", [good, f" {good}\n", *wrong]) == [1.0, 1.0, *[0.0] * len(wrong)]
    assert pay("format:tags=a", ["<a>x</a>", good]) == [1.0, 0.0]
    assert pay("tags", [good, "<think>so</think>", "<think>", "<answer><answer>"]) == [
        1.0,
        0.5,
        0.25,
        0.0,
    ]
    assert pay("tags:tags=a+b+c", ["<a></a><b></b>"]) == [round(2 / 3, 6)]
    for tags in ("a+a", "", "a b", "<a>"):
        with pytest.raises(ConfigError, match="different names"):
            load_rewards([f"format:tags={tags}"])


def test_length() -> None:
    ids = [[1] * size for size in (0, 5, 10, 20, 40)]
    texts = ["", "one", "one two", "a b c d", "x" * 40]
    assert pay("length:max=10", texts, ids) == [1.0, 1.0, 1.0, 0.5, 0.25]
    assert pay("length:min=10,max=20", texts, ids) == [0.0, 0.5, 1.0, 1.0, 0.5]
    assert pay("length:min=2,unit=words", texts, ids) == [0.0, 0.5, 1.0, 1.0, 0.5]
    assert pay("length:max=4,unit=characters", texts, ids) == [
        1.0,
        1.0,
        round(4 / 7, 6),
        round(4 / 7, 6),
        0.1,
    ]
    for wrong in (
        "length",
        "length:max=0",
        "length:min=5,max=4",
        "length:min=-1,max=4",
        "length:max=4,unit=bytes",
    ):
        with pytest.raises(ConfigError):
            load_rewards([wrong])


def test_soft_overlong_punishment_knows_the_run_s_limit() -> None:
    ids = [[1] * size for size in (8, 9, 10, 11)]
    texts = [""] * 4
    assert pay("soft_overlong_punishment", texts, ids) == [0.0, -0.5, -1.0, -1.0]
    assert pay(
        "soft_overlong_punishment:max_completion_len=20,soft_punish_cache=10", texts, ids
    ) == [0, 0, 0, -0.1]
    assert pay("soft_overlong_punishment:soft_punish_cache=0", texts, ids) == [0.0, 0.0, 0.0, -1.0]
    with pytest.raises(ConfigError, match="needs `max_completion_len`"):
        load_rewards(["soft_overlong_punishment"])


def test_repetition_penalty() -> None:
    ids = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [1], []]
    assert pay("repetition_penalty:ngram_size=2", [""] * 4, ids) == [0.0, -0.75, 0.0, 0.0]
    assert pay("repetition_penalty:ngram_size=1,max_penalty=-0.5", [""] * 4, ids) == [
        0.0,
        -0.4,
        0.0,
        0.0,
    ]
    assert pay("repetition_penalty", ["", ""], [[1, 2, 1, 2, 1], [1, 2]]) == [round(-1 / 3, 6), 0.0]
    with pytest.raises(ConfigError, match="no penalty"):
        load_rewards(["repetition_penalty:max_penalty=1"])


@pytest.mark.parametrize(
    "folder", [ROOT / "tests" / "fixtures" / "parity", ROOT.parent / "shared" / "parity"], ids=str
)
def test_scores_are_trl_s(folder: Path) -> None:
    if not (folder / "expected" / "rewards_unit.json").exists():
        pytest.skip("no such folder here")
    checks = run(folder, ["rewards"])
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == 3


def test_the_parity_suite_sees_wrong_numbers_and_new_cases(tmp_path: Path) -> None:
    (tmp_path / "expected").mkdir()
    overlong = {
        "max_completion_len": 7,
        "soft_punish_cache": 7,
        "lengths": [0, 7, 8],
        "rewards": [0.0, -1.0, -1.0],
    }
    cases = {
        "think_format": {"texts": ["<think>"], "rewards": [1.0]},
        "soft_overlong": overlong,
        "other": {},
        "repetition_penalty": {
            "ngram_size": 1,
            "max_penalty": 0.0,
            "completion_ids": [[3, 3]],
            "rewards": [0.0],
        },
    }
    (tmp_path / "expected" / "rewards_unit.json").write_text(json.dumps(cases))
    checks = {check.name: check.passed for check in run(tmp_path, ["rewards"])}
    assert checks == {
        "think_format": False,
        "soft_overlong": True,
        "other": False,
        "repetition_penalty": True,
    }


LATEX = [
    (r"It is \boxed{\frac{2}{6}}", r"\frac{1}{3}", 1.0),
    (r"\boxed{0.5}", r"\frac{1}{3}", 0.0),
    (r"\boxed{1+x^2}", "$x^2+1$", 1.0),
    ("plain 42", "42", 0.0),
    (r"\boxed{42}", "42", 1.0),
    ("$1$", "words", None),
]


def test_accuracy_and_what_builds_on_it() -> None:
    pytest.importorskip("math_verify")
    texts, golds, want = ([row[part] for row in LATEX] for part in range(3))
    assert pay("accuracy_reward", texts, solution=golds) == want
    assert pay("accuracy", texts, answer=golds) == want
    assert pay("accuracy:column=gold", texts, gold=golds) == want
    reasoned = [r"\boxed{1}</think> \boxed{42}", r"\boxed{42}", r"\boxed{1} so \boxed{42}"]
    assert pay("reasoning_accuracy", reasoned, solution=["42"] * 3) == [1.0, 0.0, 0.0]
    assert pay("reasoning_accuracy:delimiter=so", reasoned, solution=["42"] * 3) == [0.0, 0.0, 1.0]
    ids = [[1] * 50, [1] * 50, [1] * 999]
    cosine = "cosine_scaled:max_len=100"
    assert pay(cosine, [r"\boxed{1}", r"\boxed{2}", r"\boxed{1}"], ids, solution=["1"] * 3) == [
        0.75,
        -0.75,
        0.5,
    ]
    assert pay(
        f"{cosine},max_value_correct=2,min_value_correct=0", [r"\boxed{1}"], [[]], solution=["1"]
    ) == [2.0]
    assert pay(
        f"{cosine},max_value_wrong=0,min_value_wrong=-4", [r"\boxed{2}"], [[]], solution=["1"]
    ) == [-4.0]
    assert pay(cosine, ["x"], [[1]], solution=["no mathematics"]) == [None]


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def test_json_schema(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    fenced = 'So:\n```json\n{"a": 2}\n```'
    texts = [
        '{"a": 1}',
        '{"a": "1"}',
        '{"b": 1}',
        "{",
        '{"a": NaN}',
        "[" * 100_000,
        fenced,
        "",
        '{"a": 1} bye',
    ]
    assert pay(f"json_schema:file={file}", texts) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert pay(f"json_schema:file={file},fenced=false", [fenced]) == [0.0]
    columns = [SCHEMA, json.dumps(SCHEMA), None]
    assert pay("json_schema", ['{"a": 1}'] * 3, schema=columns) == [1.0, 1.0, None]
    assert pay("json_schema:column=s", ['{"a": "x"}'], s=[SCHEMA]) == [0.0]
    for text, says in (
        ("{", "is not JSON"),
        ('{"type": 3}', "no JSON schema"),
        (None, "cannot be read"),
    ):
        broken = tmp_path / "broken.json"
        broken.unlink(missing_ok=True)
        if text is not None:
            broken.write_text(text)
        with pytest.raises(ConfigError, match=says):
            load_rewards([f"json_schema:file={broken}"])


def test_a_schema_of_another_host_is_not_fetched() -> None:
    pytest.importorskip("jsonschema")
    with pytest.raises(TrainingError, match="completion 1 of 1"):
        pay("json_schema", ["1"], schema=[{"$ref": "http://127.0.0.1:9/schema.json"}])


def test_reasoning_gym_scores_its_own_problems() -> None:
    gym = pytest.importorskip("reasoning_gym")
    rows = [
        gym.create_dataset(name, size=1, seed=1)[0]
        for name in ("basic_arithmetic", "countdown", "leg_counting")
    ]
    columns = {
        "answer": [row["answer"] for row in rows],
        "metadata": [row["metadata"] for row in rows],
    }
    texts = [f"<answer>{row['answer']}</answer>" for row in rows]
    assert pay("reasoning_gym", texts, **columns) == [1.0, 1.0, 1.0]
    assert pay("reasoning_gym", ["<answer>x</answer>"] * 3, **columns)[0] == 0.0
    as_text = {
        "answer": columns["answer"],
        "metadata": [json.dumps(row["metadata"]) for row in rows],
    }
    assert pay("reasoning_gym:tag=a", [f"<a>{row['answer']}</a>" for row in rows], **as_text) == [
        1.0,
        1.0,
        1.0,
    ]
    one = {name: values[:1] for name, values in columns.items()}
    assert pay(
        "reasoning_gym:dataset=basic_arithmetic", [rows[0]["answer"]], answer=one["answer"]
    ) == [1.0]
    assert pay(
        "reasoning_gym:column=d", [rows[0]["answer"]], d=["basic_arithmetic"], answer=one["answer"]
    ) == [1.0]
    for name, says in (("chess", "no data set `chess`"), ("composite", "no scorer of its own")):
        with pytest.raises(ConfigError, match=says):
            load_rewards([f"reasoning_gym:dataset={name}"])


def test_what_a_model_writes_is_never_evaluated(tmp_path: Path) -> None:
    gym = pytest.importorskip("reasoning_gym")
    from chuk_lib.rewards.gym import evaluates, is_plain

    mark = tmp_path / "mark"
    attack = f"__import__('pathlib').Path({str(mark)!r}).touch() or 3"
    scorers = {name: kind[0].score_answer for name, kind in gym.factory.DATASETS.items()}
    names = [name for name, score in scorers.items() if evaluates(name, score)]
    assert {
        "countdown",
        "puzzle24",
        "n_queens",
        "spiral_matrix",
        "polynomial_multiplication",
    } <= set(names)
    for name in names:
        row = gym.create_dataset(name, size=1, seed=5)[0]
        columns = {"answer": [row["answer"]], "metadata": [row["metadata"]]}
        assert pay(f"reasoning_gym:dataset={name}", [f"<answer>{attack}</answer>"], **columns) in (
            [0.0],
            [None],
        ), name
        assert pay(
            f"reasoning_gym:dataset={name}", [f"<answer>{row['answer']}</answer>"], **columns
        ) == [1.0], name
    assert not mark.exists()
    for harmless in (
        "1+2*3",
        "x**2 + 3*x",
        "sin(x) - 2.5",
        "[[1, 2], [3, 4]]",
        "(0x1f << 0x2) & 7",
        "-4",
        "x**(-1)",
        "2*(x - 1)**(3/2)/3",
    ):
        assert is_plain(harmless), harmless
    for harmful in (
        "9**9**9",
        "9**999",
        "1<<9999999",
        "a.b",
        "f(1)",
        "print(1)",
        "((9**9)**9)**9**9",
        "9**(9)**9",
        "1;2",
    ):
        assert not is_plain(harmful), harmful
    row = {"answer": ["print(1)"], "metadata": [{"numbers": [1], "target": 1}]}
    assert pay("reasoning_gym:dataset=countdown", ["1"], **row) == [None]
