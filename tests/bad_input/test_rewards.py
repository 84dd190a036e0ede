"""Rewards that cannot be used: one line that names the reward, and for a broken function the
completion."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_input.conftest import Fails

FILES = {
    "syntax.py": "def f(:\n",
    "imports.py": "import not_there\n\ndef f(completions):\n    return []\n",
    "rewards.py": (
        "def breaks(completion):\n    return 1 / 0\n"
        "def counts(completions):\n    return [1.0]\n"
        "def talks(completions):\n    return ['fine' for _ in completions]\n"
        "def doubts(completions):\n    return [float('nan') for _ in completions]\n"
        "def needs(completions, difficulty):\n    return [1.0 for _ in completions]\n"
    ),
    "prompts.jsonl": '{"prompt": "1+1="}\n{"prompt": "2+2="}\n',
    "texts.jsonl": '{"text": "a b c"}\n',
}
EVAL = "eval -m good -d prompts.jsonl --max-tokens 4"
LOADING = [
    ("exact_mach", 2, "there is no reward `exact_mach`", "did you mean `exact_match`?"),
    ("wonderful", 2, "there is no reward `wonderful`", "file.py:function"),
    ("format=much", 2, "`much` is not a weight", "NAME[:key=value,…][=weight]"),
    ("length:maxi=3", 2, "no argument `maxi`", "did you mean `max`?"),
    ("length:max=long", 2, "`max` should be a whole number", "--list-rewards"),
    ("length", 2, "no length is from 0 to None", "length:max=200"),
    ("regex:pattern=(", 2, "is no regular expression", "mend"),
    ("missing.py:f", 2, "reward file `missing.py` does not exist", "file.py:function"),
    ("rewards.py", 2, "names no function", "rewards.py:function"),
    ("syntax.py:f", 2, "`syntax.py` does not import: SyntaxError", "python syntax.py"),
    ("imports.py:f", 2, "No module named 'not_there' (line 1)", "python imports.py"),
    ("rewards.py:brakes", 2, "has no function `brakes`", "did you mean `breaks`?"),
    ("json_schema:file=none.json", 2, "schema file `none.json` cannot be read", "path"),
    ("exact_match", 1, "needs the column `completion` or", "rename one"),
    ("numeric", 1, "needs the column `answer` or", "rename one"),
    (
        "rewards.py:needs",
        1,
        "reward `rewards.py:needs` needs the column `difficulty`",
        "rename one",
    ),
]
SCORING = [
    ("breaks", "failed on completion 1 of 2", "return None"),
    ("counts", "gave 1 scores for 2 completions", "one score a completion"),
    ("talks", 'gave "fine", which is no number, for completion 1 of 2', "a score is a number"),
    ("doubts", "gave NaN for completion 1 of 2", "a score is a number"),
]


@pytest.fixture(scope="module", autouse=True)
def files(bench: Path) -> None:
    """The broken files, beside the good ones."""
    for name, content in FILES.items():
        (bench / name).write_text(content)


@pytest.mark.parametrize(
    ("reward", "code", "says", "hint"), LOADING, ids=[case[0] for case in LOADING]
)
def test_rewards_are_checked_before_a_model_is_loaded(
    fails: Fails, reward: str, code: int, says: str, hint: str
) -> None:
    fails([*EVAL.replace("good", "no-such-model").split(), "--reward", reward], code, says, hint)


@pytest.mark.parametrize(("name", "says", "hint"), SCORING, ids=[case[0] for case in SCORING])
def test_a_broken_reward_stops_the_run(fails: Fails, name: str, says: str, hint: str) -> None:
    fails([*EVAL.split(), "--reward", f"rewards.py:{name}", "-o", "out.jsonl"], 1, says, hint)


def test_settings_of_an_evaluation_that_do_not_fit(fails: Fails) -> None:
    for more, says, hint in (
        ("--k 2", "pass@2 cannot be told from 1 samples", "--samples 2"),
        ("--k 0 --samples 2", "pass@0 cannot be told", "1 or more"),
        ("--k one", "`--k` should be whole numbers", "--k 1,4"),
        (
            "--samples 2 --temperature 0",
            "2 samples at temperature 0 are all the same",
            "--temperature",
        ),
        ("--temperature -1", "temperature is -1.0", "unset it is 0.0"),
        ("--reward-errors maybe", "on_error is `maybe`", "`raise` or `none`"),
        ("--against-adapter x", "`--against-adapter` needs `--against`", "second model"),
        ("-o full", "`full` is a folder", "name of a file"),
        ("-o full/notes.txt", "`full/notes.txt` exists", "--overwrite"),
        ("-o prompts.jsonl/a.jsonl", "`prompts.jsonl` is a file", "another --output"),
    ):
        fails(f"{EVAL} --reward length:max=3 {more}", 2, says, hint)


def test_data_without_prompts_and_models_that_are_missing(fails: Fails) -> None:
    fails(
        f"{EVAL.replace('prompts.jsonl', 'texts.jsonl')} --reward length:max=3",
        1,
        "`texts.jsonl` line 1 has no `prompt`",
        "give `prompt`",
    )
    fails(f"{EVAL} --reward length:max=3 --against zzzz", 1, "zzzz", "")
    fails(f"{EVAL} --reward reward_model:path=good", 1, "reward model", "")
    fails(
        f"{EVAL}",
        1,
        "`prompts.jsonl` line 1 has the columns `prompt`, which fit no format",
        "prompt + completion",
    )
