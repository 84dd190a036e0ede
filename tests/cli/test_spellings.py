"""What people type: other tools' flags, old spellings, data and models with or without a flag."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chuk_cli.flags import SPELLINGS, Words
from chuk_cli.lazy import find
from chuk_cli.settings import setting_names
from chuk_lib.errors import ConfigError
from chuk_lib.training.config import SFTConfig
from tests.conftest import RunChuk

SFT = find(("train", "sft"))

TYPED = {
    "--lr 1e-4": ({"lr": "1e-4"}, "`--lr` is `--learning-rate` here"),
    "--iters=5": ({"iters": "5"}, "`--iters` is `--max-steps` here"),
    "--weight_decay 0.1": ({"weight_decay": "0.1"}, ""),
    "--bf16": ({"dtype": "bfloat16"}, "`--bf16 true` is `--dtype bfloat16` here"),
    "--micro-batch-size 2": (
        {"batch_size": 2},
        "`--micro-batch-size 2` is `--batch-size 2` here",
    ),
    "--sequence_len 64": ({"max_length": 64}, "`--sequence_len 64` is `--max-length 64` here"),
    "--cutoff-len 64": ({"max_length": 64}, "`--cutoff-len 64` is `--max-length 64` here"),
    "--fine-tune-type dora": (
        {"use_lora": True, "use_dora": True},
        "`--fine-tune-type dora` is `--lora --use-dora` here",
    ),
    "--mask-prompt": (
        {"completion_only_loss": True},
        "`--mask-prompt true` is `--completion-only-loss` here",
    ),
    "--random-state 3": ({"seed": 3}, "`--random-state 3` is `--seed 3` here"),
}
"""What is typed: the settings that it comes to, and what is said."""

REFUSED = {
    "--train": "`chuk train` trains",
    "--val-batches 3": "all of the validation data is measured",
    "--eval-strategy steps": "`eval_steps`",
    "--push-to-hub": "`chuk model upload`",
    "--deepspeed zero3.json": "leave it out",
    "--lr 1 --learning_rate 2": "give it once",
    "--micro-batch-size 2 --per-device-train-batch-size 3": "give it once",
}


@pytest.mark.parametrize("line", TYPED)
def test_a_flag_of_another_tool_is_chuks_and_says_so(line: str) -> None:
    settings = SFT._settings()
    words = Words(SFT.params, settings).read(line.split())
    taken, note = TYPED[line]
    given = {word.partition("=")[0] for word in words.kept} | words.taken.keys()
    assert (words.taken or taken) == taken
    assert words.notes == ([note] if note else []), given


@pytest.mark.parametrize("line", REFUSED)
def test_a_flag_that_would_do_nothing_or_is_there_twice_is_refused(line: str) -> None:
    context = SFT.make_context("sft", [], resilient_parsing=True)
    context.resilient_parsing = False
    with pytest.raises(ConfigError) as caught:
        SFT.parse_args(context, line.split())
    assert REFUSED[line] in caught.value.hint


def test_every_setting_is_a_flag_and_every_spelling_an_option_of_some_command() -> None:
    for name, item in setting_names(SFTConfig).items():
        words = [f"--{name}"] if item.base_type is bool else [f"--{name}", "x"]
        read = Words(SFT.params, SFT._settings()).read(words)
        assert read.taken or read.kept[0] in read.options, name
    commands = ("infer", "eval", "data sample", "tokenizer doctor", "batch build", "model fuse")
    known = {name for words in commands for name in Words(find(words.split()).params, {}).options}
    assert set(SPELLINGS.values()) <= known


def test_a_setting_of_another_command_is_told(run_chuk: RunChuk) -> None:
    done = run_chuk("train", "sft", "-m", "a", "-d", "b", "--beta", "0.1")
    assert done.returncode == 2
    assert "it is a setting of `chuk train dpo`, `chuk train kto`" in done.stderr


def test_data_and_models_go_with_or_without_a_flag(
    run_chuk: RunChuk, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(4)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {
        run_chuk("data", "stats", *words, "--json").stdout
        for words in (["t.jsonl"], ["-d", "t.jsonl"], ["--data=t.jsonl"], ["--dataset", "t.jsonl"])
    }
    assert len(told) == 1
    assert "4" in next(iter(told))
    shown = run_chuk("data", "preview", "t.jsonl", "--model", tiny_model_dir, "--json")
    assert (
        shown.stdout
        == run_chuk("data", "preview", "-d", "t.jsonl", "-m", tiny_model_dir, "--json").stdout
    )
    done = run_chuk("tokenizer", "encode", "-m", tiny_model_dir, "hi")
    assert done.stdout == run_chuk("tokenizer", "encode", tiny_model_dir, "hi").stdout != ""
    done = run_chuk(
        "eval", "t.jsonl", "--model-name-or-path", tiny_model_dir, "--max-rows", "2", "--temp", "0"
    )
    assert done.returncode == 0, done.stderr
    assert "note: `--max-rows` is `--rows` here\n" in done.stderr


def test_reward_weights_are_those_behind_the_rewards(
    run_chuk: RunChuk, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(4)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("train", "grpo", "-m", tiny_model_dir, "-d", "p.jsonl", "--dry-run", "--json")
    plain = ("--reward", "exact_match", "--reward", "numeric")
    done = run_chuk(*words, *plain, "--reward-weights", "0.25,2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rewards"] == {"exact_match": 0.25, "numeric": 2.0}
    for more, said in (
        ((*plain, "--reward-weights", "1"), "1 reward_weights for 2 rewards"),
        (("--reward", "numeric=2", "--reward-weights", "1"), "a weight of its own"),
    ):
        done = run_chuk(*words, *more)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_eval_takes_columns_under_other_names(
    run_chuk: RunChuk, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = [("red ", "blue"), ("green ", "black")]
    for name, ask, tell in (("own", "prompt", "completion"), ("other", "q", "a")):
        lines = (json.dumps({ask: prompt, tell: completion}) for prompt, completion in rows)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    common = ("eval", "-m", tiny_model_dir, "--max-tokens", 2, "--json", "-d")
    own = run_chuk(*common, "own.jsonl")
    other = run_chuk(*common, "other.jsonl", "--map", "prompt=q", "--map", "completion=a")
    assert (own.returncode, other.returncode) == (0, 0), other.stderr
    losses = [json.loads(done.stdout)["metrics"]["eval_loss"] for done in (own, other)]
    assert losses[0] == losses[1]


def test_a_pipeline_over_processes_is_refused_by_name(run_chuk: RunChuk) -> None:
    done = run_chuk("train", "pipeline", "--nproc", 2)
    assert (done.returncode, "`chuk train sft`" in done.stderr) == (2, True), done.stderr
