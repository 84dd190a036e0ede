"""Where a setting's value comes from: defaults < files < CHUK_* < --set < flags."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from chuk_cli.settings import resolve_settings, with_settings
from chuk_lib.config.settings import Resolved
from chuk_lib.errors import ConfigError
from chuk_lib.training.config import SFTConfig
from tests.conftest import RunChuk


def seen_by_command(args: list[str], env: dict[str, str] | None = None) -> Resolved[SFTConfig]:
    """What a command with `with_settings` receives."""
    app = typer.Typer(add_completion=False)
    seen: list[Resolved[SFTConfig]] = []

    @app.command()
    @with_settings(SFTConfig)
    def command(settings: Resolved[SFTConfig], extra: bool = False) -> None:
        seen.append(settings)

    done = CliRunner().invoke(app, args, env=env, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return seen[0]


def config_file(folder: Path, text: str, name: str = "sft.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_each_layer_beats_the_one_below(tmp_path: Path) -> None:
    first = config_file(tmp_path, "batch_size: 2\n", "a.yaml")
    second = config_file(tmp_path, "# later\nbatch_size: 3\n", "b.yaml")
    args: list[str] = []
    env: dict[str, str] = {}
    layers = [
        ([], {}, 8, "default"),
        (["--config", str(first)], {}, 2, "a.yaml:1"),
        (["--config", str(second)], {}, 3, "b.yaml:2"),
        ([], {"CHUK_BATCH_SIZE": "4"}, 4, "CHUK_BATCH_SIZE"),
        (["--set", "batch_size=5"], {}, 5, "--set"),
        (["--batch-size", "6"], {}, 6, "--batch-size"),
    ]
    for more, variables, value, origin in layers:
        args, env = [*args, *more], {**env, **variables}
        settings = seen_by_command(args, env)
        assert (settings.value.batch_size, settings.origins["batch_size"]) == (value, origin)


def test_a_typed_flag_wins_even_when_it_says_the_default(tmp_path: Path) -> None:
    path = config_file(tmp_path, "batch_size: 2\nuse_lora: true\n")
    settings = seen_by_command(["--config", str(path), "--batch-size", "8", "--full"])
    assert (settings.value.batch_size, settings.value.use_lora) == (8, False)
    assert settings.origins["use_lora"] == "--full"


def test_switches_go_both_ways() -> None:
    assert seen_by_command(["--lora"]).value.use_lora is True
    assert seen_by_command(["--packing"]).value.packing is True
    assert seen_by_command(["--set", "packing=yes", "--no-packing"]).value.packing is False


def test_values_are_converted_by_declared_type(tmp_path: Path) -> None:
    path = config_file(
        tmp_path, "lr: 1e-5\nmax_length: none\nlora_target_modules: [q_proj, v_proj]\nepochs: 2\n"
    )
    config = resolve_settings(SFTConfig, [path]).value
    assert (config.learning_rate, config.max_length, config.num_epochs) == (1e-5, None, 2)
    assert config.lora_target_modules == ("q_proj", "v_proj")
    assert resolve_settings(
        SFTConfig, overrides=["lora-targets=a,b"]
    ).value.lora_target_modules == ("a", "b")


def test_an_alias_and_its_setting_are_one(tmp_path: Path) -> None:
    path = config_file(tmp_path, "lr: 1e-5\n")
    assert (
        resolve_settings(SFTConfig, [path], overrides=["learning_rate=2e-5"]).value.learning_rate
        == 2e-5
    )
    assert resolve_settings(SFTConfig, [path], {"CHUK_LR": "3e-5"}).value.learning_rate == 3e-5


def test_an_empty_variable_counts_as_unset() -> None:
    assert resolve_settings(SFTConfig, environment={"CHUK_SEED": ""}).origins["seed"] == "default"


def test_paths_in_a_file_are_beside_it_when_they_exist_there(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    path = config_file(
        tmp_path, "model: org/name\ndata: train.jsonl\noutput: runs/new\neval_data: '-'\n"
    )
    config = resolve_settings(SFTConfig, [path]).value
    assert config.data == str(tmp_path / "train.jsonl")
    assert (config.model, config.output, config.eval_data) == ("org/name", "runs/new", "-")


BAD_FILES = {
    "unknown": ("seed: 1\nlearning_rte: 1\n", ["`learning_rte`", "sft.yaml:2"], "learning_rate"),
    "section": ("trainer:\n  lr: 1\n", ["sft.yaml:1"], ""),
    "list": ("- a\n", ["holds no settings"], ""),
    "syntax": ("seed: 1\nbatch_size: [1\n", ["sft.yaml", "line"], ""),
    "tab": ("seed: 1\n\tlr: 1\n", ["line 2"], ""),
    "twice": ("seed: 1\nlr: 2\nseed: 3\n", ["line 3", "line 1"], ""),
    "type": ("batch_size: many\n", ["sft.yaml:1", "whole number", "many"], ""),
    "infinite": ("batch_size: .inf\n", ["sft.yaml:1", "whole number"], ""),
    "null": ("batch_size: null\n", ["needs a value"], ""),
    "tag": ("seed: !!python/object:os.system 1\n", ["line 1"], ""),
}


@pytest.mark.parametrize(("text", "parts", "hint"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_told_with_its_name_and_line(
    tmp_path: Path, text: str, parts: list[str], hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_settings(SFTConfig, [config_file(tmp_path, text)])
    assert all(part in caught.value.message for part in parts), caught.value.message
    assert hint in caught.value.hint


def test_an_empty_file_holds_no_settings(tmp_path: Path) -> None:
    assert set(
        resolve_settings(SFTConfig, [config_file(tmp_path, "# nothing\n")]).origins.values()
    ) == {"default"}


BAD_OPTIONS = {
    "not a number": (["--learning-rate", "abc"], ["learning_rate", "abc"]),
    "too small": (["--batch-size", "0"], ["batch_size", "at least 1"]),
    "not a choice": (["--optimizer", "adamm"], ["optimizer", "adamw"]),
    "unknown setting": (["--set", "warmup_step=3"], ["warmup_step", "warmup_steps"]),
    "no value": (["--set", "seed"], ["KEY=VALUE"]),
    "missing file": (["--config", "no.yaml"], ["no.yaml"]),
    "folder": (["--config", "."], ["."]),
    "no model": (["--data", "x"], ["--model"]),
    "no data": (["-m", "x"], ["--data"]),
    "unknown option": (["--learning-rte", "1"], ["--learning-rate"]),
    "both modes": (["--json", "--quiet", "-m", "x", "-d", "y"], ["--quiet"]),
}


@pytest.mark.parametrize(("args", "parts"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_a_bad_option_is_told_in_one_line(
    run_chuk: RunChuk, args: list[str], parts: list[str]
) -> None:
    done = run_chuk("train", "sft", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert all(part in done.stderr for part in parts), done.stderr
    if "--json" not in args:
        assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


def test_a_bad_variable_names_itself(run_chuk: RunChuk) -> None:
    done = run_chuk("train", "sft", env={"CHUK_MAX_STEPS": "soon"})
    assert done.returncode == 2
    assert "CHUK_MAX_STEPS" in done.stderr


def test_help_shows_true_defaults_and_setting_names(run_chuk: RunChuk) -> None:
    text = " ".join(run_chuk("train", "sft", "--help").stdout.split())
    assert "Rows in one micro-batch. [default: 8]" in text
    assert "Setting `use_lora`. [default: full]" in text
    assert "cosine_with_min_lr" in text
    assert "Examples: chuk train sft" in text
