"""GRPO with a lag: who plays what, and what is learned from it."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_cli.settings import resolve_settings
from chuk_cli.train.grpo import with_preset
from chuk_lib.config.settings import Layer, resolve
from chuk_lib.errors import ConfigError, TrainingError
from chuk_lib.events import read_events
from chuk_lib.training import resume
from chuk_lib.training.online.episode import OneTurn
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.optimizers import build_optimizer
from chuk_lib.training.run import step_math
from chuk_lib.training.updater import Updater
from tests.training.grpo_runs import algorithm_of, learn, make_config, train


class Witness:
    """Plays as the model does, and remembers whose weights played what."""

    def __init__(self):
        self.model = self.player = None
        self.seen = []

    def play(self, prompts, n, sampling):
        self.seen.append(([one.row for one in prompts], sampling.seed, bits_of(self.model)))
        return self.player.play(prompts, n, sampling)


def bits_of(model):
    digest = hashlib.sha256()
    for _, leaf in sorted(tree_flatten(model.parameters())):
        digest.update(np.array(leaf).tobytes())
    return digest.hexdigest()


def witnessed(config, steps):
    """What was played by whom in some steps, the weights at the beginning of each, and metrics."""
    witness = Witness()
    trainer, algorithm = algorithm_of(config, player=witness)
    witness.model, witness.player = trainer.model, OneTurn(trainer.model, trainer.tokenizer)
    update = Updater(algorithm, build_optimizer(trainer.config, trainer.model), 1.0, False)
    begins, reports = [], []
    trainer.model.train()
    with step_math(config):
        for step in range(steps):
            begins.append(bits_of(trainer.model))
            sums = [update(part, 3e-3) for part in algorithm.updates(step)]
            reports.append((algorithm.finish(step).metrics, sums))
    return witness.seen, begins, reports


def test_a_step_is_played_with_the_weights_of_lag_steps_before(tiny_model_dir, tmp_path):
    fresh, begins, _ = witnessed(make_config(tmp_path, tiny_model_dir, max_steps=5), 5)
    assert [weights for _, _, weights in fresh] == begins
    lagged, begins, reports = witnessed(
        make_config(tmp_path, tiny_model_dir, max_steps=5, lag=2), 5
    )
    assert [rows for rows, _, _ in lagged] == [rows for rows, _, _ in fresh]
    assert [seed for _, seed, _ in lagged] == [seed for _, seed, _ in fresh]
    assert [weights for _, _, weights in lagged] == [begins[max(0, at - 2)] for at in range(5)]
    assert len(set(begins)) == 5
    assert [told["staleness"] for told, _ in reports] == [0, 1, 2, 2, 2]


def test_what_older_weights_wrote_is_corrected(tiny_model_dir, tmp_path):
    shared = {"max_steps": 3, "learning_rate": 0.1}
    config = make_config(tmp_path, tiny_model_dir, lag=2, **shared)
    corrected, reports = learn(config, steps=3)
    raw, _ = learn(replace(config, importance_sampling_correction=False), steps=3)
    gaps = [sums["sampling/sampling_logp_difference/mean"] for _, (sums,) in reports]
    assert gaps[2] > 100 * gaps[0]
    assert any(not np.array_equal(corrected[name], raw[name]) for name in raw)
    unlagged, _ = learn(make_config(tmp_path, tiny_model_dir, **shared), steps=3)
    assert any(not np.array_equal(corrected[name], unlagged[name]) for name in raw)


def test_a_run_says_that_nothing_corrects(tiny_model_dir, tmp_path):
    run = train(tmp_path, tiny_model_dir, lag=1, importance_sampling_correction=False).run_dir
    notes = [
        event.data["text"] for event in read_events(run / "events.jsonl") if event.kind == "note"
    ]
    assert any("importance_sampling_correction is off" in text for text in notes)


def test_more_steps_go_on_from_a_run_that_was_through(tiny_model_dir, tmp_path):
    run = train(tmp_path, tiny_model_dir, lag=2, max_steps=3).run_dir
    assert resume(run, changes={"max_steps": 6}).steps == 6


def test_a_checkpoint_holds_what_is_not_learned_yet(tiny_model_dir, tmp_path):
    """Also the step that is being learned: an error may end it before its first update."""
    _, algorithm = algorithm_of(make_config(tmp_path, tiny_model_dir, lag=2, max_steps=4))
    next(iter(algorithm.updates(0)))
    assert set(algorithm.memory().arrays) == {f"flight.{step}" for step in range(3)}
    algorithm.finish(0)
    assert set(algorithm.memory().arrays) == {"flight.1", "flight.2"}


class Unsure(OneTurn):
    """A player that does not know how likely its tokens were."""

    def play(self, prompts, n, sampling):
        played = super().play(prompts, n, sampling)
        return [replace(one, logps=np.full(len(one.ids), np.nan)) for one in played]


def test_a_player_without_log_probs_is_refused(tiny_model_dir, tmp_path):
    from chuk_lib.training import train as train_job

    config = make_config(tmp_path, tiny_model_dir, lag=1)
    with pytest.raises(TrainingError, match="no log-probs"):
        train_job("grpo", config, make_player=Unsure)


def test_tools_have_no_lag():
    with pytest.raises(ConfigError, match="played in the step"):
        GRPOConfig(lag=1, tools=("calculator.py:calculate",)).check()


def test_the_preset_leaves_the_correction_on():
    typed = resolve(GRPOConfig, [Layer("--set", {"lag": 1})])
    assert with_preset(typed, "trl").value.importance_sampling_correction
    assert not with_preset(
        resolve_settings(GRPOConfig, []), "trl"
    ).value.importance_sampling_correction


def test_a_lag_has_defaults_of_its_own_that_can_be_changed():
    fresh, lagged = GRPOConfig(), GRPOConfig(lag=1)
    assert (fresh.chosen_mode, fresh.chosen_threshold) == ("sequence_mask", None)
    assert (lagged.chosen_mode, lagged.chosen_threshold) == ("token_truncate", 0.1)
    own = replace(lagged, importance_sampling_mode="token_mask", off_policy_mask_threshold=1.0)
    assert (own.chosen_mode, own.chosen_threshold) == ("token_mask", 1.0)


@pytest.mark.parametrize(
    "change",
    [{"importance_sampling_mode": "sequence_mask"}, {"off_policy_mask_threshold": 1e9}],
    ids=lambda change: next(iter(change)),
)
def test_the_defaults_of_a_lag_change_what_is_learned(tiny_model_dir, tmp_path, change):
    config = make_config(tmp_path, tiny_model_dir, lag=2, max_steps=3, learning_rate=0.1)
    usual, _ = learn(config, steps=3)
    other, _ = learn(replace(config, **change), steps=3)
    assert any(not np.array_equal(usual[name], other[name]) for name in usual)
