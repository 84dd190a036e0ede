"""PPO runs: exact under micro-batches and resume, one copy of the model with adapters, and it
learns."""

import json
import os
import signal
import subprocess
import sys
import time

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib.errors import ConfigError, DataError
from chuk_lib.events import read_events
from chuk_lib.models import create_model, load_model
from chuk_lib.training import SFTConfig, resume, train_sft
from chuk_lib.training.checkpoints import list_checkpoints, load_memory, verify_checkpoint
from chuk_lib.training.completions_log import read_completions
from chuk_lib.training.jobs import train as start
from chuk_lib.training.language_job import prepare_model
from chuk_lib.training.loading import load_policy
from chuk_lib.training.measuring.measure import measure
from chuk_lib.training.online.ppo_config import PPOConfig
from chuk_lib.training.online.ppo_trainer import make_actor_critic
from tests.conftest import chuk_environment
from tests.training.conftest import assert_same_bits, weights_of, write_rows
from tests.training.ppo_runs import PPORuns

LORA = {"use_lora": True, "lora_target_modules": ("all-linear",)}


@pytest.fixture
def ppo(tmp_path, tiny_model_dir):
    return PPORuns(tmp_path, tiny_model_dir)


def steps_of(result):
    return [
        event.data for event in read_events(result.run_dir / "events.jsonl") if event.kind == "step"
    ]


def memory_of(result):
    memory = load_memory(verify_checkpoint(list_checkpoints(result.run_dir)[-1]))
    return {name: np.array(value) for name, value in memory.arrays.items()}


def untimed(steps):
    timed = ("second", "memory", "eps", "step_time")
    return [
        {name: value for name, value in step.items() if not any(word in name for word in timed)}
        for step in steps
    ]


def test_micro_batches_change_no_gradient(ppo):
    plain = {"optimizer": "sgd", "learning_rate": 0.05, "max_steps": 1, "max_grad_norm": 0.0}
    whole = ppo("whole", batch_size=8, gradient_accumulation_steps=1, **plain)
    parts = ppo("parts", batch_size=2, gradient_accumulation_steps=4, **plain)
    first, second = weights_of(whole.run_dir), weights_of(parts.run_dir)
    for name in first:
        np.testing.assert_allclose(first[name], second[name], atol=2e-6)
    one, other = untimed(steps_of(whole))[0], untimed(steps_of(parts))[0]
    assert set(one) == set(other)
    assert all(one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5) for name in one)


