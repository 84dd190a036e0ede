"""No dead options: every setting that PPO adds changes something, and a test says what.

The last test keeps the list complete. Settings that all trainers share are in test_options.py.
"""

import numpy as np
import pytest

from chuk_lib.config.settings import settings_of
from chuk_lib.errors import ConfigError
from chuk_lib.events import read_events
from chuk_lib.models import create_model
from chuk_lib.training import TrainerConfig
from chuk_lib.training.completions_log import read_completions
from chuk_lib.training.online.ppo_config import PPOConfig
from tests.training.conftest import weights_of, write_rows
from tests.training.ppo_runs import PPORuns

# setting -> (what both runs share, what the second run changes)
CHANGES_WEIGHTS = {
    "num_ppo_epochs": ({}, {"num_ppo_epochs": 3}),
    "num_mini_batches": ({}, {"num_mini_batches": 2}),
    "disable_dropout": ({"use_lora": True, "lora_dropout": 0.5}, {"disable_dropout": False}),
    "kl_coef": ({}, {"kl_coef": 0.9}),
    "kl_coef 0": ({}, {"kl_coef": 0.0}),
    "kl_estimator": ({"kl_coef": 0.5}, {"kl_estimator": "k3"}),
    "cliprange": ({"learning_rate": 1e-2}, {"cliprange": 1e-3}),
    "cliprange_value": ({"learning_rate": 1e-2}, {"cliprange_value": 1e-4}),
    "vf_coef": ({}, {"vf_coef": 5.0}),
    "gamma": ({}, {"gamma": 0.5}),
    "lam": ({}, {"lam": 0.1}),
    "whiten_rewards": ({}, {"whiten_rewards": True}),
    "missing_eos_penalty": ({"temperature": 3.0}, {"missing_eos_penalty": 2.0}),
    "value_model copy": ({}, {"value_model": "copy"}),
    "value_model": ({}, {"value_model": "MODEL"}),
    "ref_model": ({"kl_coef": 0.5}, {"ref_model": "OTHER"}),
    "rewards": ({}, {"rewards": ("length:max=2",)}),
    "shuffle": ({}, {"shuffle": False}),
    "max_prompt_length": ({}, {"max_prompt_length": 7}),
    "max_completion_length": ({}, {"max_completion_length": 3}),
    "num_generations": ({}, {"num_generations": 4}),
    "temperature": ({}, {"temperature": 0.5}),
    "top_p": ({}, {"top_p": 0.3}),
    "top_k": ({}, {"top_k": 4}),
    "min_p": ({}, {"min_p": 0.9}),
    "repetition_penalty": ({}, {"repetition_penalty": 3.0}),
}


@pytest.fixture
def ppo(tmp_path, tiny_model_dir):
    return PPORuns(tmp_path, tiny_model_dir)


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tiny_model_dir):
    """Weights after two steps with changed settings, each set of them trained once."""
    runs, known = PPORuns(tmp_path_factory.mktemp("ppo"), tiny_model_dir), {}

    def weights(settings):
        key = repr(sorted(settings.items()))
        if key not in known:
            known[key] = runs(f"run-{len(known)}", **({"max_steps": 2} | settings)).run_dir
        return weights_of(known[key])

    return weights


@pytest.mark.parametrize(("shared", "change"), CHANGES_WEIGHTS.values(), ids=CHANGES_WEIGHTS)
def test_the_setting_changes_what_is_learned(learned, tiny_model_dir, other_model, shared, change):
    places = {"OTHER": str(other_model), "MODEL": str(tiny_model_dir)}
    change = {
        name: places.get(value, value) if isinstance(value, str) else value
        for name, value in change.items()
    }
    before, after = learned(shared), learned(shared | change)
    assert any(not np.array_equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    return create_model("nano", tmp_path_factory.mktemp("other") / "model", seed=7)


def texts(result):
    return [row["completion"] for row in read_completions(result.run_dir / "completions.jsonl")]


def test_stop_ends_a_completion(ppo):
    plain = ppo("plain", max_steps=1)
    letter = next(text for text in texts(plain) if text)[0]
    stopped = texts(ppo("stopped", max_steps=1, stop=(letter,)))
    assert all(letter not in text for text in stopped)


def test_rollout_tokens_bound_what_is_decoded_at_once_and_change_no_text(ppo):
    assert texts(ppo("all", max_steps=1)) == texts(ppo("few", max_steps=1, rollout_tokens=24))
    with pytest.raises(ConfigError, match="at least 1"):
        ppo("none", rollout_tokens=0)


def test_reward_errors_stop_the_run_or_leave_completions_out(ppo):
    ppo.reward.write_text("def bad(completions, **columns):\n    raise ValueError('no')\n")
    spec = (f"{ppo.reward}:bad",)
    with pytest.raises(Exception, match="no"):
        ppo("raises", rewards=spec)
    rows = read_completions(
        ppo("none", rewards=spec, reward_errors="none", max_steps=1).run_dir / "completions.jsonl"
    )
    assert {row["reward"] for row in rows} == {None}


def test_eval_num_generations_samples_instead_of_one_greedy_answer(ppo, tmp_path):
    few = str(write_rows(tmp_path / "few.jsonl", [{"prompt": "red 1: ", "answer": "blue"}]))
    shared = {"eval_data": few, "eval_steps": 1, "max_steps": 1}
    greedy, sampled = (
        ppo("greedy", **shared),
        ppo("sampled", eval_num_generations=8, temperature=2.0, **shared),
    )
    spread = [
        next(
            event.data["eval_reward_std"]
            for event in read_events(run.run_dir / "events.jsonl")
            if event.kind == "eval"
        )
        for run in (greedy, sampled)
    ]
    assert spread[0] == 0
    assert spread[1] > 0


TOOLS = {"environment", "tools", "max_turns", "max_tool_seconds", "max_tool_tokens"}
TOOLS |= {"mcp", "mcp_tools", "mcp_connect_seconds", "mcp_record"}
"""In tests/env/test_play.py and test_mcp_training.py."""
ELSEWHERE = TOOLS | {
    "schema",
    "stop",
    "rollout_tokens",
    "reward_errors",
    "reward_weights",
    "eval_num_generations",
}


def test_every_setting_has_a_test():
    tested = {name.split()[0] for name in CHANGES_WEIGHTS} | ELSEWHERE
    assert set(settings_of(PPOConfig)) - set(settings_of(TrainerConfig)) - tested == set()
