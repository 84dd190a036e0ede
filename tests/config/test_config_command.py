"""`chuk config`: the real executable on real files."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from chuk_lib.config import files
from chuk_lib.config.settings import settings_of
from chuk_lib.training.config import SFTConfig
from tests.conftest import ROOT, RunChuk


def test_ls_lists_names_with_a_line_each(run_chuk: RunChuk) -> None:
    shown = run_chuk("config", "ls")
    rows = json.loads(run_chuk("config", "ls", "--json").stdout)
    names = run_chuk("config", "ls", "-q").stdout.split()
    assert names == [row["name"] for row in rows] == [item.name for item in files.shipped()]
    assert all(row["about"] in shown.stdout and Path(row["path"]).is_file() for row in rows)


def test_show_an_algorithm_tells_all_about_each_setting(run_chuk: RunChuk) -> None:
    known = settings_of(SFTConfig)
    found = json.loads(run_chuk("config", "show", "sft", "--json").stdout)
    assert list(found) == list(known)
    expected = {
        "type": "integer",
        "default": 8,
        "flag": "--batch-size",
        "panel": "Training",
        "minimum": 1,
    }
    assert {name: found["batch_size"][name] for name in expected} == expected
    assert found["learning_rate"]["aliases"] == ["lr"]
    text = run_chuk("config", "show", "sft").stdout
    assert all(f"  {name}: " in text for name in known)
    assert "Also lr." in text


def test_show_a_file_as_it_is_and_what_it_sets(run_chuk: RunChuk) -> None:
    path = ROOT / "training_config" / "sft-lora.yaml"
    for name in ("sft-lora", "sft-lora.yaml", path):
        assert run_chuk("config", "show", name).stdout == path.read_text()
    settings = json.loads(run_chuk("config", "show", path, "--json").stdout)["settings"]
    assert settings["lora_rank"] == {"value": 16, "origin": "sft-lora.yaml:4"}
    done = run_chuk("config", "show", "sft-lroa")
    assert (done.returncode, "`sft-lora" in done.stderr) == (2, True)


def test_check_tells_every_wrong_line(run_chuk: RunChuk, tmp_path: Path) -> None:
    cases = {
        "a: 1\nlearning_rte: 1\n": [
            "`a`",
            "x.yaml:1",
            "`learning_rte`",
            "x.yaml:2",
            "`learning_rate`",
        ],
        "batch_size: many\nlr: fast\n": ["batch_size", "x.yaml:1", "learning_rate", "x.yaml:2"],
        "lora_rank: 4\n": ["`lora_rank` does nothing"],
        "seed: [\n": ["line"],
        "optimizer:\n  initial_lr: x\n": ["x.yaml:2"],
    }
    for text, parts in cases.items():
        (tmp_path / "x.yaml").write_text(text)
        done = run_chuk("config", "check", "x.yaml")
        assert (done.returncode, done.stdout) == (2, "")
        assert all(part in done.stderr for part in parts), done.stderr
        said = run_chuk("config", "check", "x.yaml", "--json")
        assert said.returncode == 2
        found = json.loads(said.stdout)
        assert not found["ok"]
        assert len(found["problems"]) == done.stderr.count("error:")
    assert run_chuk("config", "check", "none.yaml").returncode == 2


def test_check_passes_what_is_right(run_chuk: RunChuk, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("lr: 1e-5\nepochs: 2\n")
    done = run_chuk("config", "check", "x.yaml")
    assert (done.returncode, done.stdout) == (
        0,
        "x.yaml: 2 settings of chuk train sft, all in order\n",
    )
    found = json.loads(run_chuk("config", "check", "x.yaml", "--json").stdout)
    assert found["settings"]["learning_rate"] == {"value": 1e-5, "origin": "x.yaml:1"}


def test_cp_makes_a_copy_and_keeps_what_is_there(run_chuk: RunChuk, tmp_path: Path) -> None:
    shipped = (ROOT / "training_config" / "sft.yaml").read_text()
    assert run_chuk("config", "cp", "sft", "mine.yaml", "-q").stdout == "mine.yaml\n"
    assert (tmp_path / "mine.yaml").read_text() == shipped
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    assert run_chuk("config", "cp", "sft", "mine.yaml").returncode == 2
    assert (tmp_path / "mine.yaml").read_text() == "seed: 1\n"
    assert run_chuk("config", "cp", "sft", "mine.yaml", "--overwrite").returncode == 0
    assert run_chuk("config", "cp", "tiny/sft.yaml", ".", "-q").stdout == "sft.yaml\n"


def test_migrate_writes_a_file_that_passes_the_check(run_chuk: RunChuk, tmp_path: Path) -> None:
    shown = run_chuk("config", "migrate", "legacy/finetune.yaml")
    assert yaml.safe_load(shown.stdout)["lr_scheduler_type"] == "cosine_with_min_lr"
    assert "not taken over: batch.file_prefix (line " in shown.stderr
    made = json.loads(
        run_chuk("config", "migrate", "legacy/finetune.yaml", "-o", "new.yaml", "--json").stdout
    )
    assert made["settings"]["min_lr_rate"] == 0.1
    assert {"key", "line", "reason", "hint"} == set(made["left"][0])
    assert (tmp_path / "new.yaml").read_text() == shown.stdout
    done = run_chuk("config", "check", "new.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert run_chuk("config", "migrate", "legacy/finetune.yaml", "-o", "new.yaml").returncode == 2


def test_check_knows_the_command_from_the_first_comment_or_from_for(
    run_chuk: RunChuk, tmp_path: Path
) -> None:
    (tmp_path / "x.yaml").write_text("# chuk train dpo --config x.yaml\nbeta: 0.2\n")
    assert "1 settings of chuk train dpo" in run_chuk("config", "check", "x.yaml").stdout
    done = run_chuk("config", "check", "x.yaml", "--for", "sft")
    assert (done.returncode, "`beta`" in done.stderr) == (2, True)
    (tmp_path / "p.yaml").write_text("stages:\n  - kind: sft\n    learning_rat: 1\n")
    done = run_chuk("config", "check", "p.yaml", "--for", "pipeline")
    assert (done.returncode, "p.yaml:3" in done.stderr) == (2, True)
    done = run_chuk("config", "check", "x.yaml", "--for", "dop")
    assert (done.returncode, "`--for dop`" in done.stderr) == (2, True)


def test_show_every_training_command(run_chuk: RunChuk) -> None:
    for algorithm in ("dpo", "grpo", "ppo", "reward"):
        assert "learning_rate" in json.loads(run_chuk("config", "show", algorithm, "--json").stdout)
