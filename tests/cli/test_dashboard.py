"""The dashboard: a fold over events, a picture of it, and the same as plain lines."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chuk_cli.dashboard.board import MOST_POINTS, Board, data_name
from chuk_cli.dashboard.draw import draw
from chuk_cli.dashboard.lines import Lines
from chuk_cli.dashboard.live import LiveView
from chuk_cli.dashboard.plot import LINE, MARK, plot
from chuk_lib.events import KINDS, Event
from chuk_lib.training.config import SFTConfig
from chuk_lib.training.jobs import train_sft


def made_up_run(steps: int = 100, seconds: float = 2.0) -> Iterator[Event]:
    """A run whose loss falls from 2.5 to 0.5, with an evaluation, a save and a sample every
    twentieth step."""
    about = {
        "algorithm": "sft",
        "model": "models/Qwen3-0.6B",
        "data": "data/train.jsonl",
        "run_dir": "runs/first",
        "steps": steps,
        "start_step": 0,
        "epochs": 2,
        "parameters": 600_000_000,
        "trainable_parameters": 1_200_000,
        "device": "Device(gpu, 0)",
        "dtype": "bfloat16",
    }
    yield Event("started", 0, about, 1000.0)
    for step in range(1, steps + 1):
        now, loss = 1000.0 + step * seconds, 0.5 + 2 * math.exp(-step / 20)
        yield Event(
            "step",
            step,
            {
                "loss": loss,
                "grad_norm": 0.7,
                "learning_rate": 1e-4,
                "entropy": 1.2,
                "mean_token_accuracy": 0.75,
                "num_tokens": step * 4000,
                "epoch": 2 * step / steps,
                "tokens_per_second": 5120.0,
                "trained_tokens_per_second": 2310.0,
                "padding": 0.12,
                "memory_bytes": 2**31,
                "peak_memory_bytes": 3 * 2**30,
            },
            now,
        )
        if step % 20 == 0:
            yield Event("eval", step, {"eval_loss": loss + 0.1, "best": True}, now)
            yield Event("saved", step, {"path": f"step_{step:06d}", "best": True}, now)
            yield Event(
                "sample",
                step,
                {"prompt": "2 + 2?", "target": "It is 4.", "completion": "It is 5."},
                now,
            )
    yield Event(
        "warning",
        steps,
        {"text": "two rows were cut", "hint": "raise --max-length"},
        1000.0 + steps * seconds,
    )
    yield Event(
        "finished", steps, {"reason": "done", "seconds": steps * seconds}, 1000.0 + steps * seconds
    )


def board_after(count: int, steps: int = 100) -> Board:
    board = Board()
    for event in list(made_up_run(steps))[:count]:
        board.see(event)
    return board


def picture(board: Board, width: int, height: int = 40, ascii: bool = False, **console: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, height=height, **console).print(
        draw(board, width, height, ascii)
    )
    return stream.getvalue()


def test_board_knows_where_the_run_is() -> None:
    board = board_after(60)
    assert (board.step, board.steps, board.saved_step, board.best_step) == (53, 100, 40, 40)
    assert board.best_eval == (40, pytest.approx(0.6 + 2 * math.exp(-2)))
    assert board.elapsed() == pytest.approx(106)
    assert board.remaining() == pytest.approx(94)
    assert board.remaining(now=1000 + 106 + 10) == pytest.approx(84)
    assert board.sample == {"prompt": "2 + 2?", "target": "It is 4.", "completion": "It is 5."}


def test_board_takes_events_with_nothing_in_them() -> None:
    board = Board()
    for kind in [*KINDS, "something-new"]:
        board.see(Event(kind, 3, {}, 5.0))
        assert picture(board, 80)
        assert picture(board, 140)


@pytest.mark.parametrize(
    "value", [None, "nan", "inf", "many", [], {}, True, float("nan"), -1, 1e30]
)
def test_board_takes_events_with_anything_in_them(value: Any) -> None:
    board = Board()
    keys = {key for event in made_up_run(20) for key in event.data}
    lines = Lines(io.StringIO())
    for kind in KINDS:
        for step in (0, 3, 4):
            event = Event(
                kind, step, dict.fromkeys(keys | {"eval_mean_token_accuracy"}, value), 5.0
            )
            board.see(event)
            lines(event)
            assert picture(board, 80)


def test_resuming_forgets_the_steps_that_are_taken_again() -> None:
    board = board_after(60)
    board.see(Event("started", 40, {"steps": 100, "start_step": 40}, 5000.0))
    assert board.losses[-1][0] == 40
    assert (board.step, board.elapsed()) == (40, 0.0)


def test_another_run_begins_with_nothing_of_the_one_before() -> None:
    board = board_after(60)
    board.see(Event("started", 0, {"steps": 5, "run_dir": "runs/next"}, 5000.0))
    assert (board.losses, board.latest, board.best_eval, board.steps, board.elapsed()) == (
        [],
        {},
        None,
        5,
        0.0,
    )


def test_long_curves_are_thinned_and_end_where_they_end() -> None:
    board = Board()
    for step in range(1, 3 * MOST_POINTS):
        board.see(Event("step", step, {"loss": float(step)}, 1.0))
    assert len(board.losses) < MOST_POINTS
    assert board.losses[-1] == (3 * MOST_POINTS - 1, 3 * MOST_POINTS - 1)
    assert all(early < late for early, late in zip(board.losses, board.losses[1:], strict=False))


SEEN = [
    "chuk train sft",
    "Qwen3-0.6B on train.jsonl",
    "bfloat16",
    "runs/first",
    "60/100",
    "60%",
    "left",
    "loss",
    "eval loss",
    "best",
    "learning rate",
    "1e-4",
    "gradient norm",
    "0.7",
    "5,120 (45% trained)",
    "12%",
    "memory",
    "2.0 GiB, peak 3.0 GiB",
    "step 60",
    "wanted",
    "It is 4.",
    "written",
    "It is 5.",
]


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("ascii", [False, True])
def test_picture_shows_everything_at_both_widths(width: int, ascii: bool) -> None:
    text = picture(board_after(70), width, ascii=ascii)
    missing = [part for part in SEEN if part not in text]
    assert not missing, text
    assert {len(line) for line in text.splitlines()} == {width}
    assert text.isascii() is ascii


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 200])
@pytest.mark.parametrize("height", [6, 10, 16, 24, 40])
def test_picture_fits_any_terminal(width: int, height: int) -> None:
    for count in (0, 1, 2, 30, 70, 500):
        lines = picture(board_after(count), width, height).splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) < max(height, 9)


def test_low_terminals_keep_the_progress_and_the_loss() -> None:
    text = picture(board_after(70), 80, 10)
    assert "60/100" in text
    assert "eval loss" in text
    assert "wanted" not in text


def test_epochs_are_told_when_they_decide() -> None:
    board = board_after(70)
    assert "epoch 1.20/2" in picture(board, 140)
    board.about["config"] = {"max_steps": 100}
    assert "epoch 1.20  " in picture(board, 140)


def test_picture_is_a_pure_function() -> None:
    board = board_after(70)
    assert picture(board, 80) == picture(board, 80)
    early = draw(board, 80, 40, now=2000.0)
    assert early is not None


def test_colour_goes_away_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    board = board_after(70)
    assert "\033[36m" in picture(board, 80, force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = picture(board, 80, force_terminal=True, color_system="standard")
    assert not [code for code in range(30, 48) if f"\033[{code}m" in plain]


def test_the_end_is_said_in_words() -> None:
    assert "done after 3 m 20 s" in picture(board_after(500), 80)
    ends = {
        "stopped": "stopped, state saved",
        "early_stopping": "stopped early",
        "failed": "failed",
    }
    for reason, words in ends.items():
        board = board_after(70)
        board.see(Event("finished", 60, {"reason": reason}, 1200.0))
        assert words in picture(board, 80)


def test_model_output_cannot_command_the_terminal() -> None:
    board, stream = board_after(3), io.StringIO()
    event = Event(
        "sample",
        1,
        {"prompt": "\033[2J\x07", "target": "[bold]x", "completion": "\r\033]0;t\x07"},
        1.0,
    )
    board.see(event)
    Lines(stream)(event)
    assert "\033" not in picture(board, 80) + stream.getvalue()
    assert "[bold]x" in picture(board, 80)


def test_plot_draws_line_and_marks_where_they_belong() -> None:
    drawn = plot([(0, 1.0), (10, 0.0)], [(10, 1.0)], 11, 4, ascii=True)
    assert drawn is not None
    rows = ["".join(character for character, _ in row) for row in drawn.cells]
    assert (rows[0][0], rows[0][10], rows[3][10]) == ("*", "o", "*")
    assert {kind for row in drawn.cells for _, kind in row} >= {LINE, MARK}
    assert (drawn.low, drawn.high, drawn.first, drawn.last) == (0.0, 1.0, 0, 10)
    assert plot([(1, float("nan"))], [], 10, 4) is None


def lines_of(steps: int, seconds: float) -> list[str]:
    stream = io.StringIO()
    sink = Lines(stream)
    for event in made_up_run(steps, seconds):
        sink(event)
    return stream.getvalue().splitlines()


def test_lines_are_few_on_a_fast_run_and_steady_on_a_slow_one() -> None:
    fast = [line for line in lines_of(1000, 0.001) if line.startswith("step")]
    assert fast[0].startswith("step     1/1,000   0%")
    assert 15 <= len(fast) <= 22
    slow = [line for line in lines_of(100, 2.0) if line.startswith("step")]
    assert len(slow) == 34  # the first, then every third: five seconds are three steps of two


def test_the_title_names_all_data() -> None:
    assert data_name("there/a.jsonl,b.jsonl=0.3") == "a.jsonl, b.jsonl=0.3"
    assert data_name(None) == ""


def test_lines_tell_everything_else_at_once() -> None:
    lines = lines_of(100, 2.0)
    assert lines[0].startswith(
        "sft Qwen3-0.6B on train.jsonl: 100 steps, 2 epochs, 1.20 M of 600 M parameters, gpu"
    )
    assert lines[1] == "run directory: runs/first"
    assert sum(line.startswith("eval at step") for line in lines) == 5
    assert "saved step 20 as the best" in lines
    assert 'sample at step 20: prompt "2 + 2?", wanted "It is 4.", written "It is 5."' in lines
    assert lines[-3:] == [
        "warning: two rows were cut",
        "hint: raise --max-length",
        "done: 100 steps in 3 m 20 s",
    ]
    assert not [line for line in lines if "\033" in line]


def test_live_view_redraws_calmly_and_leaves_the_last_frame() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, height=40, color_system=None)
    began = time.perf_counter()
    with LiveView(console) as view:
        for event in made_up_run(100):
            view(event)
            time.sleep(0.01)
    frames = stream.getvalue().count("╭")
    assert frames <= 3 + (time.perf_counter() - began) / 0.25
    assert "done after 3 m 20 s" in stream.getvalue()[-6000:]


def test_live_view_of_a_run_that_never_started_leaves_nothing() -> None:
    stream = io.StringIO()
    with LiveView(Console(file=stream, force_terminal=True, width=80, height=40)):
        pass
    assert "getting ready" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("\033[2K")


def test_each_step_moves_the_counter_and_an_evaluation_says_so() -> None:
    board = board_after(60)
    board.see(Event("moved", 57, {}, 1120.0))
    assert (board.step, "57/100" in picture(board, 80)) == (57, True)
    assert board.remaining() is not None
    board.see(Event("moved", 58, {"doing": "evaluating"}, 1125.0))
    shown = picture(board, 80)
    assert ", evaluating" in shown
    assert " left" not in shown
    board.see(Event("eval", 58, {"eval_loss": 1.0}, 1130.0))
    assert "evaluating" not in picture(board, 80)


def test_a_real_run_moves_step_by_step_and_logs_no_more_than_before(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f'{{"prompt": "{n}+1=", "completion": "{n + 1}"}}\n' for n in range(8)))
    config = SFTConfig(
        model=str(tiny_model_dir),
        data=str(data),
        eval_data=str(data),
        output=str(tmp_path / "run"),
        max_steps=4,
        eval_steps=2,
        log_interval=4,
    )
    seen: list[Event] = []
    train_sft(config, sinks=[seen.append])
    assert [event.step for event in seen if event.kind == "moved" and not event.data] == [
        1,
        2,
        3,
        4,
    ]
    assert [event.step for event in seen if event.data.get("doing") == "evaluating"] == [2, 4]
    assert "moved" not in (tmp_path / "run" / "events.jsonl").read_text()


def test_the_panel_of_an_evaluation_by_rewards_calls_them_so() -> None:
    board = Board()
    board.see(Event("started", 0, {"algorithm": "eval", "model": "m"}, 1.0))
    board.see(Event("eval", 0, {"eval_reward": 0.291, "eval_loss": 0.4987}, 2.0))
    shown = " ".join(picture(board, 80).split())
    assert "eval reward 0.2910" in shown
    assert "eval loss 0.4987" in shown
    assert "eval loss 0.2910" not in shown


def test_the_ends_of_an_axis_differ() -> None:
    board = Board()
    for step, loss in enumerate((0.6931, 0.6928, 0.6925), 1):
        board.see(Event("step", step, {"loss": loss}, float(step)))
    shown = picture(board, 80)
    assert "0.6931 ┤" in shown
    assert "0.6925 ┤" in shown


@pytest.mark.parametrize("size", [(120, 40), (200, 50)])
def test_a_large_terminal_is_used(size: tuple[int, int]) -> None:
    lines = picture(board_after(200), *size).splitlines()
    assert len(lines) >= size[1] * 0.7
    assert max(map(len, lines)) == size[0]
