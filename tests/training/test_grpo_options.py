"""Every setting of GRPO does something."""

import json

import numpy as np
import pytest

from chuk_cli.settings import resolve_settings
from chuk_cli.train.grpo import with_preset
from chuk_lib.config.settings import Layer, resolve, settings_of
from chuk_lib.errors import ConfigError, TrainingError
from chuk_lib.models.create import create_model
from chuk_lib.training.completions_log import read_completions
from chuk_lib.training.config import TrainerConfig, refuse_idle_settings
from chuk_lib.training.identity import fingerprint_settings
from chuk_lib.training.online.grpo_config import GRPOConfig, trl_values
from tests.conftest import ROOT
from tests.training.conftest import write_rows
from tests.training.grpo_runs import learn, make_config, prompt_rows, train

TWICE = {"num_iterations": 2, "learning_rate": 3e-2}
SHARP = TWICE | {"epsilon": 0.01}
KL = {"beta": 0.5}
CHANGES_WEIGHTS = {
    "batch_size": ({}, {"batch_size": 4}),
    "learning_rate": ({}, {"learning_rate": 1e-4}),
    "rewards": ({}, {"rewards": ("even", "low")}),
    "rewards weight": ({"rewards": ("even", "low")}, {"rewards": ("even", "low=0.1")}),
    "shuffle": ({}, {"shuffle": False}),
    "max_completion_length": ({}, {"max_completion_length": 5}),
    "num_generations": ({}, {"num_generations": 2}),
    "temperature": ({}, {"temperature": 0.6}),
    "top_p": ({}, {"top_p": 0.5}),
    "top_k": ({}, {"top_k": 5}),
    "min_p": ({}, {"min_p": 0.5}),
    "repetition_penalty": ({}, {"repetition_penalty": 2.0}),
    "gradient_accumulation_steps": ({}, {"gradient_accumulation_steps": 2}),
    "steps_per_generation": ({}, {"steps_per_generation": 2}),
    "generation_batch_size": ({}, {"generation_batch_size": 16}),
    "num_iterations": ({}, {"num_iterations": 2}),
    "advantage_estimator": ({"loss_type": "grpo"}, {"advantage_estimator": "reinforce++"}),
    "advantage_estimator rloo": (
        {"loss_type": "grpo", "beta": 0.0},
        {"advantage_estimator": "rloo"},
    ),
    "advantage_estimator baseline": ({}, {"advantage_estimator": "reinforce++-baseline"}),
    "scale_rewards": ({}, {"scale_rewards": "none", "max_grad_norm": 0.0}),
    "scale_rewards batch": ({}, {"scale_rewards": "batch", "max_grad_norm": 0.0}),
    "multi_objective_aggregation": (
        {"rewards": ("even", "low")},
        {"multi_objective_aggregation": "normalize_then_sum"},
    ),
    "normalize_advantages": (
        {"advantage_estimator": "rloo", "max_grad_norm": 0.0},
        {"normalize_advantages": True},
    ),
    "reward_clip_range": (
        {"advantage_estimator": "rloo", "max_grad_norm": 0.0},
        {"reward_clip_range": (0.4, 0.6)},
    ),
    **{
        f"loss_type {kind}": (TWICE | {"max_grad_norm": 0.0}, {"loss_type": kind})
        for kind in ("grpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo", "gmpo", "rloo")
    },
    "loss_type bnpo": (
        TWICE | {"mask_truncated_completions": True, "steps_per_generation": 2, "stop": ("e",)},
        {"loss_type": "bnpo"},
    ),
    "importance_sampling_level": (
        TWICE | {"max_grad_norm": 0.0},
        {"importance_sampling_level": "sequence"},
    ),
    "epsilon": (TWICE, {"epsilon": 0.01}),
    "epsilon_high": (SHARP, {"epsilon_high": 0.5}),
    "delta": (TWICE | {"learning_rate": 0.3}, {"delta": 1.001}),
    "beta": ({"num_iterations": 2}, {"beta": 0.5}),
    "beta in the reward": (
        {"advantage_estimator": "reinforce++", "num_iterations": 2},
        {"beta": 0.5},
    ),
    "use_bias_correction_kl": (KL | TWICE, {"use_bias_correction_kl": False}),
    "sync_ref_model": (
        KL | {"num_iterations": 2},
        {"sync_ref_model": True, "ref_model_sync_steps": 1},
    ),
    "ref_model_mixup_alpha": (
        KL | {"num_iterations": 2, "sync_ref_model": True, "ref_model_sync_steps": 1},
        {"ref_model_mixup_alpha": 0.1},
    ),
    "ref_model_sync_steps": (
        KL | {"num_iterations": 2, "sync_ref_model": True},
        {"ref_model_sync_steps": 1},
    ),
    "entropy_coef": ({}, {"entropy_coef": 0.5}),
    "use_adaptive_entropy": ({}, {"use_adaptive_entropy": True, "entropy_target": 100.0}),
    "entropy_target": (
        {"use_adaptive_entropy": True, "entropy_coef": 0.1},
        {"entropy_target": 100.0},
    ),
    "entropy_coef_delta": (
        {"use_adaptive_entropy": True, "entropy_target": 100.0},
        {"entropy_coef_delta": 0.5},
    ),
    "entropy_coef_min": (
        {"use_adaptive_entropy": True, "entropy_target": 100.0},
        {"entropy_coef_min": 0.5},
    ),
    "entropy_coef_max": (
        {"use_adaptive_entropy": True, "entropy_target": 100.0, "entropy_coef_delta": 0.5},
        {"entropy_coef_max": 0.1},
    ),
    "top_entropy_quantile": ({}, {"top_entropy_quantile": 0.3}),
    "mask_truncated_completions": (
        {"stop": ("e",), "max_completion_length": 12},
        {"mask_truncated_completions": True},
    ),
    "dynamic_sampling": ({"rewards": ("rare",), "seed": 3}, {"dynamic_sampling": 3}),
    "lag": ({}, {"lag": 1}),
    "off_policy_mask_threshold": (
        TWICE | {"learning_rate": 0.1},
        {"off_policy_mask_threshold": 1e-4},
    ),
    "importance_sampling_correction": (
        {"max_grad_norm": 0.0},
        {"importance_sampling_correction": False},
    ),
    "importance_sampling_mode": (
        {"importance_sampling_clip_max": 1.0},
        {"importance_sampling_mode": "token_truncate"},
    ),
    "importance_sampling_clip_max": ({}, {"importance_sampling_clip_max": 0.999999}),
    "importance_sampling_clip_min": ({}, {"importance_sampling_clip_min": 1.0}),
    "sapo_temperature_pos": ({"loss_type": "sapo"} | TWICE, {"sapo_temperature_pos": 3.0}),
    "sapo_temperature_neg": ({"loss_type": "sapo"} | TWICE, {"sapo_temperature_neg": 3.0}),
    **{
        f"{name}": ({"loss_type": "vespo"} | TWICE, {name: 0.5})
        for name in ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg")
    },
    "disable_dropout": ({"use_lora": True, "lora_dropout": 0.5}, {"disable_dropout": True}),
    "seed": ({}, {"seed": 7}),
}


