"""The dashboard of runs that learn from rewards or preferences: what they are about comes first."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from chuk_cli.dashboard.board import Board
from chuk_cli.dashboard.draw import draw
from chuk_cli.dashboard.lines import Lines
from chuk_lib.events import Event

ROWS = [
    {
        "prompt": "What is 3+4?\nAnswer: ",
        "completion": "7",
        "reward": 1.0,
        "rewards": {"exact_match": 1.0},
    },
    {
        "prompt": "What is 3+4?\nAnswer: ",
        "completion": "12 or so",
        "reward": 0.0,
        "rewards": {"exact_match": 0.0},
    },
]


def grpo_run(steps: int = 20) -> Iterator[Event]:
    about = {
        "algorithm": "grpo",
        "model": "demo/sft",
        "data": "prompts.jsonl",
        "run_dir": "runs/grpo",
        "steps": steps,
        "parameters": 1_000_000,
        "trainable_parameters": 1_000_000,
        "stage": {"name": "grpo", "kind": "grpo", "number": 3, "of": 4},
    }
    yield Event("started", 0, about, 1000.0)
    for step in range(1, steps + 1):
        reward = 0.3 + 0.5 * step / steps
        yield Event(
            "step",
            step,
            {
                "loss": 0.001,
                "reward": reward,
                "reward_std": 0.21,
                "rewards/exact_match/mean": reward - 0.1,
                "rewards/format/mean": 0.1,
                "kl": 0.0123,
                "entropy": 0.8,
                "completions/mean_length": 12.5,
                "completions/min_length": 3.0,
                "completions/max_length": 30.0,
                "completions/clipped_ratio": 0.04,
                "frac_reward_zero_std": 0.25,
                "clip_ratio/region_mean": 0.02,
                "rollout_tokens_per_second": 2178.0,
                "training_tokens_per_second": 5120.0,
                "learning_rate": 1e-5,
                "grad_norm": 0.7,
            },
            1000.0 + step,
        )
        yield Event("completions", step, {"rows": ROWS}, 1000.0 + step)
        if step % 10 == 0:
            yield Event("eval", step, {"eval_reward": reward + 0.05, "best": True}, 1000.0 + step)
    yield Event("note", steps, {"text": "the chat template is the base model's"}, 1000.0 + steps)


def dpo_run() -> Iterator[Event]:
    yield Event("started", 0, {"algorithm": "dpo", "steps": 4}, 0.0)
    for step in range(1, 4):
        yield Event(
            "step",
            step,
            {
                "loss": 0.69 / step,
                "rewards/accuracies": 0.75,
                "rewards/margins": 1.5,
                "rewards/chosen": 0.5,
                "rewards/rejected": -1.0,
                "eval_rewards/accuracies": 0.7,
            },
            float(step),
        )


def board_of(events: Iterator[Event]) -> Board:
    board = Board()
    for event in events:
        board.see(event)
    return board


def picture(board: Board, width: int, height: int = 44) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, height=height).print(draw(board, width, height))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_rewards_lead_and_completions_stand_below(width: int) -> None:
    text = picture(board_of(grpo_run()), width)
    seen = [
        "chuk train grpo, stage 3 of 4",
        "reward 0.8000",
        "eval reward 0.8500",
        "best 0.8500 at step 20",
        "0.800 ± 0.210",
        "exact_match",
        "0.700",
        "format",
        "0.100",
        "KL",
        "0.0123",
        "12.5 (3 to 30)",
        "cut off",
        "4%",
        "25% of groups",
        "2,178 tokens/s",
        "5,120 tokens/s",
        "completion",
        "12 or so",
        "note: the chat template",
    ]
    missing = [part for part in seen if part not in text]
    assert not missing, text
    assert text.index("1.00 ") < text.index("12 or so")
    assert {len(line) for line in text.splitlines()} == {width}


def test_a_low_terminal_keeps_the_progress_and_the_reward() -> None:
    text = picture(board_of(grpo_run()), 80, 12)
    assert "20/20" in text
    assert "0.800" in text
    assert len(text.splitlines()) <= 12


def test_preferences_lead_with_accuracy_and_margin() -> None:
    text = picture(board_of(dpo_run()), 100)
    for part in ("75.0%, eval 70.0%", "margin", "1.5", "chosen", "rejected", "loss 0.2300"):
        assert part in text


def test_the_best_reward_is_the_highest() -> None:
    board = Board()
    for step, reward in ((1, 0.4), (2, 0.9), (3, 0.6)):
        board.see(Event("step", step, {"reward": reward}, float(step)))
        board.see(Event("eval", step, {"eval_reward": reward}, float(step)))
    assert (board.watched, board.best_eval) == ("reward", (2, 0.9))


def test_lines_tell_rewards_and_notes() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    for event in grpo_run():
        lines(event)
    text = stream.getvalue()
    for part in (
        "reward 0.325",
        "kl 0.0123",
        "length 12.5",
        "eval reward 0.850 (best)",
        "note: the chat template",
    ):
        assert part in text
    assert "warning" not in text


@pytest.mark.parametrize(
    "rows", [None, [], "text", [None], [{"completion": None}], [{"completion": "x", "reward": "?"}]]
)
def test_completions_may_be_anything(rows: object) -> None:
    board = board_of(grpo_run())
    board.see(Event("completions", 20, {"rows": rows}, 1.0))
    assert picture(board, 80)
