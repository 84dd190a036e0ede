"""Whether a run fits the GPU: what is chosen where nobody chose, and what is said where somebody
did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import mac
from chuk_lib.models import create_model
from chuk_lib.training.online.ppo_config import PPOConfig
from chuk_lib.training.planning.room import rows_of_data
from tests.conftest import ROOT

LONG = 700
PAIR = {"prompt": "a" * (LONG // 2), "chosen": "b" * (LONG // 2), "rejected": "c" * (LONG // 2)}
DATA: dict[str, dict[str, str]] = {
    "sft": {"prompt": "a" * (LONG // 2), "completion": "b" * (LONG // 2)},
    "dpo": PAIR,
    "grpo": {"prompt": "a" * LONG},
}
MORE = {"grpo": ("--reward", "length:max=4", "--max-completion-length", "4")}
SIZES = (
    "batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "checkpointing_blocks",
)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that reads rows of a thousand tokens."""
    return Path(
        create_model("nano", tmp_path_factory.mktemp("long") / "model", context_length=1024)
    )


@pytest.fixture
def train(run_chuk: Any, long_model: Path, tmp_path: Path, pretend_mac: Any) -> Any:
    """`train(command, *options)` on a Mac of 1 GB, whose GPU may take 0.6 GiB."""
    variables = pretend_mac("1")

    def run(command: str, *options: Any) -> Any:
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(DATA[command]) + "\n" for _ in range(16)))
        given = (
            "--model",
            long_model,
            "--data",
            data,
            "--output",
            tmp_path / "run",
            "--lora",
            "--max-steps",
            1,
        )
        done = run_chuk(
            "train", command, *given, *MORE.get(command, ()), *options, env=variables, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


def settings(run: Path) -> tuple[dict[str, Any], dict[str, str]]:
    import yaml

    return yaml.safe_load((run / "config.yaml").read_text()), json.loads(
        (run / "origins.json").read_text()
    )


@pytest.mark.parametrize("command", DATA)
def test_where_nobody_chose_a_run_takes_what_fits(train: Any, tmp_path: Path, command: str) -> None:
    planned = json.loads(train(command, "--dry-run", "--json").stdout)
    said = train(command).stderr
    assert (
        "a run may take 0.6 GiB (nine tenths of what macOS recommends for the GPU); so it runs"
        " about" in said
    )
    config, origins = settings(tmp_path / "run")
    rows = config["batch_size"] * config["gradient_accumulation_steps"]
    assert rows == (256 if command == "grpo" else 8)
    assert config["batch_size"] < (64 if command == "grpo" else 8)
    assert origins["batch_size"] == "auto: what fits the GPU"
    assert {name: planned["settings"][name]["value"] for name in SIZES} == {
        name: config[name] for name in SIZES
    }
    assert planned["settings"]["batch_size"]["origin"] == "auto: what fits the GPU"
    assert any("so it runs about" in note for note in planned["notes"])


@pytest.mark.parametrize("command", ["sft", "dpo", "grpo"])
def test_what_somebody_chose_stays_with_a_word(train: Any, tmp_path: Path, command: str) -> None:
    size = 32 if command == "grpo" else 8
    said = train(
        command, "--batch-size", size, *(("--set", "generation_batch_size=32") if size > 8 else ())
    ).stderr
    assert "would fit, and learn the same" in said
    config, origins = settings(tmp_path / "run")
    assert (config["batch_size"], origins["batch_size"]) == (size, "--batch-size")


def test_a_value_model_of_its_own_doubles_the_work() -> None:
    config = PPOConfig(rewards=("exact_match",), use_lora=True)
    assert rows_of_data(config, 500).models == 1
    assert rows_of_data(replace(config, value_model="copy"), 500).models == 2


def test_a_run_that_goes_on_keeps_its_sizes(
    train: Any, run_chuk: Any, tmp_path: Path, pretend_mac: Any
) -> None:
    train("sft")
    before = settings(tmp_path / "run")[0]
    done = run_chuk("train", "resume", tmp_path / "run", "--max-steps", 2, env=pretend_mac("1"))
    assert done.returncode == 0, done.stderr
    after = settings(tmp_path / "run")[0]
    assert {name: after[name] for name in SIZES} == {name: before[name] for name in SIZES}


def test_on_a_cpu_and_where_there_is_room_nothing_is_chosen(
    run_chuk: Any, long_model: Path, tmp_path: Path, pretend_mac: Any
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(DATA["sft"]) + "\n" for _ in range(8)))
    given = ("train", "sft", "--model", long_model, "--data", data, "--lora", "--max-steps", 1)
    for name, variables in (("cpu", {"CHUK_DEVICE": "cpu"}), ("mac", pretend_mac("64"))):
        done = run_chuk(*given, "--output", tmp_path / name, env=variables)
        assert done.returncode == 0, done.stderr
        assert settings(tmp_path / name)[0]["batch_size"] == 8
        assert "may take" not in done.stderr


CAN = {
    ("8", "1B bfloat16"): True,
    ("8", "3B 4-bit"): True,
    ("8", "8B 4-bit"): False,
    ("16", "1B bfloat16"): True,
    ("16", "3B 4-bit"): True,
    ("16", "8B 4-bit"): True,
}
"""Where LoRA on rows of 1,024 tokens can be had; larger Macs have room for all three."""


@pytest.mark.parametrize("size", mac.MACS)
@pytest.mark.parametrize("model", mac.SHAPES)
@pytest.mark.parametrize("command", mac.CONFIGS)
def test_defaults_fit_each_mac_that_can(
    size: str, model: str, command: str, pretend_mac: Any
) -> None:
    pretend_mac(size)
    room = mac.room_on(size, model, command)
    config = mac.CONFIGS[command]
    assert room.sizes.batch_size * room.sizes.gradient_accumulation_steps == (
        config.batch_size * config.gradient_accumulation_steps
    )
    if CAN.get((size, model), True):
        assert room.need <= room.budget
    else:
        assert "nothing fits: the smallest need is about" in room.warnings[0]


def test_the_page_has_the_table(pretend_mac: Any) -> None:
    assert "\n".join(mac.lines()) in (ROOT / "docs" / "mac.md").read_text(encoding="utf-8")
