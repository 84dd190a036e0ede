"""What a setting may name is a table: every choice gives another result, and what has no row
raises."""

from itertools import combinations

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ConfigError
from chuk_lib.training import CPOConfig, DPOConfig, KTOConfig, SFTConfig
from chuk_lib.training.config import refuse_idle_settings
from chuk_lib.training.losses.policy_gradient import importance_weights
from chuk_lib.training.losses.policy_kinds import IMPORTANCE_MODES, LOSSES
from chuk_lib.training.losses.preference import preference_loss, unpaired_loss
from chuk_lib.training.losses.preference_kinds import DIVERGENCES, DPO_LOSSES, divergence
from chuk_lib.training.losses.reference_free import cpo_loss
from chuk_lib.training.online.estimators import ESTIMATORS
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.optimizer_kinds import OPTIMIZERS
from chuk_lib.training.optimizers import build_optimizer
from chuk_lib.training.preference.config import CPO_LOSSES, KTO_LOSSES
from chuk_lib.training.run import plan_of
from chuk_lib.training.schedulers import SCHEDULES, Schedule
from chuk_lib.training.tables import pick
from chuk_lib.training.utils.advantages import Scored, group_relative
from tests.training.conftest import weights_of
from tests.training.grpo_runs import learn
from tests.training.grpo_runs import make_config as make_grpo_config
from tests.training.preference_runs import other_model, train_on


def assert_all_differ(results):
    """No two choices may give the same arrays."""
    for one, other in combinations(results, 2):
        assert any(
            not np.array_equal(results[one][key], results[other][key]) for key in results[one]
        ), (one, other)


def test_every_optimizer_learns_something_of_its_own(train):
    decay = {
        name: {"weight_decay": 0.1} if "weight_decay" in row.reads else {}
        for name, row in OPTIMIZERS.items()
    }
    runs = {
        name: train(name, optimizer=name, max_steps=3, **decay[name]).run_dir for name in OPTIMIZERS
    }
    assert_all_differ({name: weights_of(run) for name, run in runs.items()})


def test_every_schedule_has_rates_of_its_own():
    found = {}
    for name, row in SCHEDULES.items():
        given = {
            "warmup_steps": 4,
            "num_cycles": 2.0,
            "min_lr_rate": 0.1,
            "lr_power": 2.0,
            "num_decay_steps": 5,
        }
        own = {key: value for key, value in given.items() if key in row.reads}
        config = SFTConfig(lr_scheduler_type=name, learning_rate=1e-3, **own)
        refuse_idle_settings(config)
        plan = plan_of(config, 20)
        found[name] = {"rates": [plan.learning_rate(step, 0) for step in range(20)]}
    assert_all_differ(found)


