"""No dead options in DPO, KTO, ORPO, CPO and reward models: every setting of their own changes
something."""

import numpy as np
import pytest

from chuk_lib.config.settings import settings_of
from chuk_lib.errors import ConfigError
from chuk_lib.training.config import TrainerConfig
from tests.training.conftest import weights_of
from tests.training.preference_runs import CONFIGS, events_of, other_model, train_on

OTHER = "another model"  # stands for the folder of one
SYNC = {"sync_ref_model": True, "ref_model_sync_steps": 2}
ALPHA = {"f_divergence_type": "alpha_divergence"}

# algorithm -> setting -> (what both runs share, what the second run changes)
CHANGES = {
    "dpo": {
        "beta": ({}, {"beta": 0.5}),
        "loss_type": ({}, {"loss_type": ("hinge", "sft")}),
        "loss_weights": ({"loss_type": ("sigmoid", "sft")}, {"loss_weights": (1.0, 0.1)}),
        "label_smoothing": ({"loss_type": ("robust",)}, {"label_smoothing": 0.3}),
        "f_divergence_type": ({}, {"f_divergence_type": "js_divergence"}),
        "f_alpha_divergence_coef": (ALPHA, {"f_alpha_divergence_coef": 2.0}),
        "ld_alpha": ({}, {"ld_alpha": 0.2}),
        "use_weighting": ({}, {"use_weighting": True}),
        "discopop_tau": ({"loss_type": ("discopop",)}, {"discopop_tau": 0.5}),
        "disable_dropout": ({"use_lora": True, "lora_dropout": 0.5}, {"disable_dropout": False}),
        "ref_model": ({}, {"ref_model": OTHER}),
        "sync_ref_model": ({}, SYNC),
        "ref_model_mixup_alpha": (SYNC, {"ref_model_mixup_alpha": 1.0}),
        "ref_model_sync_steps": (SYNC, {"ref_model_sync_steps": 4}),
        "max_length": ({}, {"max_length": 12}),
        "group_by_length": ({"group_by_length": False}, {"group_by_length": True}),
        "shuffle": ({}, {"shuffle": False}),
        "learning_rate": ({"learning_rate": None}, {"learning_rate": 1e-3}),
    },
    "kto": {
        "beta": ({}, {"beta": 0.5}),
        "loss_type": ({"ref_model": OTHER}, {"loss_type": "apo_zero_unpaired"}),
        "desirable_weight": ({}, {"desirable_weight": 3.0}),
        "disable_dropout": ({"use_lora": True, "lora_dropout": 0.5}, {"disable_dropout": False}),
        "undesirable_weight": ({}, {"undesirable_weight": 0.2}),
    },
    "orpo": {
        "beta": ({}, {"beta": 1.0}),
        "disable_dropout": ({"use_lora": True, "lora_dropout": 0.5}, {"disable_dropout": False}),
    },
    "cpo": {
        "beta": ({}, {"beta": 0.5}),
        "loss_type": ({}, {"loss_type": "ipo"}),
        "label_smoothing": ({}, {"label_smoothing": 0.2}),
        "disable_dropout": ({"use_lora": True, "lora_dropout": 0.5}, {"disable_dropout": False}),
        "cpo_alpha": ({}, {"cpo_alpha": 0.1}),
        "simpo_gamma": ({"loss_type": "simpo"}, {"simpo_gamma": 2.0}),
        "alpha": ({"loss_type": "simpo"}, {"alpha": 0.5}),
    },
    "reward": {
        "disable_dropout": ({"use_lora": True, "lora_dropout": 0.5}, {"disable_dropout": False}),
        "center_rewards_coefficient": ({}, {"center_rewards_coefficient": 0.5}),
        "learning_rate": ({"learning_rate": None}, {"learning_rate": 1e-3}),
    },
}
CASES = [
    (name, setting, *case) for name, cases in CHANGES.items() for setting, case in cases.items()
]


