"""What is wrong with a GRPO run is said in one clear line before anything is trained or written."""

import json

import pytest

from chuk_lib.errors import ConfigError, DataError
from chuk_lib.models.create import create_model
from chuk_lib.training import train as train_job
from tests.training.conftest import write_rows
from tests.training.grpo_runs import make_config, prompt_rows, train


def test_a_column_that_a_reward_needs(tiny_model_dir, tmp_path):
    data = str(write_rows(tmp_path / "bare.jsonl", [{"prompt": "red: "}] * 4))
    with pytest.raises(
        DataError, match=r"named` needs the column `answer`, which `.*bare.jsonl` does not have"
    ):
        train(tmp_path, tiny_model_dir, data=data, rewards=("named",))
    assert not (tmp_path / "run").exists()


def test_a_column_that_only_validation_lacks(tiny_model_dir, tmp_path):
    valid = str(write_rows(tmp_path / "valid.jsonl", [{"prompt": "red: "}]))
    with pytest.raises(DataError, match=r"valid.jsonl` does not have"):
        train(tmp_path, tiny_model_dir, eval_data=valid, rewards=("named",))


def test_a_prompt_longer_than_the_context(tiny_model_dir, tmp_path):
    limit = json.loads((tiny_model_dir / "config.json").read_text())["max_position_embeddings"]
    rows = [*prompt_rows(3), {"prompt": "x" * (limit + 5), "answer": "y"}]
    data = str(write_rows(tmp_path / "long.jsonl", rows))
    with pytest.raises(
        DataError, match=r"long.jsonl` line 4: the prompt has .* the model's context holds"
    ):
        train(tmp_path, tiny_model_dir, data=data)
    assert train(tmp_path, tiny_model_dir, data=data, max_prompt_length=64, max_steps=1).steps == 1


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (("exact_mach",), "exact_mach"),
        (("nowhere.py:score",), "`nowhere.py` does not exist"),
        (("broken.py:score",), "broken.py"),
        (("rewards.py:nothing",), "no function `nothing`"),
    ],
)
def test_rewards_that_do_not_exist_or_import(
    tiny_model_dir, tmp_path, monkeypatch, rewards, message
):
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind\n")
    config = make_config(tmp_path, tiny_model_dir)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        train_job(
            "grpo", type(config)(**(vars(config) | {"rewards": rewards, "model": "no/such/model"}))
        )


def test_a_reference_with_another_vocabulary(tiny_model_dir, tmp_path):
    folder = create_model("nano", tmp_path / "other", seed=1)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(
        {
            "id": 10_000,
            "content": "<|more|>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="another vocabulary"):
        train(tmp_path, tiny_model_dir, beta=0.1, ref_model=str(folder))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--num-generations", "1"], 2, "num_generations is 1"),
        (["--reward", "exact_mach"], 2, "exact_match"),
        (["--data", "DATA/none.jsonl"], 1, "does not exist"),
    ],
)
def test_the_command_says_it_in_one_line(
    run_chuk, tiny_model_dir, tmp_path, arguments, code, words
):
    write_rows(tmp_path / "prompts.jsonl", prompt_rows())
    given = [part.replace("DATA", str(tmp_path)) for part in arguments]
    base = ["--model", tiny_model_dir, "--reward", "exact_match"]
    base += [] if "--data" in given else ["--data", tmp_path / "prompts.jsonl"]
    done = run_chuk("train", "grpo", *base, "--output", tmp_path / "run", *given)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_dry_run_shows_prompts_and_steps_and_writes_nothing(run_chuk, tiny_model_dir, tmp_path):
    write_rows(tmp_path / "prompts.jsonl", prompt_rows())
    command = [
        "train",
        "grpo",
        "--model",
        tiny_model_dir,
        "--data",
        tmp_path / "prompts.jsonl",
        "--reward",
        "exact_match",
        "--reward",
        "length:max=9=0.5",
        "--preset",
        "trl",
        "--output",
        tmp_path / "run",
        "--dry-run",
    ]
    done = run_chuk(*command)
    assert done.returncode == 0, done.stderr
    for words in (
        "red 0: ",
        "length × 0.5",
        "1 prompts × 8 = 8 completions",
        "(--preset trl)",
        "(--reward)",
    ):
        assert words in done.stdout
    plan = json.loads(run_chuk(*command, "--json").stdout)
    assert (plan["steps"], plan["completions_per_step"], plan["rewards"]["length"]) == (30, 8, 0.5)
    assert plan["settings"]["max_completion_length"] == {"value": 512, "origin": "--preset trl"}
    assert not (tmp_path / "run").exists()