@pytest.fixture(scope="module")
def grpo(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")

    def weights(**changes):
        return learn(make_grpo_config(folder, tiny_model_dir, **changes))[0]

    return weights


def test_every_loss_of_grpo_learns_something_of_its_own(grpo):
    """With rows of uneven length, two updates of two a pass, and completions that count for
    nothing: what the sums are divided by differs too."""
    shared = {
        "num_iterations": 2,
        "steps_per_generation": 2,
        "learning_rate": 3e-2,
        "max_grad_norm": 0.0,
        "stop": ("e",),
        "mask_truncated_completions": True,
    }
    assert_all_differ({name: grpo(loss_type=name, **shared) for name in LOSSES})


def test_every_advantage_estimator_learns_something_of_its_own(grpo):
    shared = {"loss_type": "grpo", "beta": 0.0, "max_grad_norm": 0.0}
    assert_all_differ({name: grpo(advantage_estimator=name, **shared) for name in ESTIMATORS})


def of_preferences(
    algorithm, model, folder, names, key="loss_type", wrap=lambda name: name, **shared
):
    """Weights of short runs by the value of a setting."""
    found = {}
    for name in names:
        more = {"label_smoothing": 0.1} if name in ("exo_pair", "robust") else {}
        result = train_on(
            algorithm,
            model,
            folder,
            f"{algorithm}-{name}",
            max_steps=3,
            **{key: wrap(name)},
            **more,
            **shared,
        )
        found[name] = weights_of(result.run_dir)
    return found


def test_every_preference_loss_and_divergence_learns_something_of_its_own(tiny_model_dir, tmp_path):
    assert_all_differ(
        of_preferences(
            "dpo",
            tiny_model_dir,
            tmp_path,
            DPO_LOSSES,
            wrap=lambda name: (name,),
            batch_size=16,
            learning_rate=2e-2,
        )
    )
    assert_all_differ(of_preferences("cpo", tiny_model_dir, tmp_path, CPO_LOSSES[:4]))
    assert_all_differ(
        of_preferences(
            "kto", tiny_model_dir, tmp_path, KTO_LOSSES, ref_model=str(other_model(tmp_path))
        )
    )
    assert_all_differ(
        of_preferences("dpo", tiny_model_dir, tmp_path, DIVERGENCES, "f_divergence_type")
    )


ONE = mx.ones((1,))
UNKNOWN = {
    "optimizer": lambda name: build_optimizer(SFTConfig(optimizer=name), None),
    "lr_scheduler_type": lambda name: Schedule(name).factor(3),
    "loss_type": lambda name: GRPOConfig(loss_type=name).loss_kind,
    "advantage_estimator": lambda name: GRPOConfig(advantage_estimator=name).estimator,
    "importance_sampling_mode": lambda name: importance_weights(ONE, ONE, ONE, name, None, None),
    "scale_rewards": lambda name: group_relative(Scored(np.ones(2), 2), name),
    "f_divergence_type": lambda name: divergence(ONE, DPOConfig(f_divergence_type=name)),
    "loss_type of dpo": lambda name: preference_loss(_Ratios(), DPOConfig(loss_type=(name,))),
    "loss_type of kto": lambda name: unpaired_loss(ONE, ONE, ONE, KTOConfig(loss_type=name)),
    "loss_type of cpo": lambda name: cpo_loss(ONE, ONE, CPOConfig(loss_type=name)),
}


class _Ratios:
    chosen = ONE


@pytest.mark.parametrize("setting", UNKNOWN)
def test_what_has_no_row_raises(setting):
    with pytest.raises(ConfigError, match=f"unknown {setting.split()[0]} `sophia`"):
        UNKNOWN[setting]("sophia")


def test_the_nearest_row_is_named():
    with pytest.raises(ConfigError) as raised:
        pick(OPTIMIZERS, "adafacto", "optimizer")
    assert raised.value.hint == "did you mean `adafactor`?"


CHANGED = {
    "momentum": 0.5,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 1e-3,
    "weight_decay": 0.1,
    "warmup_steps": 3,
    "warmup_ratio": 0.1,
    "num_cycles": 3.0,
    "min_lr_rate": 0.1,
    "lr_power": 2.0,
    "num_decay_steps": 3,
    "epsilon": 0.1,
    "epsilon_high": 0.5,
    "delta": 2.0,
    "sapo_temperature_pos": 3.0,
    "sapo_temperature_neg": 3.0,
    "vespo_k_pos": 1.0,
    "vespo_lambda_pos": 1.0,
    "vespo_k_neg": 1.0,
    "vespo_lambda_neg": 1.0,
    "scale_rewards": "none",
    "multi_objective_aggregation": "normalize_then_sum",
    "normalize_advantages": True,
    "reward_clip_range": (-1.0, 1.0),
}
TABLES = [
    (SFTConfig, "optimizer", OPTIMIZERS),
    (SFTConfig, "lr_scheduler_type", SCHEDULES),
    (GRPOConfig, "loss_type", LOSSES),
    (GRPOConfig, "advantage_estimator", ESTIMATORS),
]


@pytest.mark.parametrize(
    ("config", "setting", "table"), TABLES, ids=[setting for _, setting, _ in TABLES]
)
def test_a_setting_that_a_row_does_not_read_is_refused_beside_it(config, setting, table):
    named = {name for row in table.values() for name in row.reads}
    for choice, row in table.items():
        for name in sorted(named):
            made = config(**{setting: choice, name: CHANGED[name]})
            if name in row.reads:
                refuse_idle_settings(made)
            else:
                with pytest.raises(ConfigError, match=f"`{name}` does nothing with"):
                    refuse_idle_settings(made)


def test_modes_of_importance_sampling_differ():
    old, sampled, mask = mx.array([[0.0, 0.5, -0.5]]), mx.zeros((1, 3)), mx.ones((1, 3))
    found = {
        mode: {
            "weights": np.broadcast_to(
                np.array(importance_weights(old + 0.2, sampled, mask, mode, 0.9, 1.5)), (1, 3)
            )
        }
        for mode in IMPORTANCE_MODES
    }
    assert_all_differ(found)
