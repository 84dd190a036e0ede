"""Several sources, columns under other names, rows set aside: what is read, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from chuk_lib.config.data_parts import DataPart, parts_of
from chuk_lib.data.reader import has_split, read_records
from chuk_lib.data.sources import Sources, sources
from chuk_lib.errors import ConfigError, DataError
from tests.conftest import RunChuk


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, ask, answer in (("a", "prompt", "completion"), ("q", "question", "answer")):
        rows = [{ask: f"{name}{n}+1=", answer: f"{n + 1}"} for n in range(20)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("b.jsonl").write_text(Path("a.jsonl").read_text().replace("a", "b"))
    return tmp_path


def asked(source: str | Sources, split: str = "train") -> list[str]:
    return [record.columns["prompt"] for record in read_records(source, split)]


def test_a_text_names_one_source_or_several(files: Path) -> None:
    assert parts_of("a.jsonl,b.jsonl=0.3") == (DataPart("a.jsonl"), DataPart("b.jsonl", 0.3))
    assert sources("a.jsonl") == "a.jsonl"
    odd = files / "c,d=2"
    odd.write_text("{}")
    assert parts_of(str(odd)) == (DataPart(str(odd)),)
    for text, words in (("a.jsonl,b.jsonl=0", "no weight"), ("a.jsonl,-", "stdin")):
        with pytest.raises(ConfigError, match=words):
            parts_of(text)


def test_a_weight_is_how_often_each_row_is_taken(files: Path) -> None:
    rows = asked("a.jsonl,b.jsonl=0.3")
    assert rows[:20] == [f"a{n}+1=" for n in range(20)]
    assert len(rows) == 26
    assert len(set(rows)) == 26
    assert rows == asked("a.jsonl,b.jsonl=0.3")
    other = asked(Sources(parts_of("a.jsonl,b.jsonl=0.3"), seed=1))
    assert (other != rows, len(other)) == (True, 26)
    twice = asked("a.jsonl=2.5")
    assert sorted(map(twice.count, dict.fromkeys(twice))) == [2] * 10 + [3] * 10


def test_rows_set_aside_are_measured_and_never_learned(files: Path) -> None:
    for size, count in ((0.25, 10), (7, 7)):
        made = Sources(parts_of("a.jsonl=2,b.jsonl"), val_size=size, seed=3)
        assert has_split(made, "valid")
        train, valid = asked(made), asked(made, "valid")
        assert len(valid) == len(set(valid)) == count
        assert set(train) | set(valid) == set(asked("a.jsonl,b.jsonl"))
        assert not set(train) & set(valid)
    with pytest.raises(DataError, match="leaves no row"):
        asked(Sources(parts_of("a.jsonl"), val_size=20))


def test_columns_go_by_other_names_or_are_refused_with_the_row(files: Path) -> None:
    made = sources("q.jsonl", ("prompt=question", "completion=answer"))
    assert next(iter(read_records(made))).columns == {"prompt": "q0+1=", "completion": "1"}
    with pytest.raises(DataError, match=r"`a.jsonl` line 1 has no `question`"):
        asked(sources("a.jsonl", ("prompt=question",)))
    with pytest.raises(DataError, match=r"has a `completion` already"):
        asked(sources("a.jsonl", ("completion=prompt",)))
    for columns in (("prompt",), ("prompt=a", "prompt=b"), ("prompt=a", "text=a")):
        with pytest.raises(ConfigError, match="is no NAME=COLUMN of its own"):
            sources("a.jsonl", columns)


def test_every_command_sees_the_rows_that_training_learns(
    run_chuk: RunChuk, files: Path, tiny_model_dir: Path
) -> None:
    words = ["-d", "a.jsonl", "-d", "q.jsonl=0.5"]
    Path("q.jsonl").write_text(Path("a.jsonl").read_text().replace("a", "q"))
    shown = run_chuk("data", "preview", *words, "-m", tiny_model_dir, "--json")
    plan = run_chuk("train", "sft", *words, "-m", tiny_model_dir, "--dry-run", "--json")
    told = run_chuk("data", "stats", "a.jsonl,q.jsonl=0.5", "--json")
    assert json.loads(shown.stdout)["rows"] == 30, shown.stderr
    assert json.loads(plan.stdout)["data"]["rows"] == 30, plan.stderr
    assert json.loads(told.stdout)["rows"] == 30, told.stderr
    mapped = ["--map", "prompt=completion", "--map", "completion=prompt"]
    done = run_chuk("data", "check", "a.jsonl", *mapped, "--json")
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == {"a.jsonl": 20}


def test_a_mixed_run_resumes_bit_for_bit(
    run_chuk: RunChuk, files: Path, tiny_model_dir: Path
) -> None:
    words = [
        *("train", "sft", "-m", tiny_model_dir, "-d", "a.jsonl", "-d", "b.jsonl=0.5"),
        *("--val-size", "0.2", "--batch-size", "4", "--learning-rate", "1e-3", "-q"),
        *("--eval-steps", "2", "--lr-scheduler-type", "constant"),
    ]
    for name, steps in (("whole", 6), ("parts", 3)):
        done = run_chuk(*words, "-o", name, "--max-steps", str(steps))
        assert done.returncode == 0, done.stderr
    done = run_chuk("train", "resume", "parts", "--max-steps", "6", "-q")
    assert done.returncode == 0, done.stderr
    digests = {
        hashlib.sha256(
            (files / name / "checkpoints" / "step_000006" / "model.safetensors").read_bytes()
        ).digest()
        for name in ("whole", "parts")
    }
    assert len(digests) == 1
    config = yaml.safe_load((files / "whole" / "config.yaml").read_text())
    assert config["data"] == f"{files / 'a.jsonl'},{files / 'b.jsonl'}=0.5"
    events = (files / "whole" / "events.jsonl").read_text()
    assert '"eval_loss"' in events
    refused = run_chuk(*words, "--eval-data", "b.jsonl", "-o", "no")
    assert (refused.returncode, "`val_size` does nothing" in refused.stderr) == (2, True)


@pytest.mark.parametrize("names", [("question", "answer"), ("problem", "solution")])
def test_questions_with_answers_are_turns(
    run_chuk: RunChuk, files: Path, tiny_model_dir: Path, names: tuple[str, str]
) -> None:
    """The same ids and masks as of prompts with responses, which is what their fingerprint says."""
    for name, columns in (("x", names), ("y", ("prompt", "response"))):
        row = dict(zip(columns, ("1+1=", "2"), strict=True))
        Path(f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    told = [
        run_chuk("data", "preview", f"{name}.jsonl", "-m", tiny_model_dir, "-q").stdout
        for name in "xy"
    ]
    assert told[0] == told[1] != ""
    done = run_chuk("data", "convert", "x.jsonl", "--to", "prompt_completion", "-o", "-")
    assert json.loads(done.stdout)["prompt"] in ("1+1=", [{"role": "user", "content": "1+1="}])


def test_what_axolotl_llama_factory_and_trl_say_of_data_is_chuks(files: Path) -> None:
    from chuk_cli.settings import resolve_settings
    from chuk_lib.training.config import SFTConfig

    brought = {
        "datasets: [{path: a.jsonl, type: alpaca}, {path: o/n, split: s, type: alpaca}]\n"
        "base_model: m\nval_set_size: 0.05": ("a.jsonl,o/n#s", 0.05),
        "dataset: a.jsonl, b\nval_size: 0.1\ncutoff_len: 64\nstage: sft": (
            "a.jsonl,data/b.json",
            0.1,
        ),
        "dataset_name: o/n\ndataset_config: main\ndataset_train_split: train_sft\n"
        "output_dir: x\nlogging_steps: 5\nbf16: true": ("o/n:main#train_sft", 0.0),
    }
    for text, expected in brought.items():
        path = Path("brought.yaml")
        path.write_text(text)
        value = resolve_settings(SFTConfig, [path]).value
        assert (value.data.replace(f"{files}/", ""), value.val_size) == expected
