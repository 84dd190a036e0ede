"""Generated problems: what the math generator promises.

1. Every answer is exact: re-derived here from the expression by a parser of its own.
2. No problem comes twice, nor its twin in other words or another order; so no two splits share one.
3. The same seed gives the same bytes; every option changes the output.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chuk_lib.data import SFTDataset
from chuk_lib.data.generators import MathProblemGenerator, TrainingSample
from chuk_lib.data.generators.makers import MAKERS
from chuk_lib.data.generators.math_generator import write_jsonl
from chuk_lib.data.generators.problems import exact
from chuk_lib.data.generators.rows import FORMATS, split_rows, to_row
from chuk_lib.data.tokenizers.loader import load_tokenizer
from chuk_lib.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tests.conftest import RunChuk

SIX = ("arithmetic", "fractions", "percentages", "word_problem", "multi_step", "comparison")


def value_of(expression: str) -> Fraction:
    """The value of an expression of + - * / ( ) , max min abs and decimals, by recursive descent
    over fractions."""
    tokens = re.findall(r"\d+(?:\.\d+)?|max|min|abs|[-+*/(),]", expression)
    assert "".join(tokens) == expression.replace(" ", "")
    value = _sum(tokens)
    assert not tokens
    return value


def _sum(tokens: list[str]) -> Fraction:
    value = _product(tokens)
    while tokens and tokens[0] in "+-":
        value = value + _product(tokens) if tokens.pop(0) == "+" else value - _product(tokens)
    return value


def _product(tokens: list[str]) -> Fraction:
    value = _atom(tokens)
    while tokens and tokens[0] in "*/":
        value = value * _atom(tokens) if tokens.pop(0) == "*" else value / _atom(tokens)
    return value


def _atom(tokens: list[str]) -> Fraction:
    token = tokens.pop(0)
    if token == "-":
        return -_atom(tokens)
    if token in ("max", "min", "abs"):
        assert tokens.pop(0) == "("
        values = [_sum(tokens)]
        while tokens[0] == ",":
            tokens.pop(0)
            values.append(_sum(tokens))
        assert tokens.pop(0) == ")"
        return {"max": max, "min": min, "abs": lambda parts: abs(parts[0])}[token](values)
    if token == "(":
        value = _sum(tokens)
        assert tokens.pop(0) == ")"
        return value
    return Fraction(token)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make(n: int = 600, seed: int = 1, **options: object) -> list[TrainingSample]:
    return MathProblemGenerator(seed).generate_batch(n, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("level", range(1, 6))
def test_every_answer_and_every_step_is_exact(kind: str, level: int) -> None:
    for sample in make(50, seed=level, difficulty_range=(level, level), problem_types=[kind]):
        problem = sample.problem
        assert Fraction(problem.answer_exact) == value_of(problem.expression), problem
        assert problem.answer == float(Fraction(problem.answer_exact))
        for call in sample.correct_trace:
            assert value_of(call.tool_args["expression"]) == Fraction(call.tool_result), problem
        assert sample.correct_trace[-1].tool_result == problem.answer_exact
        if kind != "addition":
            *steps, last = sample.correct_response.splitlines()
            assert last == f"ANSWER: {problem.answer_exact}"
            assert all(
                value_of(left) == value_of(right)
                for left, right in (step.split(" = ") for step in steps)
            )


def test_questions_state_the_expression_they_ask() -> None:
    plain = make(
        300, problem_types=["arithmetic", "fractions", "multi_step"], difficulty_range=(1, 5)
    )
    for problem in (sample.problem for sample in plain):
        shown = re.sub(
            r"^(What is|Calculate|Compute|Find the value of|Work out) |[?.]$",
            "",
            problem.problem_text,
        )
        assert value_of(shown) == Fraction(problem.answer_exact), problem
    for sample in make(200, problem_types=["word_problem"], difficulty_range=(1, 5)):
        numbers = set(re.findall(r"\d+", sample.problem.problem_text))
        assert set(re.findall(r"\d+", sample.problem.expression)) <= numbers


def test_fractions_stay_fractions_and_decimals_end() -> None:
    texts = [s.problem.answer_exact for s in make(300, problem_types=["fractions"])]
    assert any("/" in text for text in texts)
    assert not any("." in text for text in texts)
    assert exact(Fraction(9, 8), decimal=True) == "1.125"
    assert exact(Fraction(-1, 20), decimal=True) == "-0.05"
    assert exact(Fraction(1, 3), decimal=True) == "1/3"
    assert exact(Fraction(1, 2)) == "1/2"


def test_wrong_responses_are_wrong_and_look_alike() -> None:
    for sample in make(300, difficulty_range=(1, 5), problem_types=list(MAKERS)[:6]):
        answers = [text.rpartition("ANSWER: ")[2] for text in sample.incorrect_responses]
        assert len(set(answers)) == 4
        assert Fraction(sample.problem.answer_exact) not in map(Fraction, answers)
        assert sample.incorrect_responses[0].count("\n") == sample.correct_response.count("\n")


@pytest.mark.parametrize("kind", MAKERS)
def test_difficulty_matters_in_every_type(kind: str) -> None:
    def reach(level: int) -> tuple[set[str], int, float]:
        """Forms of the questions, the largest number in them, and the mean length of the
        expressions."""
        problems = [
            s.problem for s in make(50, difficulty_range=(level, level), problem_types=[kind])
        ]
        forms = {re.sub(r"\d+", "0", problem.expression) for problem in problems}
        largest = max(
            int(n) for problem in problems for n in re.findall(r"\d+", problem.expression)
        )
        return forms, largest, sum(len(problem.expression) for problem in problems) / len(problems)

    levels = [reach(level) for level in range(1, 6)]
    for (forms, largest, _), (harder_forms, harder_largest, _) in itertools.pairwise(levels):
        assert harder_forms - forms or harder_largest > largest
    assert levels[0][2] < levels[4][2]


def test_types_and_levels_are_drawn_evenly() -> None:
    problems = [sample.problem for sample in make(1800)]
    types = Counter(problem.problem_type for problem in problems)
    assert set(types) == set(SIX)
    assert min(types.values()) > 240
    assert min(Counter(problem.difficulty for problem in problems).values()) > 500


def test_no_problem_or_twin_comes_twice() -> None:
    generator = MathProblemGenerator(7)
    problems = [
        s.problem
        for s in generator.generate_batch(4000, (1, 5)) + generator.generate_batch(1000, (1, 3))
    ]
    assert len({problem.key for problem in problems}) == 5000
    assert len({problem.problem_text for problem in problems}) == 5000
    assert len({problem.id for problem in problems}) == 5000
    sums = [
        s.problem.expression.split(" + ")
        for s in make(3000, problem_types=["addition"], difficulty_range=(2, 2))
    ]
    assert len({tuple(sorted(pair)) for pair in sums}) == 3000


def test_addition_has_the_digits_it_names() -> None:
    for sample in make(200, problem_types=["addition"], difficulty_range=(4, 4)):
        assert re.fullmatch(r"\d{4}\+\d{4}=", sample.problem.problem_text)
        assert sample.correct_response == sample.problem.answer_exact


def test_a_space_that_is_too_small_is_an_error_not_a_loop() -> None:
    with pytest.raises(DataError, match="about 55 different problems"):
        make(56, problem_types=["addition"], difficulty_range=(1, 1))
    assert len(make(55, problem_types=["addition"], difficulty_range=(1, 1))) == 55


def test_same_seed_same_problems() -> None:
    assert make(100, seed=3) == make(100, seed=3)
    assert make(100, seed=3) != make(100, seed=4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"problem_types": ["algebra"]}, "algebra"),
        ({"difficulty_range": (0, 2)}, "0-2"),
        ({"difficulty_range": (3, 2)}, "3-2"),
        ({"difficulty_range": (1, 6)}, "1-6"),
        ({"n": 0}, "0 samples"),
    ],
)
def test_wrong_requests_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MathProblemGenerator().generate_batch(**{"n": 5, **options})  # type: ignore[arg-type]


def test_saved_files_have_the_known_columns(tmp_path: Path) -> None:
    generator = MathProblemGenerator()
    samples = generator.generate_batch(20)
    sft = read(generator.save_sft_dataset(samples, tmp_path / "sft.jsonl"))
    dpo = read(generator.save_dpo_dataset(samples, tmp_path / "dpo.jsonl"))
    assert len(sft) == 20
    assert len(dpo) == 80
    assert set(sft[0]) == {"prompt", "response", "metadata"}
    assert set(sft[0]["metadata"]) == {"problem_id", "problem_type", "difficulty", "answer"}
    assert set(dpo[0]) == {"prompt", "chosen", "rejected", "metadata"}
    assert set(dpo[0]["metadata"]) == {"problem_id", "problem_type", "difficulty"}
    assert [row["prompt"] for row in sft] == [sample.problem.problem_text for sample in samples]


@pytest.mark.parametrize("format", FORMATS)
def test_rows_carry_the_answer_in_every_format(format: str) -> None:
    sample = make(1, problem_types=["multi_step"])[0]
    row = to_row(sample, format)
    assert row["answer"] == sample.problem.answer_exact
    assert (row["problem_type"], row["difficulty"]) == ("multi_step", sample.problem.difficulty)
    assert row["problem_id"] == sample.problem.id


def test_tool_results_stand_in_a_turn_of_the_tool() -> None:
    sample = make(1, problem_types=["multi_step"])[0]
    row = to_row(sample, "tools")
    turns = ["assistant", "tool"] * len(sample.correct_trace)
    assert [m["role"] for m in row["messages"]] == ["user", *turns, "assistant"]
    written = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
    assert written == [""] * len(sample.correct_trace) + [f"ANSWER: {sample.problem.answer_exact}"]
    assert (
        row["tools"][0]["function"]["name"]
        == row["messages"][1]["tool_calls"][0]["function"]["name"]
    )


def test_reversed_numbers_start_with_the_last_digit() -> None:
    sample = make(1, problem_types=["addition"], difficulty_range=(3, 3))[0]
    answer, question = sample.problem.answer_exact, sample.problem.problem_text
    row = to_row(sample, "completion", "answers")
    assert (row["prompt"], row["completion"], row["answer"]) == (question, answer[::-1], answer)
    pair = to_row(sample, "preference", "answers")
    assert (pair["chosen"], pair["rejected"]) == (answer[::-1], sample.incorrect_responses[0][::-1])
    turned = to_row(sample, "completion", "numbers")
    first, second = question.rstrip("=").split("+")
    assert (turned["prompt"], turned["completion"]) == (
        f"{first[::-1]}+{second[::-1]}=",
        answer[::-1],
    )
    assert turned["answer"] == answer
    with pytest.raises(ConfigError, match="addition"):
        to_row(make(1)[0], "completion", "answers")
    with pytest.raises(ConfigError, match="backwards"):
        to_row(sample, "completion", "backwards")
    with pytest.raises(ConfigError, match="unknown format"):
        to_row(sample, "yaml")


def test_split_sizes() -> None:
    rows = [{"n": n} for n in range(10)]
    assert [len(part) for part in split_rows(rows, 0.05, 0.05).values()] == [8, 1, 1]
    assert [len(part) for part in split_rows(rows, 0.3, 0).values()] == [7, 3, 0]
    for valid, test in ((0.5, 0.5), (-0.1, 0.1)):
        with pytest.raises(ConfigError, match="nothing to train on"):
            split_rows(rows, valid, test)
    with pytest.raises(ConfigError, match="too few"):
        split_rows(rows[:2], 0.05, 0.05)


def test_command_writes_disjoint_splits(run_chuk: RunChuk, tmp_path: Path) -> None:
    done = run_chuk("data", "generate-math", "--samples", 1000, "--output", "math", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == {"train": 900, "valid": 50, "test": 50}
    assert sum(told["types"].values()) == sum(told["difficulties"].values()) == 1000
    splits = {name: read(tmp_path / "math" / f"{name}.jsonl") for name in told["rows"]}
    assert {name: len(rows) for name, rows in splits.items()} == told["rows"]
    seen = [{row["prompt"] for row in rows} for rows in splits.values()]
    assert len(set.union(*seen)) == 1000


def test_command_writes_the_same_bytes_for_the_same_seed(run_chuk: RunChuk, tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_chuk("data", "generate-math", "-n", 100, "-o", folder, "--seed", seed)
    train = [(tmp_path / folder / "train.jsonl").read_bytes() for folder in "abc"]
    assert train[0] == train[1] != train[2]


def test_every_option_changes_the_output(run_chuk: RunChuk) -> None:
    base = ["data", "generate-math", "-n", "40", "-o", "-"]
    formats = [["--format", name] for name in FORMATS if name != "completion"]
    more = [
        [],
        ["--seed", "3"],
        ["--difficulty", "3"],
        ["--reverse-answers"],
        ["--reverse-numbers"],
        *formats,
    ]
    variations = [["--types", "fractions"], *(["--types", "addition", *words] for words in more)]
    outputs = [run_chuk(*base, *words).stdout for words in variations]
    assert len(set(outputs)) == len(outputs)
    assert all(len(output.splitlines()) == 40 for output in outputs)
    shares = run_chuk(
        "data", "generate-math", "-n", 40, "-o", "s", "--valid", 0, "--test", 0.5, "--json"
    )
    assert json.loads(shares.stdout)["rows"] == {"train": 20, "test": 20}


def test_command_replaces_files_only_on_request(run_chuk: RunChuk, tmp_path: Path) -> None:
    run_chuk("data", "generate-math", "-n", 40, "-o", "d")
    (tmp_path / "d" / "mine.txt").write_text("mine")
    before = (tmp_path / "d" / "train.jsonl").read_bytes()
    refused = run_chuk("data", "generate-math", "-n", 50, "-o", "d")
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    assert (tmp_path / "d" / "train.jsonl").read_bytes() == before
    done = run_chuk(
        "data", "generate-math", "-n", 50, "-o", "d", "--valid", 0, "--overwrite", "--quiet"
    )
    assert done.stdout.splitlines() == ["d/train.jsonl", "d/test.jsonl"]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        "mine.txt",
        "test.jsonl",
        "train.jsonl",
    ]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--types", "additon"], 2, "additon"),
        (["--difficulty", "hard"], 2, "hard"),
        (["--difficulty", "9"], 2, "9-9"),
        (["--format", "xml"], 2, "xml"),
        (["--reverse-answers"], 2, "addition"),
        (["--types", "addition", "--difficulty", "1"], 1, "about 55"),
    ],
)
def test_command_explains_what_it_cannot_do(
    options: list[str], code: int, words: str, run_chuk: RunChuk
) -> None:
    done = run_chuk("data", "generate-math", "-n", 60, "-o", "d", *options)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stdout == ""


def test_standard_output_holds_rows_only(run_chuk: RunChuk) -> None:
    done = run_chuk("data", "generate-math", "-n", "3", "-o", "-")
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(json.loads(line)["answer"] for line in done.stdout.splitlines())


def test_training_reads_every_format_and_never_learns_a_tool_result(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    generator = MathProblemGenerator(5)
    samples = generator.generate_batch(5, problem_types=["multi_step"])
    for name in ("completion", "messages", "tools", "text"):
        path = write_jsonl(tmp_path / f"{name}.jsonl", [to_row(sample, name) for sample in samples])
        dataset = SFTDataset(
            path, tokenizer, max_length=4096, assistant_only_loss=name in ("messages", "tools")
        )
        assert len(dataset) == 5, name
    tools = SFTDataset(
        tmp_path / "tools.jsonl", tokenizer, max_length=4096, assistant_only_loss=True
    )
    for sample, example in zip(samples, tools.examples, strict=True):
        text = tokenizer.decode(example.input_ids[example.loss_mask].tolist())
        call = '<tool_call>{{"name": "math_solve", "arguments": {}}}</tool_call><|im_end|>'
        calls = [call.format(json.dumps(step.tool_args)) for step in sample.correct_trace]
        assert text == "".join(calls) + f"ANSWER: {sample.problem.answer_exact}<|im_end|>"
    assert (
        len(SFTDataset(generator.save_sft_dataset(samples, tmp_path / "sft.jsonl"), tokenizer)) == 5
    )
