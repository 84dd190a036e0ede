"""The one loop, on the smallest algorithm there is: one weight matrix and one row."""

import math

import mlx.core as mx
import mlx.nn as nn
import pytest

from chuk_lib.errors import TrainingError
from chuk_lib.events import Event
from chuk_lib.runs.log import Log
from chuk_lib.runs.summary import best_eval
from chuk_lib.training.algorithm import Algorithm, Loss, Update
from chuk_lib.training.config import SFTConfig
from chuk_lib.training.engine import Cadence, Hooks, Progress, fit
from chuk_lib.training.optimizers import build_optimizer
from chuk_lib.training.schedulers import Schedule
from chuk_lib.training.updater import Updater

NAN = math.nan


class Toy(Algorithm):
    """Its updates say that they weigh `said` and weigh `real`; the mean loss is the same whatever
    that is."""

    def __init__(self, said=1.0, real=1.0):
        mx.random.seed(0)
        self.model, self.said, self.real = nn.Linear(2, 1), said, real

    def updates(self, step):
        yield Update([{"x": mx.ones((1, 2))}], self.said, {})

    def loss(self, model, micro_batch):
        return Loss(self.real * mx.square(model(micro_batch["x"])).sum(), mx.array(self.real), {})

    def where(self, step):
        return "the one row"


def updated(said, real):
    toy = Toy(said, real)
    updater = Updater(toy, build_optimizer(SFTConfig(), toy.model), 0.0)
    found = updater(next(toy.updates(0)), 1e-3)
    return found["grad_norm"], toy.model.weight.tolist()


@pytest.mark.parametrize("weight", [4.0, 0.5, 0.1, 1e-3])
def test_gradients_are_divided_by_exactly_the_weight(weight):
    assert updated(weight, weight)[0] == pytest.approx(updated(1.0, 1.0)[0], rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, -1.0, NAN])
def test_an_update_that_weighs_nothing_is_refused(weight):
    with pytest.raises(TrainingError, match=f"1 micro-batches weighs {weight:g}"):
        updated(weight, 1.0)


def test_an_update_that_weighs_something_else_than_its_losses_is_refused_before_a_weight_moves():
    toy = Toy(1000.0, 4.0)
    before = toy.model.weight.tolist()
    updater = Updater(toy, build_optimizer(SFTConfig(), toy.model), 0.0)
    with pytest.raises(
        TrainingError, match="the update weighs 1000, but its losses weigh 4 together"
    ):
        updater(next(toy.updates(0)), 1e-3)
    assert toy.model.weight.tolist() == before
    assert updated(1000.0, 1000.0 * (1 + 1e-4))[0] > 0  # what float32 sums may differ by


def evaluated(values, patience=None, greater=True):
    """How a run of as many steps ends whose evaluations give `values`, and its events."""
    toy, events, progress = Toy(), [], Progress()
    plan = Cadence(
        len(values),
        0,
        Schedule(),
        eval_interval=1,
        patience=patience,
        watched="eval_reward",
        greater_is_better=greater,
    )
    hooks = Hooks(
        events.append, lambda progress, best: None, lambda step: {"eval_reward": values[step - 1]}
    )
    reason = fit(toy, build_optimizer(SFTConfig(), toy.model), plan, progress, hooks)
    return reason, progress, [event for event in events if event.kind == "eval"]


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([NAN, 3.0, 2.0], 2),
        ([NAN, NAN, 1.0], 3),
        ([1.0, NAN, 2.0], 3),
        ([2.0, NAN, 2.0], 1),
        ([NAN, NAN], None),
    ],
)
def test_an_evaluation_that_is_not_a_number_is_never_the_best(values, best):
    _, progress, _ = evaluated(values)
    assert (progress.best or {}).get("step") == best
    told = best_eval(
        Log([Event("eval", at + 1, {"eval_reward": value}) for at, value in enumerate(values)])
    )
    assert (told[0] if told else None) == best


def test_patience_waits_for_a_number_and_loses_itself_over_what_is_none():
    assert evaluated([NAN, 3.0, 4.0, 5.0], patience=2)[0] == "done"
    reason, progress, _ = evaluated([3.0, NAN, NAN, 9.0], patience=2)
    assert (reason, progress.step, progress.best["step"]) == ("early_stopping", 3, 1)


def test_a_run_that_is_over_leaves_its_model_in_evaluation_mode():
    toy = Toy()
    toy.model.train()
    plan = Cadence(5, 0, Schedule(), patience=1)
    hooks = Hooks(lambda event: None, lambda progress, best: None)
    assert (
        fit(toy, build_optimizer(SFTConfig(), toy.model), plan, Progress(step=3, stale=1), hooks)
        == "early_stopping"
    )
    assert not toy.model.training