@pytest.fixture(scope="module")
def learned(tiny_model_dir, tmp_path_factory):
    """What a run of four steps makes of these settings; each is run once."""
    folder = tmp_path_factory.mktemp("options")
    other = str(other_model(folder))
    known = {}

    def run(algorithm, settings):
        key = (algorithm, str(sorted(settings.items())))
        if key not in known:
            given = {name: other if value == OTHER else value for name, value in settings.items()}
            made = train_on(
                algorithm, tiny_model_dir, folder, f"run-{len(known)}", **{"max_steps": 4} | given
            )
            known[key] = arrays_of(made)
        return known[key]

    return run


@pytest.mark.parametrize(
    ("algorithm", "name", "shared", "change"), CASES, ids=[f"{c[0]} {c[1]}" for c in CASES]
)
def test_the_setting_changes_what_is_learned(algorithm, name, shared, change, learned):
    before, after = learned(algorithm, shared), learned(algorithm, shared | change)
    assert any(not np.array_equal(before[key], after[key]) for key in before)


def arrays_of(result):
    """What was trained, from the files of the last checkpoint."""
    import mlx.core as mx

    (path,) = (
        path
        for path in result.checkpoint.glob("*.safetensors")
        if path.stem in ("model", "adapters")
    )
    weights = mx.load(str(path))
    return {name: np.array(value) for name, value in weights.items()}


def test_precomputing_changes_where_numbers_come_from_and_no_number(tiny_model_dir, tmp_path):
    live = train_on("dpo", tiny_model_dir, tmp_path, "live")
    kept = {"precompute_ref_log_probs": True, "ref_log_probs_cache": str(tmp_path / "here")}
    table = train_on("dpo", tiny_model_dir, tmp_path, "table", **kept)
    small = train_on(
        "dpo",
        tiny_model_dir,
        tmp_path,
        "small",
        **kept
        | {
            "precompute_ref_batch_size": 1,
            "ref_log_probs_cache": str(tmp_path / "there"),
        },
    )
    before, after = weights_of(live.run_dir), weights_of(table.run_dir)
    for name in before:
        np.testing.assert_allclose(after[name], before[name], atol=2e-4)
    names = [
        sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("here", "there")
    ]
    assert names[0] == names[1]
    assert len(names[0]) == 2
    assert table.metrics["eval_loss"] == pytest.approx(live.metrics["eval_loss"], rel=1e-3)
    assert small.metrics["loss"] == pytest.approx(table.metrics["loss"], rel=1e-4)


def test_padding_to_a_multiple_changes_shapes_but_no_number(tiny_model_dir, tmp_path):
    plain = train_on("dpo", tiny_model_dir, tmp_path, "plain", max_steps=2, shuffle=False)
    more = {"pad_to_multiple_of": 64, "shuffle": False}
    padded = train_on("dpo", tiny_model_dir, tmp_path, "padded", max_steps=2, **more)
    assert padded.metrics["padding"] > plain.metrics["padding"]
    assert padded.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-3)


ELSEWHERE = {
    "precompute_ref_log_probs",
    "precompute_ref_batch_size",
    "ref_log_probs_cache",
    "pad_to_multiple_of",
}


def test_every_setting_of_their_own_has_a_test():
    shared = set(settings_of(TrainerConfig)) - {"learning_rate"}
    common = set(CHANGES["dpo"]) | ELSEWHERE
    for algorithm, config in CONFIGS.items():
        own = set(settings_of(config)) - shared
        special = {
            name
            for name in own
            if name not in common or name in ("beta", "loss_type", "disable_dropout")
        }
        assert special <= set(CHANGES[algorithm]), algorithm


