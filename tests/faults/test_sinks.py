"""Logs and displays that fail, and a clock that is set back: training does not notice."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from chuk_cli.dashboard.board import Board
from chuk_cli.dashboard.lines import Lines
from chuk_lib.events import Clock, Event, fan_out, read_events
from chuk_lib.training import SFTConfig, train_sft
from tests.faults.conftest import SETTINGS


def broken(event: Event) -> None:
    """A sink that fails from the second event on."""
    if event.kind != "started":
        raise OSError(28, "No space left on device")


def broken_too(event: Event) -> None:
    """Another one, which fails at the same event."""
    broken(event)


def test_sinks_that_raise_are_dropped_and_the_run_ends(
    tiny_model_dir: Path, toy_file: Path, tmp_path: Path
) -> None:
    seen: list[Event] = []
    output = tmp_path / "run"
    config = SFTConfig(
        model=str(tiny_model_dir),
        data=str(toy_file),
        output=str(output),
        **(SETTINGS | {"max_steps": 4}),
    )
    result = train_sft(config, sinks=[broken, broken_too, seen.append])
    assert (result.reason, result.steps) == ("done", 4)
    logged = [
        event.data["text"]
        for event in read_events(output / "events.jsonl")
        if event.kind == "warning"
    ]
    dropped = {f"log `{name}` failed and was dropped" for name in ("broken", "broken_too")}
    assert {text.split(":")[0] for text in logged if "dropped" in text} == dropped
    assert [event.step for event in seen if event.kind == "step"] == [1, 2, 3, 4]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (0, 2, 1)])
def test_several_that_fail_at_once(order: Sequence[int]) -> None:
    seen: list[Event] = []
    sinks: list[Callable[[Event], None]] = [broken, broken_too, seen.append]
    emit = fan_out([sinks[index] for index in order])
    for step in range(3):
        emit(Event("step", step))
    assert [event.step for event in seen if event.kind == "step"] == [0, 1, 2]
    assert len([event for event in seen if event.kind == "warning"]) == 2


def test_a_clock_that_is_set_back_goes_on_from_where_it_was() -> None:
    readings = iter([100.0, 101.0, 41.0, 42.5, 30.0, 31.0, 500.0])
    clock = Clock(lambda: next(readings))
    assert [clock() for _ in range(7)] == [100.0, 101.0, 101.0, 102.5, 102.5, 103.5, 572.5]


def test_old_logs_with_earlier_times_show_no_negative_duration() -> None:
    times = [1000.0, 1001.0, 400.0, 401.0, 402.0]
    events = [Event("started", 0, {"steps": 10}, times[0])]
    events += [Event("step", step, {"loss": 1.0}, time) for step, time in enumerate(times[1:], 1)]
    board, text = Board(), io.StringIO()
    lines = Lines(text)
    for event in events:
        board.see(event)
        lines(event)
        assert (board.elapsed() or 0) >= 0
        assert (board.remaining() or 0) >= 0
    assert text.getvalue().count("step ") == 4
    assert "-" not in text.getvalue().replace("run directory", "")