@pytest.fixture(scope="module")
def learned(tiny_model_dir, tmp_path_factory):
    """Weights after two steps with changed settings; each set of changes is run once."""
    folder, found = tmp_path_factory.mktemp("options"), {}

    def weights(changes):
        key = repr(sorted(changes.items()))
        if key not in found:
            found[key] = learn(make_config(folder, tiny_model_dir, **changes))[0]
        return found[key]

    return weights


@pytest.mark.parametrize(("shared", "change"), CHANGES_WEIGHTS.values(), ids=CHANGES_WEIGHTS)
def test_the_setting_changes_what_is_learned(cpu, learned, shared, change):
    before, after = learned(shared), learned(shared | change)
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_no_pair_of_these_settings_is_refused(tiny_model_dir, tmp_path):
    for shared, change in CHANGES_WEIGHTS.values():
        config = make_config(tmp_path, tiny_model_dir, **(shared | change))
        refuse_idle_settings(config)
        config.check()


def test_a_reward_that_fails_stops_the_run_or_scores_nothing(tiny_model_dir, tmp_path):
    with pytest.raises(TrainingError, match="out of ideas"):
        train(tmp_path, tiny_model_dir, "raises", rewards=("broken", "even"))
    result = train(
        tmp_path, tiny_model_dir, "goes_on", rewards=("broken", "even"), reward_errors="none"
    )
    rows = list(read_completions(result.run_dir / "completions.jsonl"))
    assert {row["rewards"]["broken"] for row in rows} == {None}


def test_max_prompt_length_leaves_prompts_out(tiny_model_dir, tmp_path):
    rows = [*prompt_rows(6), {"prompt": "a very long prompt " * 9, "answer": "x"}]
    data = str(write_rows(tmp_path / "long.jsonl", rows))
    result = train(tmp_path, tiny_model_dir, data=data, max_prompt_length=40, max_steps=1)
    started = json.loads((result.run_dir / "events.jsonl").read_text().splitlines()[0])
    assert (started["data"]["report"]["kept"], started["data"]["report"]["dropped"]) == (6, 1)


def test_stop_ends_completions(tiny_model_dir, tmp_path):
    letters = tuple("abcdefghijklmnopqrstuvwxyz")
    plain = train(tmp_path, tiny_model_dir, "plain", max_steps=1)
    stopped = train(tmp_path, tiny_model_dir, "stopped", max_steps=1, stop=letters)
    reasons = {
        row["finish_reason"] for row in read_completions(stopped.run_dir / "completions.jsonl")
    }
    assert "stop" in reasons
    assert stopped.metrics["completions/mean_length"] < plain.metrics["completions/mean_length"]