REFUSED = {
    "WPO of sorted pairs": (
        "dpo",
        {"loss_type": ("sigmoid", "aot"), "use_weighting": True},
        "loss_type=aot sorts",
    ),
    "WPO of sorted ratios": (
        "dpo",
        {"loss_type": ("aot_unpaired",), "use_weighting": True},
        "aot_unpaired sorts",
    ),
    "an unknown loss": ("dpo", {"loss_type": ("sigmod",)}, "no loss_type `sigmod`"),
    "no loss": ("dpo", {"loss_type": ()}, "loss_type is empty"),
    "weights for other losses": ("dpo", {"loss_weights": (1.0, 2.0)}, "2 weights for 1 losses"),
    "exo without smoothing": ("dpo", {"loss_type": ("exo_pair",)}, "needs label smoothing above 0"),
    "robust with half": (
        "dpo",
        {"loss_type": ("robust",), "label_smoothing": 0.5},
        "smoothing below 0.5",
    ),
    "smoothing of sigmoid": ("dpo", {"label_smoothing": 0.1}, "`label_smoothing` does nothing"),
    "divergence of apo": (
        "dpo",
        {"loss_type": ("apo_zero",), "f_divergence_type": "js_divergence"},
        "does not fit loss_type=apo_zero",
    ),
    "a moving table": (
        "dpo",
        {"sync_ref_model": True, "precompute_ref_log_probs": True},
        "moves the reference",
    ),
    "mixup alone": ("dpo", {"ref_model_mixup_alpha": 0.5}, "`ref_model_mixup_alpha` does nothing"),
    "tau alone": ("dpo", {"discopop_tau": 0.5}, "`discopop_tau` does nothing"),
    "order alone": (
        "dpo",
        {"f_alpha_divergence_coef": 2.0},
        "`f_alpha_divergence_coef` does nothing",
    ),
    "one row of kto": ("kto", {"batch_size": 1}, "one row in it"),
    "a table for kto": ("kto", {"precompute_ref_log_probs": True}, "its KL asks for other rows"),
    "gamma of cpo": ("cpo", {"simpo_gamma": 1.0}, "`simpo_gamma` does nothing"),
    "smoothing of hinge": (
        "cpo",
        {"loss_type": "hinge", "label_smoothing": 0.1},
        "`label_smoothing` does nothing",
    ),
    "beta of 0": ("orpo", {"beta": 0.0}, "should be above 0"),
}


@pytest.mark.parametrize(("algorithm", "changes", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_that_make_no_sense_are_refused_and_nothing_is_written(
    algorithm, changes, message, tiny_model_dir, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        train_on(algorithm, tiny_model_dir, tmp_path, "refused", **changes)
    assert not (tmp_path / "refused").exists()


def test_metrics_are_trl_s_by_name(tiny_model_dir, tmp_path):
    names = {
        f"{kind}/{part}"
        for kind in ("rewards", "logps", "logits")
        for part in ("chosen", "rejected")
    } | {"rewards/margins", "entropy", "num_tokens", "learning_rate", "grad_norm", "loss", "epoch"}
    own = {
        "dpo": {"rewards/accuracies", "mean_token_accuracy"},
        "kto": {"kl"},
        "orpo": {"nll_loss", "log_odds_ratio", "log_odds_chosen", "rewards/accuracies"},
        "cpo": {"nll_loss", "rewards/accuracies"},
    }
    for algorithm, more in own.items():
        run = train_on(algorithm, tiny_model_dir, tmp_path, algorithm, max_steps=1).run_dir
        assert names | more <= set(events_of(run, "step")[-1]), algorithm
        evaluated = events_of(run, "eval")[-1]
        assert {"eval_loss", "eval_rewards/margins", *(f"eval_{name}" for name in more)} <= set(
            evaluated
        )
    run = train_on("reward", tiny_model_dir, tmp_path, "reward", max_steps=1).run_dir
    assert {"min_reward", "mean_reward", "max_reward", "accuracy", "margin"} <= set(
        events_of(run, "step")[-1]
    )
    assert {"eval_loss", "eval_accuracy", "eval_margin"} <= set(events_of(run, "eval")[-1])
