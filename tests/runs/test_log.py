"""Logs as they are found: torn, damaged, resumed, with a clock that jumps."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from chuk_cli.dashboard.board import Board
from chuk_lib.events import Event, parse, read_events
from chuk_lib.runs.log import Follower, read_log
from chuk_lib.runs.record import read_run
from chuk_lib.runs.summary import summarize
from tests.runs.conftest import WriteRun, finished, started, step


def test_a_log_reads_as_the_library_reads_it(runs: Path) -> None:
    path = runs / "first" / "events.jsonl"
    assert read_log(path).events == read_events(path)
    assert read_log(path).damaged == 0


def test_a_light_reading_has_the_same_summary(runs: Path) -> None:
    for run in (runs / "first", runs / "second"):
        light, full = summarize(run), summarize(run, read_log(run / "events.jsonl"))
        assert light.as_dict() | {"age": 0} == full.as_dict() | {"age": 0}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "null",
        "[1]",
        '{"kind": "step"}',
        '{"v": 1, "t": 1, "kind": "step", "step": "2", "data": {}}',
        '{"v": 1, "t": 1, "kind": "step", "step": true, "data": {}}',
        "[" * 5000,
        '{"v": 1, "t": 1, "kind": "step", "step": 2, "data": 7}',
        '{"t": "x", "kind": "a", "step": 1, "data": {}}',
        '{"t": NaN, "kind": "a", "step": 1, "data": {}}',
        '{"t": 1, "kind": 3, "step": -1, "data": {}}',
    ],
)
def test_a_line_that_is_no_event_is_none(line: str) -> None:
    assert parse(line) is None


def test_damaged_lines_are_counted_and_skipped(write_run: WriteRun) -> None:
    run = write_run(
        "torn", [started(1), "garbage", step(1, 2), '{"v": 1, "t": 3, "kind": "st', step(2, 4), ""]
    )
    log = read_log(run / "events.jsonl")
    assert ([event.step for event in log.of("step")], log.damaged) == ([1, 2], 2)


def test_any_damage_to_a_real_log_is_survived(runs: Path) -> None:
    path = runs / "first" / "events.jsonl"
    whole, dice = path.read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(dice.randrange(1, 40)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(bytes(damaged[: dice.randrange(len(damaged))]))
        summarize(path.parent)
        run = read_run(path.parent)
        assert run.curves is not None
        board = Board()
        for event in run.log.events:
            board.see(event)


def test_steps_that_a_resume_took_again_are_left_out_but_their_time_counts(
    write_run: WriteRun,
) -> None:
    abandoned = [started(0), step(1, 1), step(2, 2, loss=9.0), step(3, 3, loss=9.0)]
    again = [started(1000, step=1), step(2, 1001), Event("saved", 2, {"path": "x"}, 1002)]
    run = write_run("resumed", [*abandoned, *again])
    log = read_log(run / "events.jsonl")
    assert [event.step for event in log.of("step")] == [1, 2]
    assert log.seconds == pytest.approx(3 + 2)
    assert summarize(run).metrics["loss"] == 1.0


def test_a_resume_without_steps_yet_shows_the_last_step_that_counts(write_run: WriteRun) -> None:
    run = write_run(
        "again", [started(0), step(1, 1, loss=3.0), step(2, 2, loss=2.0), started(50, step=1)]
    )
    summary = summarize(run)
    assert (summary.step, summary.loss) == (1, 3.0)


def test_a_clock_set_back_breaks_no_duration(write_run: WriteRun) -> None:
    run = write_run("back", [started(1000), step(1, 1010), step(2, 20), step(3, 30)])
    log = read_log(run / "events.jsonl")
    assert log.seconds == pytest.approx(10 + 10)
    assert log.elapsed == sorted(log.elapsed)
    assert (summarize(run).age or 0) >= 0


def test_a_clock_that_is_ahead_gives_age_zero(write_run: WriteRun) -> None:
    assert summarize(write_run("future", [started(4e9), step(1, 4e9)])).age == 0


def test_a_session_says_itself_how_long_it_took(write_run: WriteRun) -> None:
    run = write_run("told", [started(0), step(1, 5), finished(9000, seconds=12.5)])
    assert summarize(run).seconds == 12.5


def test_a_board_that_follows_a_process_whose_clock_is_ahead(write_run: WriteRun) -> None:
    board = Board()
    for event in [started(5000), step(1, 5010), step(2, 5020)]:
        board.see(event)
    assert board.elapsed(now=100.0) == 20
    assert board.remaining(now=100.0) == pytest.approx(80)


def test_a_follower_waits_for_whole_lines_and_sees_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    follow = Follower(path)
    assert follow() == ([], False)
    line = step(1, 1.0).to_json()
    path.write_text(line[:10])
    assert follow() == ([], False)
    with path.open("a") as stream:
        stream.write(line[10:] + "\nnot json\n")
    assert [event.step for event in follow()[0]] == [1]
    path.write_text(step(7, 2.0).to_json()[:-30] + "\n")
    assert follow()[1]
    path.unlink()
    assert follow() == ([], False)


def test_a_light_reading_skims_all_steps_but_the_last(write_run: WriteRun) -> None:
    run = write_run(
        "long", [started(0), *(step(number, number, grad_norm=1.0) for number in range(1, 50))]
    )
    whole, light = (read_log(run / "events.jsonl", light=light) for light in (False, True))
    assert [event.step for event in light.events] == [event.step for event in whole.events]
    assert (light.seconds, light.events[-1].data) == (whole.seconds, whole.events[-1].data)
    assert not any(event.data for event in light.events[1:-1])


def evaluated(number: int, time: float, **data: object) -> Event:
    """An evaluation."""
    return Event("eval", number, dict(data), time)


@pytest.mark.parametrize(
    ("events", "best"),
    [
        (
            [
                evaluated(1, 2, eval_loss=2.0),
                evaluated(2, 3, eval_loss=1.5),
                evaluated(3, 4, eval_loss=1.7),
            ],
            (2, 1.5),
        ),
        # the run said with its threshold that 1.49 is no better than 1.5
        (
            [
                evaluated(1, 2, eval_loss=1.5, best=True),
                evaluated(2, 3, eval_loss=1.49, best=False),
            ],
            (1, 1.5),
        ),
        (
            [
                evaluated(1, 2, eval_loss=9.0, eval_reward=0.1),
                evaluated(2, 3, eval_loss=1.0, eval_reward=0.0),
            ],
            (1, 0.1),
        ),
        ([evaluated(1, 2, eval_loss="nan"), evaluated(2, 3, eval_loss=4.0)], (2, 4.0)),
        # went back to step 1: what came after it was never kept
        ([evaluated(1, 2, eval_loss=2.0), evaluated(3, 3, eval_loss=0.5), started(5, 1)], (1, 2.0)),
    ],
)
def test_screens_and_summaries_name_the_same_best(
    write_run: WriteRun, events: list[Event], best: tuple[int, float]
) -> None:
    run = write_run("evaluated", [started(1), *events])
    found, board = summarize(run), Board()
    for event in [started(1), *events]:
        board.see(event)
    assert (found.best_step, found.best) == board.best_eval == best


def test_both_readers_drop_what_a_resume_went_back_before(write_run: WriteRun) -> None:
    events = [
        started(1),
        step(2, 2),
        step(5, 3),
        started(4, 3),
        step(4, 5),
        started(6, 1),
        step(2, 7),
        step(3, 8),
    ]
    path = write_run("twice", events) / "events.jsonl"
    assert [(event.kind, event.step) for event in read_events(path)] == [
        ("started", 0),
        ("started", 3),
        ("started", 1),
        ("step", 2),
        ("step", 3),
    ]
    assert read_log(path).events == read_events(path)
