"""Schedules: the formulas are checked against TRL's numbers by the parity suite; here, what users
rely on."""

import pytest

from chuk_lib.errors import ConfigError
from chuk_lib.training.config import SCHEDULES
from chuk_lib.training.schedulers import Schedule


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULES if kind != "constant"])
def test_warmup_starts_at_zero_and_reaches_the_peak(kind):
    schedule = Schedule(kind, warmup_steps=4, total_steps=20, peak=0.5)
    assert schedule.learning_rate(0) == 0.0
    assert schedule.learning_rate(2) == pytest.approx(0.25)
    assert schedule.learning_rate(4) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "end"),
    [("linear", 1 / 16), ("cosine", 0.00961), ("cosine_with_min_lr", 0.10865), ("constant", 1.0)],
)
def test_the_last_step_is_where_the_formula_puts_it(kind, end):
    schedule = Schedule(
        kind, warmup_steps=0 if kind == "constant" else 4, total_steps=20, min_lr_rate=0.1
    )
    assert schedule.factor(19) == pytest.approx(end, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("cosine_with_restarts", {"num_cycles": 3.0}),
        ("polynomial", {"power": 2.0}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.5}),
        ("warmup_stable_decay", {"num_decay_steps": 10}),
    ],
)
def test_every_shape_setting_changes_the_curve(kind, change):
    def curve(**settings):
        return [Schedule(kind, total_steps=20, **settings).factor(step) for step in range(20)]

    assert curve() != curve(**change)


def test_an_unknown_schedule_names_the_known_ones():
    with pytest.raises(ConfigError, match="unknown lr_scheduler_type") as caught:
        Schedule("cosin").factor(0)
    assert "cosine" in caught.value.hint
