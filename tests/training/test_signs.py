"""Runs that learn nothing say so: while they run, at their end, and when they are looked at
later."""

import json
import math
import re

import pytest

from chuk_lib.data.labels import label_notes
from chuk_lib.events import read_events
from chuk_lib.training import train as train_job
from chuk_lib.training.engine import Progress
from chuk_lib.training.jobs import resume
from chuk_lib.training.signs import SIGNS, STREAK, Signs
from tests.training.conftest import write_rows
from tests.training.grpo_runs import make_config, train
from tests.training.ppo_runs import PPORuns
from tests.training.preference_runs import CONFIGS

UNSCORED = "def nothing(completions, **kwargs):\n    return [None for _ in completions]\n"


def warnings_of(result):
    events = read_events(result.run_dir / "events.jsonl")
    return [(event.step, event.data["text"]) for event in events if event.kind == "warning"]


CUT, FLAT = (
    "every completion was cut off",
    "all completions that are compared scored the same, which teaches nothing",
)
CASES = {
    "cut": ({"max_completion_length": 1}, CUT),
    "flat": ({"rewards": ("same",), "max_completion_length": 48}, FLAT),
    "flat with a KL": ({"rewards": ("same",), "max_completion_length": 48, "beta": 0.1}, FLAT),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_cannot_learn_says_so_once_and_at_its_end(case, tiny_model_dir, tmp_path):
    changes, text = CASES[case]
    told = warnings_of(train(tmp_path, tiny_model_dir, max_steps=8, **changes))
    assert told == [(STREAK, f"in the last {STREAK} steps {text}"), (8, f"in 8 of 8 steps {text}")]


def test_a_run_that_learns_says_nothing(tiny_model_dir, tmp_path):
    assert (
        warnings_of(train(tmp_path, tiny_model_dir, max_steps=STREAK + 2, max_completion_length=48))
        == []
    )


def test_rewards_that_score_nothing_are_told_in_grpo_and_ppo(tiny_model_dir, tmp_path):
    (tmp_path / "mine.py").write_text(UNSCORED)
    nothing = (f"{tmp_path / 'mine.py'}:nothing",)
    config = make_config(tmp_path, tiny_model_dir, max_steps=STREAK)
    first = train_job("grpo", type(config)(**(vars(config) | {"rewards": nothing})))
    second = PPORuns(tmp_path, tiny_model_dir)("ppo", rewards=nothing, max_steps=STREAK)
    for result in (first, second):
        assert [text for _, text in warnings_of(result)] == [
            f"in the last {STREAK} steps no reward could score a completion",
            f"in {STREAK} of {STREAK} steps no reward could score a completion",
        ]


def test_ppo_without_groups_knows_a_flat_batch(tiny_model_dir, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def same(completions, **kwargs):\n    return [0.0 for _ in completions]\n"
    )
    runs = PPORuns(tmp_path, tiny_model_dir)
    result = runs(
        "flat", rewards=(f"{tmp_path / 'mine.py'}:same",), max_steps=2, max_completion_length=48
    )
    assert [text for _, text in warnings_of(result)] == [f"in 2 of 2 steps {FLAT}"]


def test_a_gradient_of_zero_is_told_of_pairs_without_a_difference(tiny_model_dir, tmp_path):
    rows = [
        {"prompt": f"red {i}: ", "chosen": "blue sky", "rejected": "blue sea"} for i in range(8)
    ]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    config = CONFIGS["dpo"](
        model=str(tiny_model_dir),
        data=str(data),
        output=str(tmp_path / "run"),
        max_steps=2,
        max_length=12,
    )
    result = train_job("dpo", config)
    events = read_events(result.run_dir / "events.jsonl")
    notes = [event.data["text"] for event in events if event.kind == "note"]
    assert any("8 pairs have equal tokens" in note for note in notes)
    assert warnings_of(result) == [
        (0, "8 of 8 rows are cut at max_length (12 tokens)"),
        (2, "in 2 of 2 steps the gradient was 0: nothing was learned"),
    ]


def test_the_steps_before_a_resume_are_counted(tiny_model_dir, tmp_path):
    begun = train(
        tmp_path, tiny_model_dir, max_steps=4, rewards=("same",), max_completion_length=48
    )
    result = resume(begun.run_dir, changes={"max_steps": 6})
    assert "in 6 of 6 steps" in warnings_of(result)[-1][1]


def test_the_terminal_and_runs_show_tell_it(run_chuk, tiny_model_dir, tmp_path):
    data = write_rows(
        tmp_path / "prompts.jsonl", [{"prompt": f"{i}: ", "answer": "xyz"} for i in range(8)]
    )
    done = run_chuk(
        "train",
        "grpo",
        "-m",
        tiny_model_dir,
        "-d",
        data,
        "--reward",
        "exact_match",
        "--max-steps",
        "6",
        "--max-completion-length",
        "48",
        "--batch-size",
        "8",
        "-o",
        "run",
    )
    assert done.returncode == 0, done.stderr
    assert f"warning: in the last {STREAK} steps {FLAT}" in done.stderr
    assert f"warning: in 6 of 6 steps {FLAT}" in done.stderr
    assert "hint: begin with a model that is right sometimes" in done.stderr
    assert re.search(r"cut off \d+%  same reward 100%", done.stderr)
    shown = run_chuk("runs", "show", "run").stdout
    assert f"6 of 6 steps {FLAT}" in " ".join(shown.split())


def test_a_sign_is_told_again_only_after_it_was_gone():
    signs, flat, fine = (
        Signs(Progress().counts),
        {"frac_reward_zero_std": 1.0},
        {"frac_reward_zero_std": 0.5},
    )
    told = [len(signs.see(metrics, [1.0])) for metrics in [flat] * 8 + [fine] + [flat] * 5]
    assert told == [0] * 4 + [1] + [0] * 8 + [1]
    assert [warning["text"].split(" all")[0] for warning in signs.sum_up(14)] == [
        "in 13 of 14 steps"
    ]
    assert signs.sum_up(27) == []


@pytest.mark.parametrize(
    ("metrics", "norms", "name"),
    [
        ({"reward": math.nan, "completions/clipped_ratio": 1.0}, [0.0], "unscored"),
        (
            {"reward": 0.0, "completions/clipped_ratio": 1.0, "frac_reward_zero_std": 1.0},
            [0.0],
            "cut",
        ),
        ({"frac_reward_zero_std": 1.0, "dynamic_sampling/frac_zero_std": 0.5}, [1.0], None),
        ({"reward_std": 0.0}, [1.0], "flat"),
        ({"reward_std": 0.0, "frac_reward_zero_std": 0.9}, [1.0], None),
        ({}, [0.0, 0.0], "still"),
        ({}, [], "still"),
        ({}, [0.0, 1e-5], None),
    ],
)
def test_a_step_has_the_first_sign_that_holds(metrics, norms, name):
    assert next((sign.name for sign in SIGNS if sign.holds(metrics, norms)), None) == name


TRL = {
    (9, 1, 1.0, 1.0): ("0.11", "0.15", "6.77", "9"),
    (1, 9, 1.0, 1.0): ("9", "11.97", "0.08", "0.11"),
    (5, 4, 1.0, 1.0): (),
    (2, 3, 1.0, 1.0): ("1.5", "2", "0.5", "0.67"),
    (9, 1, 1.0, 8.0): (),
    (6, 2, 0.5, 1.0): ("0.33", "0.44", "1.13", "1.5"),
}
"""(good, bad, desirable_weight, undesirable_weight) to the weights that TRL 1.16's KTOTrainer
recommends."""


@pytest.mark.parametrize("case", TRL)
def test_weights_that_balance_labels_are_those_of_trl(case):
    found = label_notes(*case)
    assert bool(found) == bool(TRL[case])
    low, high, other_low, other_high = TRL[case] or ("",) * 4
    for text in (
        f"desirable_weight between {low} and {high}",
        f"undesirable_weight between {other_low} and {other_high}",
    ):
        assert not found or text in found[0]


def test_kto_names_labels_that_do_not_balance_in_training_dry_run_and_check(
    run_chuk, tiny_model_dir, tmp_path
):
    rows = [{"prompt": f"red {i}: ", "completion": f"blue {i}", "label": i > 0} for i in range(10)]
    mixed, good = (
        write_rows(tmp_path / "mixed.jsonl", rows),
        write_rows(tmp_path / "good.jsonl", rows[1:]),
    )
    ask = ("train", "kto", "-m", tiny_model_dir, "--max-steps", "1", "-o", "run", "--overwrite")
    for data, text in (
        (mixed, "undesirable_weight between 6.77 and 9"),
        (good, "all 9 answers are labelled good"),
    ):
        for command in (
            (*ask, "-d", data),
            (*ask, "-d", data, "--dry-run"),
            ("data", "check", data, "--ignore", "near"),
        ):
            done = run_chuk(*command)
            assert text in " ".join((done.stdout + done.stderr).split()), (command, done.stderr)
            assert done.returncode == (command[1] == "check" and data == good)
    weighed = run_chuk(*ask, "-d", mixed, "--dry-run", "--undesirable-weight", "8")
    assert "undesirable_weight between" not in weighed.stderr
    assert (
        json.loads(
            run_chuk("data", "check", good, "--ignore", "near", "--json").stdout.splitlines()[0]
        )["kind"]
        == "preference"
    )
