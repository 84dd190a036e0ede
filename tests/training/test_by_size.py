"""Learning rates and micro-batches that nobody gave follow the size of the model, and say so."""

import json

import mlx.core as mx
import mlx.nn as nn
import pytest
import yaml

from chuk_lib.models import load_model
from chuk_lib.training.by_size import USUAL_SIZE, count_weights, scaled_rate, size_origin
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.online.ppo_config import PPOConfig
from tests.training.conftest import write_rows
from tests.training.grpo_runs import prompt_rows

NANO = 33_120
"""Weights of the tiny model."""


@pytest.fixture
def grpo(run_chuk, tiny_model_dir, tmp_path):
    """`chuk train grpo` on a small model with nothing set but what has no default; adds options."""
    data = write_rows(tmp_path / "prompts.jsonl", prompt_rows(64))
    words = ("-m", tiny_model_dir, "-d", data, "--reward", "exact_match", "--max-steps", "1")
    return lambda *more, algorithm="grpo": run_chuk("train", algorithm, *words, *more)


@pytest.mark.parametrize("config", [GRPOConfig(), PPOConfig()], ids=["grpo", "ppo"])
@pytest.mark.parametrize("adapted", [False, True])
def test_trl_s_rates_stand_for_billions_and_grow_below(config, adapted):
    rate = config.usual_rates[adapted]
    assert {scaled_rate(rate, size, config.rate_power) for size in (10**9, 7 * 10**9, 10**12)} == {
        rate
    }
    rates = [
        scaled_rate(rate, size, config.rate_power)
        for size in (10**5, 10**6, 10**7, 10**8, USUAL_SIZE)
    ]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 5
    assert 99 <= rates[0] / rate <= 300


def test_a_dry_run_and_the_run_s_own_files_show_what_the_size_decided(grpo, tmp_path):
    plan = json.loads(grpo("--dry-run", "--json").stdout)["settings"]
    rate = scaled_rate(1e-6, NANO, GRPOConfig.rate_power)
    assert plan["learning_rate"] == {"value": rate, "origin": "auto: 33 k weights"}
    assert plan["batch_size"] == {"value": 64, "origin": "auto: 33 k weights"}
    assert "(auto: 33 k weights)" in grpo("--dry-run").stdout
    done = grpo("-o", "run", "--max-completion-length", "4", "-q")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert text.count("  # auto: 33 k weights") == 2
    assert yaml.safe_load(text)["learning_rate"] == rate
    assert yaml.safe_load(text)["batch_size"] == 64
    origins = json.loads((tmp_path / "run" / "origins.json").read_text())
    assert (origins["learning_rate"], origins["seed"]) == ("auto: 33 k weights", "default")


def test_what_somebody_gave_stands(grpo):
    given = ("--learning-rate", "1e-6", "--batch-size", "8", "--dry-run", "--json")
    plan = json.loads(grpo(*given).stdout)
    assert plan["settings"]["learning_rate"] == {"value": 1e-6, "origin": "--learning-rate"}
    assert plan["settings"]["batch_size"] == {"value": 8, "origin": "--batch-size"}
    assert plan["completions_per_step"] == 32
    trl = json.loads(grpo("--preset", "trl", "--dry-run", "--json").stdout)["settings"]
    assert (trl["learning_rate"]["value"], trl["batch_size"]["value"]) == (1e-6, 8)
    rollout = json.loads(grpo("--set", "generation_batch_size=96", "--dry-run", "--json").stdout)
    assert rollout["settings"]["batch_size"] == {"value": 8, "origin": "default"}


def test_ppo_and_adapters_have_rates_of_their_own(grpo):
    rates = {
        (algorithm, lora): json.loads(
            grpo(*lora, "--dry-run", "--json", algorithm=algorithm).stdout
        )["settings"]["learning_rate"]["value"]
        for algorithm in ("grpo", "ppo")
        for lora in ((), ("--lora",))
    }
    assert rates["ppo", ()] == scaled_rate(3e-6, NANO, PPOConfig.rate_power)
    for algorithm in ("grpo", "ppo"):
        assert 9 < rates[algorithm, ("--lora",)] / rates[algorithm, ()] < 11


def test_packed_weights_are_counted_one_by_one(tiny_model_dir):
    model, _ = load_model(str(tiny_model_dir))
    assert count_weights(model) == NANO
    nn.quantize(model, group_size=32, bits=4)
    mx.eval(model.parameters())
    assert count_weights(model) == NANO


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (7, "7 weights"),
        (99_008, "99 k weights"),
        (1_060_000, "1.1 M weights"),
        (134_500_000, "134 M weights"),
        (1_235_000_000, "1.2 B weights"),
        (70 * 10**9, "70 B weights"),
    ],
)
def test_sizes_in_words(size, text):
    assert size_origin(size) == f"auto: {text}"
