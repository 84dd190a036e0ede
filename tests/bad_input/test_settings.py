"""Command lines and configuration files that are wrong: exit 2, the option or line, and the nearest
right one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chuk_cli.app import run
from tests.bad_input.conftest import Fails

TRAIN = "train sft -m good -d good.jsonl -o out"
OPTIONS = [
    ("--learning-rat 1", "No such option: --learning-rat", "chuk train sft --help"),
    (
        "--learning-rate abc",
        "`learning_rate` (--learning-rate) should be a number, not `abc`",
        "Peak learning rate",
    ),
    (
        "--learning-rate nan",
        "(--learning-rate) should be a finite number, not `nan`",
        "Peak learning rate",
    ),
    (
        "--learning-rate inf",
        "(--learning-rate) should be a finite number, not `inf`",
        "Peak learning rate",
    ),
    ("--learning-rate -1", "should be above 0, not `-1.0`", "Peak learning rate"),
    (
        "--batch-size 0",
        "`batch_size` (--batch-size) should be at least 1, not `0`",
        "Rows in one micro-batch",
    ),
    ("--batch-size 2.5", "should be a whole number, not `2.5`", "Rows in one micro-batch"),
    ("--max-steps 0", "`max_steps` (--max-steps) should be at least 1, not `0`", "Stop after"),
    ("--seed 99999999999", "`seed` (--seed) should be at most 4294967295", "Seed of"),
    ("--optimizer adamx", "should be one of adamw, adam, sgd", "did you mean `adam`?"),
    ("--lr-scheduler-type cosin", "should be one of constant", "did you mean `cosine`?"),
    ("--set lr=abc", "`learning_rate` (--set) should be a number, not `abc`", "Peak learning rate"),
    ("--set batchsize=3", "unknown setting `batchsize` in --set", "did you mean `batch_size`?"),
    ("--set zzz=3", "unknown setting `zzz` in --set", "chuk config show sft"),
    ("--set seed", "`--set seed` is not KEY=VALUE", "--set max_grad_norm=0.5"),
    ("--set packing=maybe", "should be true or false, not `maybe`", "Put several rows into one"),
    ("--max-length none --packing", "packing needs a max_length", "leave packing off"),
    (
        "--lora --lora-targets q_prj",
        "no module matches `q_prj`",
        "did you mean `q_proj`? the model has embed_tokens",
    ),
    (
        "--lora --lora-targets zzz*",
        "no module matches `zzz*`",
        "the model has embed_tokens (1), down_proj (2)",
    ),
    ("--set num_layers=99", "`num_layers` is 99, the model has 2 blocks", "use 1 to 2"),
    ("--lora --set num_layers=99", "`num_layers` is 99, the model has 2 blocks", "use 1 to 2"),
    ("--lora-rank 4", "`lora_rank` does nothing without use_lora", "leave `lora_rank` out"),
    ("--set early_stopping_patience=2", "early stopping has no validation data", "--eval-data"),
    ("extra", "unexpected extra argument", "chuk train sft --help"),
]


@pytest.mark.parametrize(("options", "says", "hint"), OPTIONS, ids=[case[0] for case in OPTIONS])
def test_wrong_settings(fails: Fails, options: str, says: str, hint: str) -> None:
    fails(f"{TRAIN} {options}", 2, says, hint)


YAML = {
    "broken.yaml": (
        b"model: good\n  data: x\n",
        "`broken.yaml` line 2: mapping values",
        "indentation",
    ),
    "unknown.yaml": (
        b"model: good\nlearning_rte: 1\n",
        "unknown setting `learning_rte` in unknown.yaml:2",
        "did you",
    ),
    "list.yaml": (b"- a\n- b\n", "`list.yaml` holds no settings", "`name: value`"),
    "twice.yaml": (
        b"seed: 1\nseed: 2\n",
        "`twice.yaml` line 2: `seed` is already set in line 1",
        "keep one",
    ),
    "section.yaml": (
        b"training:\n  lrr: 1\n",
        "unknown setting `training.lrr` in section.yaml:2",
        "the old section",
    ),
    "type.yaml": (
        b"batch_size: many\n",
        "`batch_size` (type.yaml:1) should be a whole number, not `many`",
        "Rows in",
    ),
    "none.yaml": (b"seed:\n", "`seed` (none.yaml:1) needs a value", "Seed of"),
    "key.yaml": (
        b"? [1, 2]\n: 3\n",
        "`[1, 2]` (key.yaml:1) is no name of a setting",
        "`name: value`",
    ),
    "latin.yaml": (b"model: caf\xe9\n", "`latin.yaml` is not UTF-8 text", "YAML file"),
    "code.yaml": (
        b"model: !!python/object/apply:os.getcwd []\n",
        "`code.yaml` line 1: could not determine",
        "quotes",
    ),
    "tab.yaml": (b"\tseed: 1\n", "`tab.yaml` line 1: found character", "indentation"),
}


@pytest.fixture(scope="module")
def configs(bench: Path) -> None:
    """All the broken configuration files."""
    for name, (content, *_) in YAML.items():
        (bench / name).write_bytes(content)


@pytest.mark.parametrize("name", YAML)
@pytest.mark.usefixtures("configs")
def test_wrong_configuration_files(fails: Fails, name: str) -> None:
    _, says, hint = YAML[name]
    fails(f"{TRAIN} --config {name}", 2, says, hint)


def test_configuration_files_that_cannot_be_read(fails: Fails) -> None:
    fails(
        f"{TRAIN} --config no.yaml", 2, "`no.yaml` is neither a file nor a name", "chuk config ls"
    )
    fails(f"{TRAIN} --config empty", 2, "cannot read `empty`: is a directory", "check `--config`")


COMMANDS = [
    ("train sft", "no model given", "--model"),
    ("train sft -m good", "no data given", "--data"),
    ("train stf", "No such command 'stf'. Did you mean 'sft'?", "chuk train --help"),
    ("trian", "No such command 'trian'. Did you mean 'train'?", "chuk --help"),
    ("model info", "Missing argument 'MODEL'", "chuk model info --help"),
    ("infer -p x", "Missing option '--model'", "chuk infer --help"),
    (
        "infer -m good -p x --temperature -1",
        "temperature is -1.0, it must be 0 or more",
        "unset it is 0.0",
    ),
    (
        "infer -m good -p x --temperature nan",
        "temperature is nan, it must be 0 or more",
        "unset it is 0.0",
    ),
    (
        "infer -m good -p x --top-p 2",
        "top_p is 2.0, it must be above 0 and at most 1",
        "unset it is 1.0",
    ),
    ("infer -m good -p x -n 0", "max_tokens is 0, it must be 1 or more", "unset it is 512"),
    ("infer -m good -p x --seed -3", "seed is -3, it must be from 0 to 4294967295", "leave it out"),
    (
        "eval -m good -d good.jsonl --rows 0",
        "'--rows' / '-n': 0 is not in the range",
        "chuk eval --help",
    ),
    ("model create --preset nan -o m", "unknown preset `nan`", "did you mean `nano`?"),
    (
        "model create --preset nano -o m --vocab-size 3",
        "below the tokenizer's 262 tokens",
        "use 262 or more",
    ),
    (
        "model create --preset nano -o m --chat-template no.jinja",
        "cannot read chat template `no.jinja`",
        "chatml",
    ),
    (
        "model create --preset nano -o m --tokenizer char --tokenizer-data x",
        "either given or trained",
        "leave out",
    ),
    ("data generate-math -o m --types sums", "unknown problem type `sums`", "types: arithmetic"),
    ("data generate-math -o m --difficulty 9", "is not between 1 and 5", "`1-3`"),
    ("data generate-math -o m --difficulty x", "--difficulty `x` is no level", "`1-3`"),
    ("data generate-math -o m --format y", "unknown format `y`", "formats: completion"),
    ("data generate-math -o m --valid nan", "leave nothing to train on", "below 1"),
    ("data generate-math -o m --valid 0.9 --test 0.9", "leave nothing to train on", "below 1"),
    ("data generate-math -o m --samples 1", "1 samples are too few", "more samples"),
    (
        "data preview -m good -d good.jsonl --rows -1",
        "'--rows' / '-n': -1 is not in the range",
        "preview --help",
    ),
]


@pytest.mark.parametrize(("args", "says", "hint"), COMMANDS, ids=[case[0] for case in COMMANDS])
def test_wrong_command_lines(fails: Fails, args: str, says: str, hint: str) -> None:
    fails(args, 2, says, hint)


def test_more_problems_than_there_are(fails: Fails) -> None:
    args = "data generate-math -o m --types addition --difficulty 1 -n 100000"
    fails(args, 1, "only about 55 different problems", "fewer samples")


@pytest.mark.parametrize(
    "command", [TRAIN, "eval -m good -d good.jsonl", "model info good", "infer -m good -p x"]
)
@pytest.mark.usefixtures("fails")
def test_json_and_quiet_exclude_each_other(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command.split(), "--quiet", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["error"]["message"] == "`--json` and `--quiet` exclude each other"
