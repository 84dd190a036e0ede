"""A user's own functions: every signature, every way to be wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from chuk_lib.errors import ConfigError, DataError, TrainingError
from chuk_lib.rewards import Completions, load_rewards
from chuk_lib.rewards.types import Logged

FILE = '''
"""Rewards of a user."""
import asyncio
from helper import WORTH

calls = []

def three_lines(completion, answer):
    return WORTH * (completion == answer)

def predecessor(prompt, response) -> float:
    return float(len(response) - len(prompt))

def trl(prompts, completions, completion_ids, answer, trainer_state, log_extra, log_metric, **kwargs):
    calls.append((prompts, completions, completion_ids, sorted(kwargs), trainer_state.global_step))
    log_extra("seen", [str(a) for a in answer])
    log_metric("calls", len(calls))
    return [1.0 if c == a else None for c, a in zip(completions, answer)]

def everything(**kwargs):
    return [len(kwargs)] * len(kwargs["completions"])

def optional(completions, level=2):
    return [level if isinstance(level, int) else level[0] for _ in completions]

def arrays(completions):
    import numpy as np
    print("noise")
    return np.arange(len(completions), dtype=np.float64)

def booleans(completions):
    return (c == "a" for c in completions)

def cut(truncated):
    return [-1.0 if t else 0.0 for t in truncated]

async def waits(completions, answer):
    await asyncio.sleep(0.2)
    return [float(c == a) for c, a in zip(completions, answer)]

async def waits_alone(completion):
    await asyncio.sleep(0.2)
    return float(len(completion))

def hands_out(completions):
    return waits(completions, completions)

class _Judge:
    def __call__(self, completions):
        return [7.0] * len(completions)

class _AsyncJudge:
    async def __call__(self, completions):
        return [8.0] * len(completions)

judge, async_judge = _Judge(), _AsyncJudge()

def needs(completions, difficulty):
    return difficulty

def positional(completions, /):
    return completions

def breaks(completions):
    return [1 / len(c) for c in completions]

def tells(completions, log_extra):
    log_extra("size", [len(c) for c in completions])
    return [1 / len(c) for c in completions]

def tells_little(completions, log_extra):
    log_extra("size", [1])
    return [1.0 for c in completions]

def breaks_alone(completion):
    return 1 / len(completion)

async def breaks_later(completions):
    return [1 / len(c) for c in completions]

def breaks_together(completions):
    if len(completions) > 1:
        raise RuntimeError("too many\\nof them")
    return [1.0]

def leaves(completions):
    raise SystemExit(0)

def says_text(completions):
    return ["good" if c == "bb" else 1 for c in completions]

def says_nan(completions):
    return [float("nan") if c == "bb" else 1 for c in completions]

def says_inf(completions):
    return [1e300 if c == "bb" else 1 for c in completions]

def too_few(completions):
    return [1.0]

def one_number(completions):
    return 1.0

def nothing(completions):
    return None

not_a_function = 3

class AClass:
    pass
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("WORTH = 2\n")
    (tmp_path / "my rewards.py").write_text(FILE)
    return tmp_path / "my rewards.py"


def batch(texts: list[str] | None = None) -> Completions:
    texts = texts or ["a", "bb", "ccc"]
    columns = {
        "answer": ["a", "x", "ccc"][: len(texts)],
        "prompt": ["hidden"] * len(texts),
        "extra": [1] * len(texts),
    }
    return Completions(
        ["p"] * len(texts),
        [*texts],
        [[1]] * len(texts),
        columns,
        5,
        [False, True, False][: len(texts)],
    )


def scores(file: Path, name: str, **options: str) -> list[float]:
    return load_rewards([f"{file}:{name}"], **options).score(batch())[:, 0].tolist()  # type: ignore[arg-type]


def test_every_signature(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scores(file, "three_lines") == [2.0, 0.0, 2.0]
    assert scores(file, "predecessor") == [0.0, 1.0, 2.0]
    assert scores(file, "everything") == [8.0] * 3
    assert scores(file, "optional") == [2.0] * 3
    assert scores(file, "optional:level=7") == [7.0] * 3
    assert scores(file, "arrays") == [0.0, 1.0, 2.0]
    assert scores(file, "booleans") == [1.0, 0.0, 0.0]
    assert scores(file, "cut") == [0.0, -1.0, 0.0]
    assert scores(file, "judge") == [7.0] * 3
    assert scores(file, "async_judge") == [8.0] * 3
    assert scores(file, "waits") == [1.0, 0.0, 1.0]
    assert scores(file, "waits_alone") == [1.0, 2.0, 3.0]
    assert scores(file, "hands_out") == [1.0] * 3
    heard = capsys.readouterr()
    assert heard.out == ""
    assert "noise" in heard.err


def test_trl_s_signature_as_it_is(file: Path) -> None:
    rewards = load_rewards([f"{file}:trl=0.5", f"{file}:three_lines"])
    logged = Logged()
    got = rewards.score(batch(), logged)
    assert got.dtype == np.float32
    assert np.array_equal(got, np.array([[1, 2], [np.nan, 0], [1, 2]], np.float32), equal_nan=True)
    assert logged.columns == {"seen": ["a", "x", "ccc"]}
    assert logged.metrics == {"calls": 1.0}
    assert rewards.names == ("trl", "three_lines")
    assert rewards.total(got).tolist() == [2.5, 0.0, 2.5]
    assert rewards.columns == {"answer"}
    assert np.isnan(rewards.total(np.full((1, 2), np.nan, np.float32))).all()
    import sys

    module = next(
        module
        for name, module in sys.modules.items()
        if name.endswith("my rewards") and module.calls
    )
    assert module.calls == [(["p"] * 3, ["a", "bb", "ccc"], [[1]] * 3, ["extra"], 5)]


def test_chats_come_as_messages_to_lists_and_as_text_to_single_ones(file: Path) -> None:
    file.write_text(
        "def role(completions, **_):\n    return [c[0]['role'] == 'assistant' for c in"
        " completions]\ndef size(prompt, completion):\n    return len(completion) + 10 *"
        " len(prompt)\n"
    )
    chat = Completions(
        [[{"role": "user", "content": "q"}]], [[{"role": "assistant", "content": "abc"}]], [[1]]
    )
    assert load_rewards([f"{file}:role", f"{file}:size"]).score(chat).tolist() == [[1.0, 13.0]]


def test_async_rewards_wait_together(file: Path) -> None:
    import time

    rewards = load_rewards([f"{file}:waits", f"{file}:waits_alone", f"{file}:waits"])
    began = time.perf_counter()
    rewards.score(batch())
    assert time.perf_counter() - began < 0.55

    async def notebook() -> np.ndarray:
        return rewards.score(batch())

    assert asyncio.run(notebook())[:, 1].tolist() == [1.0, 2.0, 3.0]


def test_python_functions_are_taken_too() -> None:
    def longer(completion: str, **_: object) -> float:
        return float(len(completion))

    rewards = load_rewards([longer, "exact_match=0.5"])
    assert rewards.names == ("longer", "exact_match")
    assert rewards.score(batch()).tolist() == [[1.0, 1.0], [2.0, 0.0], [3.0, 1.0]]


def test_no_completions_give_no_scores(file: Path) -> None:
    empty = Completions([], [], [], {"answer": []})
    rewards = load_rewards([f"{file}:trl", f"{file}:waits", "exact_match"])
    assert rewards.score(empty).shape == (0, 3)


BROKEN = {
    "breaks": 'completion 2 of 3, "": ZeroDivisionError: division by zero (line',
    "breaks_alone": 'completion 2 of 3, "": ZeroDivisionError',
    "breaks_later": 'completion 2 of 3, "": ZeroDivisionError',
    "breaks_together": (
        "these 3 completions (on none of them alone): RuntimeError: too many of them"
    ),
    "leaves": 'completion 1 of 3, "a": SystemExit: 0',
    "says_text": 'gave "good", which is no number, for completion 3 of 3, "bb"',
    "says_nan": 'gave NaN for completion 3 of 3, "bb"',
    "says_inf": 'gave 1e+300 for completion 3 of 3, "bb"',
    "too_few": 'gave 1 scores for 3 completions, the first being "a"',
    "one_number": "gave 1.0, not a list, for 3 completions",
    "nothing": "gave None, not a list, for 3 completions",
}


@pytest.mark.parametrize(("name", "says"), BROKEN.items(), ids=BROKEN)
def test_a_broken_reward_stops_with_the_completion_that_broke_it(
    file: Path, name: str, says: str
) -> None:
    texts = batch(["a", "", "bb"])
    with pytest.raises(TrainingError) as caught:
        load_rewards([f"{file}:{name}"]).score(texts)
    assert says in caught.value.message
    assert caught.value.message.startswith(f"reward `{file}:{name}` ")
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_or_scores_nothing_by_choice(file: Path) -> None:
    def go_on(name: str) -> tuple[list[float], Logged]:
        rewards, logged = load_rewards([f"{file}:{name}"], on_error="none"), Logged()
        return rewards.score(batch(["a", "", "bb"]), logged)[:, 0].tolist(), logged

    cases = {
        "breaks": [1.0, None, 0.5],
        "breaks_later": [1.0, None, 0.5],
        "breaks_together": [1.0] * 3,
        "says_nan": [1.0, 1.0, None],
        "says_text": [1.0, 1.0, None],
        "one_number": [None] * 3,
    }
    for name, want in cases.items():
        got, logged = go_on(name)
        assert [None if score != score else score for score in got] == want, name
        failures = want.count(None)
        assert logged.metrics.get(f"rewards/{name}/failures", 0) == failures


def test_what_a_function_says_of_each_completion_stays_with_it(file: Path) -> None:
    logged = Logged()
    scores = load_rewards([f"{file}:tells"], on_error="none").score(batch(["a", "", "bb"]), logged)
    assert np.isnan(scores[:, 0]).tolist() == [False, True, False]
    assert logged.columns == {"size": [1, 0, 2]}
    with pytest.raises(TrainingError, match="`log_extra` 1 values of `size` for 3 completions"):
        load_rewards([f"{file}:tells_little"]).score(batch())


WRONG_FILES = {
    "no such file": (None, "does not exist", "check the path"),
    "syntax": ("def f(:\n", "does not import: SyntaxError: invalid syntax (line 1)", "python "),
    "import": (
        "x = 1\nimport not_there\n",
        "ModuleNotFoundError: No module named 'not_there' (line 2)",
        "python ",
    ),
    "error": (
        "def g():\n    raise ValueError('a\\nb')\ng()\n",
        "ValueError: a b (line 2)",
        "python ",
    ),
    "exit": ("import sys\nsys.exit(3)\n", "does not import: SystemExit: 3 (line 2)", "python "),
    "other name": (
        "def ff(completions):\n    return []\n",
        "has no function `f`",
        "did you mean `ff`?",
    ),
    "empty": ("", "has no function `f`", "it has: no functions"),
    "a class": ("class f:\n    pass\n", "is not a function", "name a function"),
    "a number": ("f = 3\n", "is not a function", "name a function"),
    "positional": (
        "def f(completions, /):\n    return []\n",
        "takes parameters without names",
        "remove the `/`",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_files_that_cannot_be_used(tmp_path: Path, case: str) -> None:
    content, says, hint = WRONG_FILES[case]
    path = tmp_path / "r.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_rewards([f"{path}:f"])
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message


def test_arguments_that_a_function_does_not_take(file: Path) -> None:
    with pytest.raises(ConfigError, match="does not take `lvel`"):
        load_rewards([f"{file}:optional:lvel=3"])


def test_columns_are_checked_before_anything_runs(file: Path) -> None:
    rewards = load_rewards([f"{file}:needs", "exact_match", f"{file}:optional"])
    assert rewards.columns == {"difficulty", "answer", "completion", "target", "response"}
    rewards.check_columns(["answer", "difficulty"], "`data.jsonl`")
    with pytest.raises(DataError) as caught:
        rewards.check_columns(["answer", "text"], "`data.jsonl`")
    assert "needs the column `difficulty`, which `data.jsonl` does not have" in caught.value.message
    assert "`answer`, `text`" in caught.value.hint
    with pytest.raises(DataError, match="`completion` or `target` or `response` or `answer`"):
        rewards.check_columns(["difficulty"], "`data.jsonl`")
    with pytest.raises(DataError, match="difficulty"):
        rewards.score(batch())
