"""`chuk train dpo` and its relatives as a user runs them, and their settings files."""

import json

import pytest

from chuk_cli.settings import resolve_settings
from chuk_lib.training.config import refuse_idle_settings
from tests.conftest import ROOT
from tests.training.preference_runs import CONFIGS, write_data

SHIPPED = {
    "dpo.yaml": "dpo",
    "dpo-lora.yaml": "dpo",
    "kto.yaml": "kto",
    "orpo.yaml": "orpo",
    "simpo.yaml": "cpo",
    "reward.yaml": "reward",
}


@pytest.mark.parametrize(("name", "algorithm"), SHIPPED.items(), ids=SHIPPED)
def test_shipped_settings_are_right(name, algorithm):
    settings = resolve_settings(CONFIGS[algorithm], [ROOT / "training_config" / name])
    refuse_idle_settings(settings.value)
    settings.value.check()


def test_dpo_from_the_command_line_to_an_answer(run_chuk, tiny_model_dir, tmp_path):
    data = write_data(tmp_path / "data", "dpo")
    args = [
        "train",
        "dpo",
        "--model",
        tiny_model_dir,
        "--data",
        data,
        "--lora",
        "--output",
        "run",
        "--max-steps",
        "3",
    ]
    planned = run_chuk(*args, "--dry-run", "--json")
    plan = json.loads(planned.stdout)
    assert planned.returncode == 0, planned.stderr
    assert not (tmp_path / "run").exists()
    assert plan["settings"]["use_lora"] == {"value": True, "origin": "--lora"}
    assert (plan["steps"], plan["data"]["kept"], plan["reference"]) == (
        3,
        21,
        "the model with its new adapters off",
    )
    assert [part["role"] for part in plan["preview"][0]["fragments"]] == [
        "prompt",
        "chosen",
        "rejected",
    ]
    assert plan["preview"][0]["fragments"][0]["text"] == "red 0: "
    done = run_chuk(*args)
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    said = run_chuk("infer", "--model", "run", "--prompt", "red 1: ", "--max-tokens", "4")
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("algorithm", ["kto", "reward"])
def test_a_dry_run_shows_rows_and_facts(algorithm, run_chuk, tiny_model_dir, tmp_path):
    data = write_data(tmp_path / "data", algorithm)
    shown = run_chuk("train", algorithm, "--model", tiny_model_dir, "--data", data, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    for words in (
        "red 0: ",
        "21 kept",
        "steps",
        "padding",
        "reference",
        "good" if algorithm == "kto" else "chosen",
    ):
        assert words in shown.stdout
    assert "dry run: nothing was written" in shown.stderr
