"""Rows that the model cannot run, rows that are cut or left out: refused or told, in every
command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chuk_lib.errors import ConfigError, DataError, ModelError
from chuk_lib.models import load_model, save_pretrained
from chuk_lib.models.create import create_model
from chuk_lib.training import SFTConfig, SFTTrainer
from tests.conftest import RunChuk
from tests.training.conftest import write_rows

SMALL = ["--batch-size", "2", "--max-steps", "1"]
ONLINE = ["--reward", "exact_match", "--set", "num_generations=2", "--max-completion-length", "2"]
KINDS = {"sft": [], "dpo": [], "kto": [], "reward": [], "grpo": ONLINE, "ppo": ONLINE}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return create_model("nano", tmp_path / "model")


@pytest.fixture
def larger(model: Path) -> tuple[Path, int]:
    """A model whose tokenizer has two tokens more than its embedding, and the first of their
    ids."""
    path = model / "tokenizer.json"
    content, rows = (
        json.loads(path.read_text()),
        json.loads((model / "config.json").read_text())["vocab_size"],
    )
    content["added_tokens"] += [
        {
            "id": rows + at,
            "content": f"<new{at}>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for at in range(2)
    ]
    path.write_text(json.dumps(content))
    return model, rows


def row(prompt: str, completion: str = "2") -> dict[str, object]:
    return {
        "prompt": prompt,
        "completion": completion,
        "label": True,
        "answer": "2",
        "chosen": completion,
        "rejected": "3",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_beyond_the_embedding_are_refused_by_name(
    larger: tuple[Path, int], tmp_path: Path, run_chuk: RunChuk, kind: str
) -> None:
    folder, first = larger
    bad = write_rows(tmp_path / "bad.jsonl", [row("1+1="), row("1<new1>="), row("2<new0>=")])
    fine = write_rows(tmp_path / "fine.jsonl", [row("1+1="), row("1+1=")])
    for more in ([], ["--dry-run"]):
        done = run_chuk(
            "train", kind, *KINDS[kind], *SMALL, "-m", folder, "-d", bad, "-o", "run", *more
        )
        assert done.returncode == 1
        assert f"bad.jsonl` line 2: token `<new1>` (id {first + 1})" in done.stderr
        assert f"{first:,} rows" in done.stderr
        assert " of " in done.stderr.partition("rows;")[2]
        assert not (tmp_path / "run").exists()
    assert (
        run_chuk(
            "train", kind, *KINDS[kind], *SMALL, "-m", folder, "-d", fine, "-o", "run"
        ).returncode
        == 0
    )


def test_tokens_beyond_the_embedding_are_refused_at_inference(
    larger: tuple[Path, int], tmp_path: Path, run_chuk: RunChuk
) -> None:
    folder, first = larger
    data = write_rows(tmp_path / "rows.jsonl", [row("1+1="), row("1+1=", "<new0>")])
    wrong = f"token `<new0>` (id {first}) has no row"
    for command in (
        ["infer", "-p", "1<new0>"],
        ["eval", "-d", data],
        ["eval", "-d", data, "--reward", "exact_match"],
    ):
        done = run_chuk(*command, "-m", folder)
        assert (done.returncode, wrong in done.stderr) == (1, True), done.stderr
    ids = write_rows(
        tmp_path / "ids.jsonl", [{"input_ids": [1, 2, first], "labels": [1, 2, first]}]
    )
    done = run_chuk("train", "sft", "-m", folder, "-d", ids, *SMALL)
    assert (done.returncode, f"ids.jsonl` line 1: {wrong}" in done.stderr) == (1, True)


def test_a_trainer_in_code_refuses_them_too(larger: tuple[Path, int], tmp_path: Path) -> None:
    from chuk_lib.data import SFTDataset

    loaded, tokenizer = load_model(larger[0])
    data = SFTDataset(write_rows(tmp_path / "rows.jsonl", [row("<new0>")]), tokenizer)
    with pytest.raises(DataError, match="<new0>"):
        SFTTrainer(loaded, tokenizer, SFTConfig(output=str(tmp_path / "run"))).train(data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto", "reward"])
def test_rows_that_are_cut_or_left_out_are_told_while_it_trains_and_later(
    model: Path, tmp_path: Path, run_chuk: RunChuk, kind: str
) -> None:
    rows = [row("1+1=", "2"), row("1+1=", "2" * 30), row("1" * 40, "2")]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    done = run_chuk("train", kind, "-m", model, "-d", data, *SMALL, "--max-length", 12, "-o", "run")
    assert done.returncode == 0, done.stderr
    cut = "warning: 1 of 3 rows are cut at max_length (12 tokens)"
    left = "2 of 3 rows are left out" if kind == "reward" else "1 of 3 rows are left out"
    assert (cut in done.stderr) == (kind != "reward")
    assert left in done.stderr
    assert left in run_chuk("runs", "show", "run").stdout.replace("\n", " ")
    planned = run_chuk(
        "train", kind, "-m", model, "-d", data, *SMALL, "--max-length", 12, "--dry-run"
    )
    assert left in planned.stdout + planned.stderr


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_prompts_that_are_left_out_are_told(
    model: Path, tmp_path: Path, run_chuk: RunChuk, kind: str
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [row("1+1="), row("1" * 30)])
    limit = ["--set", "max_prompt_length=8"]
    done = run_chuk("train", kind, *ONLINE, *SMALL, *limit, "-m", model, "-d", data, "-o", "run")
    assert done.returncode == 0, done.stderr
    assert "warning: 1 of 2 prompts are left out: they have more than 8 tokens" in done.stderr


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_rows_beyond_the_context_are_trained_whole_and_it_is_said(
    tmp_path: Path, run_chuk: RunChuk, kind: str
) -> None:
    model = create_model("nano", tmp_path / "small", context_length=32)
    data = write_rows(tmp_path / "rows.jsonl", [row("1" * 60)])
    done = run_chuk("train", kind, "-m", model, "-d", data, *SMALL, "-o", "run")
    what = "leave them out" if kind == "reward" else "cut them"
    assert done.returncode == 0, done.stderr
    assert f"are trained whole; --max-length 32 would {what}" in done.stderr


def test_a_prompt_beyond_the_context_is_named_and_can_be_left_out(
    tmp_path: Path, run_chuk: RunChuk
) -> None:
    model = create_model("nano", tmp_path / "small", context_length=32)
    data = write_rows(tmp_path / "rows.jsonl", [row("1+1="), row("1" * 60), row("1+1=")])
    for more in ([], ["--reward", "exact_match"]):
        command = ["eval", "-m", model, "-d", data, "--max-tokens", 2, *more]
        done = run_chuk(*command)
        assert done.returncode == 1
        assert "rows.jsonl` line 2" in done.stderr
        done = run_chuk(*command, "--max-prompt-length", 31)
        assert done.returncode == 0, done.stderr
        assert "1 of 3 prompts are left out" in done.stderr
        told = json.loads(run_chuk(*command, "--max-prompt-length", 31, "--json").stdout)
        assert (told["rows"], told["left_out"]) == (2, 1)


def test_saving_makes_the_folder_and_errors_keep_their_hint(model: Path, tmp_path: Path) -> None:
    loaded, tokenizer = load_model(model)
    save_pretrained(loaded, tokenizer, tmp_path / "new" / "folder")
    assert load_model(tmp_path / "new" / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make"):
        save_pretrained(loaded, tokenizer, tmp_path / "file" / "folder")
    with pytest.raises(ModelError) as found:
        load_model(tmp_path / "modle")
    assert found.value.__notes__ == [f"hint: did you mean `{model}`?"]