CASES = {
    "shared head": {},
    "copy": {"value_model": "copy", "whiten_rewards": True},
    "lora": LORA,
    "lora copy": LORA | {"value_model": "copy", "lora_dropout": 0.3},
    "mini-batches": {"num_mini_batches": 2, "num_generations": 2},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_stopping_and_resuming_changes_no_bit(ppo, changes):
    whole = ppo("whole", **changes)
    calls = iter(range(9))
    part = ppo("part", should_stop=lambda: next(calls) >= 0, **changes)
    assert (part.reason, part.steps) == ("stopped", 1)
    rest = resume(part.run_dir)
    assert (rest.reason, rest.steps) == ("done", 3)
    assert_same_bits(weights_of(whole.run_dir), weights_of(rest.run_dir))
    assert_same_bits(memory_of(whole), memory_of(rest))
    assert untimed(steps_of(whole)) == untimed(steps_of(rest))
    written = [
        list(read_completions(result.run_dir / "completions.jsonl")) for result in (whole, rest)
    ]
    assert written[0] == written[1]
    assert len(written[0]) == 3 * 8


def test_kill_9_loses_nothing_but_steps(ppo, tmp_path):
    whole = ppo("whole", max_steps=12, checkpoint_interval=2)
    config = ppo.config("killed", max_steps=12)
    command = [
        sys.executable,
        "-m",
        "chuk_cli",
        "train",
        "ppo",
        "--model",
        config.model,
        "--data",
        config.data,
        "--output",
        config.output,
        "--max-steps",
        "12",
        "--batch-size",
        "4",
        "--learning-rate",
        "1e-3",
        "--reward",
        config.rewards[0],
        "--max-completion-length",
        "6",
        "--temperature",
        "1.0",
        "--set",
        "checkpoint_interval=2",
        "--set",
        "gradient_accumulation_steps=2",
        "--set",
        "num_ppo_epochs=2",
    ]
    process = subprocess.Popen(
        command, env=chuk_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 90
    while not list_checkpoints(tmp_path / "killed"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    rest = resume(tmp_path / "killed")
    assert rest.steps == 12
    assert_same_bits(weights_of(whole.run_dir), weights_of(rest.run_dir))
    assert_same_bits(memory_of(whole), memory_of(rest))


def test_metrics_are_trl_s_and_rewards_come_first(ppo):
    (first, *_) = steps_of(ppo())
    names = {
        "objective/kl",
        "objective/entropy",
        "objective/non_score_reward",
        "objective/rlhf_reward",
        "objective/scores",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "policy/entropy_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "val/clipfrac_avg",
        "val/ratio",
        "val/ratio_deviation",
        "val/num_eos_tokens",
        "eps",
        "reward",
        "reward_std",
        "rewards/vowels/mean",
        "completions/mean_length",
        "completions/clipped_ratio",
        "rollout_seconds",
        "step_time",
    }
    assert names <= set(first)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert first["objective/scores"] == pytest.approx(first["reward"])


def test_the_first_pass_of_a_policy_has_ratio_1(ppo):
    (first, *_) = steps_of(ppo(num_ppo_epochs=1))
    assert first["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-8)
    (first, *_) = steps_of(ppo("twice", num_ppo_epochs=2, learning_rate=1e-2))
    assert first["policy/approxkl_avg"] > 1e-6


def test_completions_are_kept_with_their_rewards(ppo):
    rows = list(read_completions(ppo().run_dir / "completions.jsonl"))
    assert {row["step"] for row in rows} == {1, 2, 3}
    assert set(rows[0]) >= {
        "prompt",
        "completion",
        "reward",
        "rewards",
        "advantage",
        "tokens",
        "finish_reason",
    }


def test_what_cannot_be_scored_is_not_learned_from(ppo):
    seen = []
    rewards = (f"{ppo.reward}:nothing",)
    result = ppo(rewards=rewards, max_steps=1, sinks=[seen.append])
    assert_same_bits(weights_of(result.run_dir), weights_of(ppo.config().model))
    assert any("no reward could score" in event.data.get("text", "") for event in seen)
    assert (
        json.loads((result.run_dir / "completions.jsonl").read_text().splitlines()[0])["reward"]
        is None
    )


def test_a_run_is_a_model_and_adapters_are_all_that_it_adds(ppo, tiny_model_dir):
    result = ppo(**LORA)
    model, _ = load_model(result.run_dir)
    assert model(mx.array([[1, 2, 3]])).shape[-1] > 0
    assert set(memory_of(result)) == {"value.weight"}
    folder = list_checkpoints(result.run_dir)[-1]
    assert not (folder / "model.safetensors").exists()
    assert (folder / "adapters.safetensors").exists()


@pytest.mark.parametrize("changes", [LORA, {}], ids=["lora", "full"])
def test_a_copied_value_model_shares_the_base(ppo, changes):
    config = ppo.config(value_model="copy", **changes)
    policy, tokenizer = load_policy(config)
    prepare_model(policy, config)
    model = make_actor_critic(policy, tokenizer, config)
    mx.eval(model.parameters())
    own = {id(leaf): leaf.nbytes for _, leaf in tree_flatten(policy.parameters())}
    both = {id(leaf): leaf.nbytes for _, leaf in tree_flatten(model.parameters())}
    assert sum(both.values()) - sum(own.values()) == model.value.head.weight.nbytes
    names = {name for name, _ in tree_flatten(model.value.trainable_parameters())}
    assert "score.weight" in names
    assert all("lora" in name or name == "score.weight" for name in names) == bool(changes)


def test_a_value_model_learns_apart_from_the_policy(ppo):
    own, shared = ppo("own", value_model="copy"), ppo("shared")
    values = memory_of(own)
    assert "value.model.embed_tokens.weight" in values
    assert not np.array_equal(
        values["value.model.embed_tokens.weight"],
        weights_of(own.run_dir)["model.embed_tokens.weight"],
    )
    assert steps_of(own)[0]["reward"] == steps_of(shared)[0]["reward"]


def test_validation_rewards_choose_the_best_checkpoint(ppo):
    result = ppo(eval_data=str(ppo.data), eval_steps=1)
    assert result.best is not None
    assert "eval_reward" in result.best
    evals = [
        event.data for event in read_events(result.run_dir / "events.jsonl") if event.kind == "eval"
    ]
    assert result.best["eval_reward"] == max(data["eval_reward"] for data in evals)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rewards": ()}, ConfigError, "no reward given"),
        ({"num_generations": 3}, ConfigError, "a step has 8 completions"),
        (
            {"kl_coef": 0.0, "kl_estimator": "k3"},
            ConfigError,
            "`kl_estimator` does nothing without kl_coef",
        ),
        ({"kl_estimator": "k2"}, ConfigError, "should be one of k1, k3"),
        ({"rewards": ("numeric:column=gone",)}, DataError, "gone"),
        ({"max_prompt_length": 1}, DataError, "more than max_prompt_length"),
        ({"value_model": "OTHER"}, ConfigError, "value_model .* has another vocabulary"),
        ({"ref_model": "OTHER"}, ConfigError, "ref_model .* has another vocabulary"),
    ],
)
def test_what_cannot_work_is_said_and_nothing_is_written(ppo, tmp_path, changes, error, message):
    if "OTHER" in changes.values():
        other = create_model("nano", tmp_path / "other", tokenizer="bytes")
        changes = {name: str(other) for name in changes}
    with pytest.raises(error, match=message):
        ppo(**changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [1])
def test_it_learns(cpu, tmp_path, seed):
    """A model that knows a third to a half of all one-digit sums: 60 steps, and it knows most of
    them."""
    rows = [
        {"prompt": f"{a}+{b}=", "completion": f"{a + b}."} for a in range(10) for b in range(10)
    ]
    data = str(write_rows(tmp_path / "sums.jsonl", rows))
    model = str(create_model("nano", tmp_path / "model", seed=seed))
    shared = {"data": data, "lr_scheduler_type": "constant", "seed": seed, "log_interval": 60}
    base = train_sft(
        SFTConfig(
            model=model,
            output=str(tmp_path / "sft"),
            max_steps=120,
            batch_size=16,
            learning_rate=1e-2,
            **shared,
        )
    ).run_dir
    config = PPOConfig(
        model=str(base),
        output=str(tmp_path / "ppo"),
        rewards=("exact_match",),
        max_steps=60,
        batch_size=32,
        gradient_accumulation_steps=1,
        max_completion_length=4,
        learning_rate=1.5e-3,
        temperature=1.0,
        **shared,
    )
    after = start("ppo", config).run_dir
    before, now = (measure(str(run), data).exact_match for run in (base, after))
    assert 0.2 < before < 0.65
    assert now > before + 0.2