def test_completions_fit_a_schema(tiny_model_dir, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [12, 345, true]}')
    run = train(tmp_path, tiny_model_dir, "fitting", max_steps=2, schema=str(schema))
    rows = read_completions(run.run_dir / "completions.jsonl")
    assert {row["completion"] for row in rows} <= {"12", "345", "true"}
    config = make_config(tmp_path, tiny_model_dir, schema=str(schema))
    before = fingerprint_settings(config)["schema"]
    schema.write_text('{"enum": [12, 345, false]}')
    assert fingerprint_settings(config)["schema"] != before  # a run does not go on with another
    schema.write_text('{"not": {}}')
    with pytest.raises(ConfigError, match="`not`"):
        train(tmp_path, tiny_model_dir, "other", max_steps=1, schema=str(schema))


def test_rollout_tokens_change_the_batches_and_nothing_else(tiny_model_dir, tmp_path):
    (wide, first), (narrow, second) = (
        learn(make_config(tmp_path, tiny_model_dir, rollout_tokens=tokens), steps=1)
        for tokens in (None, 30)
    )
    assert [row["completion"] for row in first[0][0].completions] == [
        row["completion"] for row in second[0][0].completions
    ]
    for name in wide:
        np.testing.assert_allclose(wide[name], narrow[name], atol=3e-4)


def test_eval_num_generations_samples(tiny_model_dir, tmp_path):
    data = str(write_rows(tmp_path / "valid.jsonl", prompt_rows(3)))
    greedy = train(tmp_path, tiny_model_dir, "greedy", eval_data=data, max_steps=1)
    sampled = train(
        tmp_path, tiny_model_dir, "sampled", eval_data=data, max_steps=1, eval_num_generations=3
    )
    assert greedy.metrics["eval_reward"] != sampled.metrics["eval_reward"]


def test_another_reference(tiny_model_dir, tmp_path):
    other = create_model("nano", tmp_path / "other", seed=5)
    config = make_config(tmp_path, tiny_model_dir, beta=0.5)
    with_other = make_config(tmp_path, tiny_model_dir, beta=0.5, ref_model=str(other))
    (own, reports), (moved, more) = learn(config), learn(with_other)
    assert any(not np.array_equal(own[name], moved[name]) for name in own)
    assert more[0][1][0]["kl"] > reports[0][1][0]["kl"] == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_generations": 1}, "num_generations is 1"),
        ({"num_generations": 3}, "does not divide|which num_generations"),
        ({"delta": 2.0, "loss_type": "sapo"}, "`delta` does nothing"),
        ({"entropy_target": 1.0}, "`entropy_target` does nothing"),
        ({"ref_model": "x"}, "`ref_model` does nothing"),
        ({"vespo_k_pos": 1.0}, "`vespo_k_pos` does nothing"),
        ({"normalize_advantages": True}, "`normalize_advantages` does nothing"),
        ({"steps_per_generation": 2, "generation_batch_size": 16}, "say the same"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, "do not divide"),
        ({"advantage_estimator": "rloo", "reward_clip_range": (1.0,)}, "two numbers"),
        (
            {"advantage_estimator": "reinforce++", "beta": 0.1, "loss_type": "vespo"},
            "advantage of its own",
        ),
        ({"rewards": ()}, "no reward given"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tiny_model_dir, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, tiny_model_dir, "refused", **changes)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "training_config").glob("grpo*.yaml")), ids=lambda path: path.name
)
def test_shipped_settings_go_together(path):
    config = resolve_settings(GRPOConfig, [path]).value
    refuse_idle_settings(config)
    config.check()


def test_the_preset_is_trl_s_defaults():
    values = trl_values(uses_lora=False)
    assert (values["learning_rate"], values["max_completion_length"], values["seed"]) == (
        1e-6,
        512,
        42,
    )
    assert set(trl_values(uses_lora=True)) - set(values) == {
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
    }
    assert set(values) <= set(settings_of(GRPOConfig))


def test_the_preset_fills_in_what_nobody_gave():
    given = resolve(GRPOConfig, [Layer("--seed", {"seed": 7})])
    settings = with_preset(given, "trl")
    assert (settings.value.seed, settings.origins["seed"]) == (7, "--seed")
    assert (settings.value.max_completion_length, settings.origins["log_interval"]) == (
        512,
        "--preset trl",
    )
    assert with_preset(given, None) is given
    with pytest.raises(ConfigError, match="no preset `trll`"):
        with_preset(given, "trll")


ELSEWHERE = {
    "schema",
    "reward_errors",
    "reward_weights",  # tests/cli/test_spellings.py
    "max_prompt_length",
    "stop",
    "rollout_tokens",
    "eval_num_generations",
    "ref_model",
    # in tests/env/test_play.py
    "environment",
    "tools",
    "max_turns",
    "max_tool_seconds",
    "max_tool_tokens",
    # in tests/env/test_mcp_training.py
    "mcp",
    "mcp_tools",
    "mcp_connect_seconds",
    "mcp_record",
    # in tests/distributed
    "rollout_workers",
    "rollout_parts",
    "max_staleness",
    "ray",
}


def test_every_setting_has_a_test():
    tested = {name.split()[0] for name in CHANGES_WEIGHTS} | ELSEWHERE
    assert set(settings_of(GRPOConfig)) - set(settings_of(TrainerConfig)) - tested == set()
