"""`chuk train ppo` as a process, and the settings files for PPO and pipelines."""

import json

import pytest

from chuk_cli.settings import resolve_settings
from chuk_lib.training.config import refuse_idle_settings
from chuk_lib.training.online.ppo_config import PPOConfig
from chuk_lib.training.pipeline.config import make_pipeline
from chuk_lib.training.pipeline.file import read_pipeline
from tests.conftest import ROOT
from tests.training.ppo_runs import PPORuns


@pytest.fixture
def ppo(tmp_path, tiny_model_dir):
    return PPORuns(tmp_path, tiny_model_dir)


def test_a_dry_run_shows_settings_prompts_and_steps_and_writes_nothing(ppo, run_chuk, tmp_path):
    config = ppo.config()
    arguments = [
        "train",
        "ppo",
        "-m",
        config.model,
        "-d",
        config.data,
        "--reward",
        config.rewards[0],
        "--max-steps",
        3,
    ]
    done = run_chuk(*arguments, "--output", "run", "--dry-run")
    assert done.returncode == 0, done.stderr
    for text in (
        "cliprange",
        "(--max-steps)",
        "vowels",
        "32 prompts × 1 = 32 completions, 4 updates",
        "red 0: ",
    ):
        assert text in done.stdout
    plan = json.loads(run_chuk(*arguments, "--dry-run", "--json", "--value-model", "copy").stdout)
    assert (plan["steps"], plan["updates_per_step"], plan["rewards"]) == (3, 4, {"vowels": 1.0})
    assert plan["settings"]["value_model"] == {"value": "copy", "origin": "--value-model"}
    assert not (tmp_path / "run").exists()


def test_it_prints_the_run_and_bad_settings_in_one_line(ppo, run_chuk):
    config = ppo.config()
    arguments = [
        "train",
        "ppo",
        "-m",
        config.model,
        "-d",
        config.data,
        "-o",
        "run",
        "--max-steps",
        1,
        "-q",
    ]
    done = run_chuk(*arguments, "--reward", config.rewards[0], "--max-completion-length", 4)
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    for more, message in (
        ([], "no reward given"),
        (["--reward", "nope"], "`nope`"),
        (["--reward", "exact_match", "--num-generations", 5], "a step has 32 completions"),
        (["--reward", "gone.py:f"], "gone.py"),
    ):
        failed = run_chuk(*arguments[:6], *more)
        assert failed.returncode in (1, 2)
        assert message in failed.stderr
        assert failed.stderr.count("error:") == 1


@pytest.mark.parametrize("name", ["ppo.yaml", "ppo-lora.yaml"])
def test_shipped_settings_of_ppo_are_right(name):
    settings = resolve_settings(PPOConfig, [ROOT / "training_config" / name])
    refuse_idle_settings(settings.value)
    settings.value.check()


def test_the_shipped_pipeline_is_right():
    pipeline = make_pipeline(*read_pipeline(ROOT / "training_config" / "pipeline.yaml"))
    assert [stage.name for stage in pipeline.stages] == [
        "before",
        "sft",
        "between",
        "grpo",
        "after",
    ]
    for stage in pipeline.stages:
        if stage.kind != "eval":
            refuse_idle_settings(stage.settings.value)
