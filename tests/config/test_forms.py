"""Settings files that people bring from other tools: known by their keys, translated, run, and told
about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from chuk_lib.config.forms import FORMS, form_of, translated
from chuk_lib.config.forms.form import migrated
from chuk_lib.config.settings import settings_of
from chuk_lib.config.yaml_lines import read_entries
from chuk_lib.errors import ConfigError
from chuk_lib.training.recipes import RECIPES, config_class
from tests.conftest import ROOT, RunChuk

BROUGHT = ROOT / "tests" / "fixtures" / "brought"
FILES = sorted(path.stem for path in BROUGHT.glob("*.yaml") if "refused" not in path.stem)
CHAT = {"messages": [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]}
ANSWER = {"prompt": "1+1=", "completion": "2"}
PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
MEANT: dict[str, dict[str, Any]] = {
    "mlx-lm-lora": {
        "optimizer": "adamw",
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-6,
        "weight_decay": 0.05,
        "max_steps": 3,
        "use_lora": True,
        "lora_rank": 4,
        "lora_alpha": 80.0,
        "lr_scheduler_type": "cosine_with_min_lr",
        "min_lr_rate": 0.1,
        "warmup_steps": 1,
        "learning_rate": 1e-4,
        "max_length": 256,
        "seed": 7,
        "completion_only_loss": False,
        "max_grad_norm": 0.0,
    },
    "mlx-lm-full": {
        "use_lora": False,
        "max_steps": 2,
        "batch_size": 4,
        "completion_only_loss": True,
        "learning_rate": 1e-5,
        "optimizer": "adam",
        "lr_scheduler_type": "constant",
    },
    "mlx-lm-lora-dpo": {
        "use_lora": True,
        "lora_alpha": 160.0,
        "lora_target_modules": ["all-linear"],
        "beta": 0.2,
        "loss_type": "hinge",
        "max_steps": 2,
    },
    "trl-sft": {
        "use_lora": True,
        "lora_rank": 16,
        "lora_alpha": 32.0,
        "gradient_accumulation_steps": 2,
        "min_lr_rate": 0.1,
        "batch_size": 2,
        "log_interval": 1,
        "checkpoint_interval": 100,
    },
    "trl-dpo": {
        "beta": 0.05,
        "loss_type": "ipo",
        "batch_size": 2,
        "max_steps": 2,
        "log_interval": 1,
    },
    "axolotl-lora": {
        "use_lora": True,
        "lora_alpha": 8.0,
        "batch_size": 2,
        "format": "messages",
        "max_length": 256,
        "optimizer": "adamw",
        "lr_scheduler_type": "cosine",
        "assistant_only_loss": True,
    },
    "axolotl-dpo": {"loss_type": "ipo", "beta": 0.2, "max_length": 256, "batch_size": 2},
    "llama-factory-sft": {
        "use_lora": True,
        "lora_alpha": 8.0,
        "max_length": 256,
        "learning_rate": 1e-4,
        "lora_target_modules": ["q_proj", "v_proj"],
        "assistant_only_loss": True,
    },
    "llama-factory-dpo": {
        "use_lora": False,
        "beta": 0.2,
        "loss_type": "sigmoid",
        "learning_rate": 5e-6,
    },
    "unsloth": {
        "use_lora": True,
        "lora_rank": 4,
        "lora_alpha": 8.0,
        "seed": 3407,
        "gradient_checkpointing": True,
        "max_length": 256,
    },
}
"""What a file means in chuk's settings, written down from each tool's documentation."""


def brought(name: str, folder: Path, model: Path | str = "some/model") -> Path:
    """A fixture with its places filled in, and data of its kind beside it."""
    rows = PAIR if "dpo" in name else ANSWER if name == "mlx-lm-full" else CHAT
    (folder / "rows.jsonl").write_text(f"{json.dumps(rows)}\n" * 8, encoding="utf-8")
    text = (BROUGHT / f"{name}.yaml").read_text(encoding="utf-8")
    path = folder / f"{name}.yaml"
    path.write_text(
        text.replace("MODEL", str(model)).replace("DATA", "rows.jsonl").replace("OUT", "run"),
        "utf-8",
    )
    return path


def command_of(name: str) -> str:
    return "dpo" if "dpo" in name else "sft"


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_means(name: str, tmp_path: Path) -> None:
    found = translated(brought(name, tmp_path), config_class(command_of(name)), command_of(name))
    assert found is not None
    values = found.values()
    assert {key: values[key] for key in MEANT[name]} == MEANT[name]
    assert not [item.entry.name for item in found.left if item.hint]


@pytest.mark.parametrize("name", FILES)
def test_it_runs_as_it_was_brought(
    name: str, run_chuk: RunChuk, tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = brought(name, tmp_path, tiny_model_dir)
    told = [
        word
        for word in ("mlx-lm", "axolotl", "LLaMA-Factory", "unsloth", "TRL")
        if word.lower() in name
    ]
    done = run_chuk("train", command_of(name), "--config", path.name)
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    assert told[0] in done.stderr, done.stderr
    origins = json.loads((tmp_path / "run" / "origins.json").read_text(encoding="utf-8"))
    assert any(f"{path.name}:" in origin for origin in origins.values())
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text("utf-8"))["max_steps"] in (
        2,
        3,
    )


@pytest.mark.parametrize("name", FILES)
def test_a_migrated_file_is_chuk_s_own_and_means_the_same(
    name: str, run_chuk: RunChuk, tmp_path: Path
) -> None:
    path = brought(name, tmp_path)
    found = translated(path, config_class(command_of(name)), command_of(name))
    assert found is not None
    done = run_chuk("config", "migrate", path.name, "--for", command_of(name), "-o", "new.yaml")
    assert done.returncode == 0, done.stderr
    new = tmp_path / "new.yaml"
    assert new.read_text("utf-8") == migrated(found)
    assert form_of(read_entries(new)) is None
    assert yaml.safe_load(new.read_text("utf-8")) == found.values()
    assert all(f"{item.entry.name}: " in new.read_text("utf-8") for item in found.left)
    checked = run_chuk("config", "check", "new.yaml")
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stderr


def test_all_that_cannot_be_taken_is_named_at_once(run_chuk: RunChuk, tmp_path: Path) -> None:
    brought("axolotl-refused", tmp_path)
    done = run_chuk("train", "sft", "--config", "axolotl-refused.yaml")
    assert done.returncode == 2
    assert "axolotl-refused.yaml:2" in done.stderr
    for name in ("`datasets`", "`optimizer`", "`evals_per_epoch`", "`deepspeed`"):
        assert name in done.stderr.replace("`datasets: [", "`datasets` ["), name
    assert not (tmp_path / "runs").exists()


TRL_DEFAULTS = json.loads((BROUGHT / "trl-defaults.json").read_text("utf-8"))
"""Every field of TRL 1.16's ScriptArguments, ModelConfig and config classes with its default
(`all`: of all five)."""


@pytest.mark.parametrize("command", [name for name in TRL_DEFAULTS if name != "all"])
def test_a_file_with_every_name_of_trl_at_its_default_is_taken(
    tmp_path: Path, command: str
) -> None:
    from chuk_cli.settings import resolve_settings

    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({**TRL_DEFAULTS["all"], **TRL_DEFAULTS[command]}), "utf-8")
    cls = config_class(command)
    found = translated(path, cls, command)
    assert found is not None
    assert found.form.name == "TRL"
    assert not [(item.entry.name, item.hint) for item in found.left if item.hint]
    value = resolve_settings(cls, [path]).value
    assert (value.batch_size, value.seed, value.learning_rate) == (8, 42, cls.usual_rates[0])


ANOTHER_RUN = {
    "optim_args": "rank=4",
    "eval_delay": "10",
    "eos_token": "<|im_end|>",
    "truncation_mode": "keep_end",
    "train_sampling_strategy": "batch_rebalance",
    "lora_modules_to_save": "[lm_head]",
    "model_init_kwargs": "{dtype: float16}",
    "chat_template_path": "other.jinja",
    "resume_from_checkpoint": "o/checkpoint-5",
}


@pytest.mark.parametrize(("name", "value"), ANOTHER_RUN.items(), ids=ANOTHER_RUN)
def test_what_would_make_another_run_of_a_trl_file_is_refused(
    tmp_path: Path, name: str, value: str
) -> None:
    from chuk_cli.settings import resolve_settings

    path = tmp_path / "x.yaml"
    path.write_text(
        f"bf16: false\nmodel_name_or_path: m\nlogging_steps: 5\n{name}: {value}\n", "utf-8"
    )
    with pytest.raises(ConfigError, match=f"x.yaml:4`: `{name}: .* is not supported"):
        resolve_settings(config_class("sft"), [path])


@pytest.mark.parametrize(
    "name", ["label_smoothing_factor", "neftune_noise_alpha", "router_aux_loss_coef"]
)
def test_what_sft_alone_has_is_taken_there_and_refused_elsewhere(tmp_path: Path, name: str) -> None:
    from chuk_cli.settings import resolve_settings

    path = tmp_path / "x.yaml"
    path.write_text(f"bf16: false\noutput_dir: m\nlogging_steps: 5\n{name}: 0.1\n", "utf-8")
    assert getattr(resolve_settings(config_class("sft"), [path]).value, name) == 0.1
    with pytest.raises(ConfigError, match=f"x.yaml:4`: `{name}: .* is not supported"):
        resolve_settings(config_class("dpo"), [path])


def test_generation_kwargs_are_the_settings_of_sampling(tmp_path: Path) -> None:
    from chuk_cli.settings import resolve_settings

    path = tmp_path / "x.yaml"
    head = "bf16: false\noutput_dir: m\nlogging_steps: 5\ngeneration_kwargs: "
    path.write_text(f"{head}{{top_p: 0.9, max_new_tokens: 7}}\n", "utf-8")
    value = resolve_settings(config_class("grpo"), [path]).value
    assert (value.top_p, value.max_completion_length) == (0.9, 7)
    path.write_text(f"{head}{{typical_p: 0.9}}\n", "utf-8")
    with pytest.raises(ConfigError, match=r"generation_kwargs\.typical_p"):
        resolve_settings(config_class("grpo"), [path])


def test_the_order_of_rows_is_trl_s(tmp_path: Path) -> None:
    head = "bf16: false\nmodel_name_or_path: m\nlogging_steps: 5\n"
    for value, meant in (
        ("random", {}),
        ("sequential", {"shuffle": False}),
        ("group_by_length", {"group_by_length": 1}),
    ):
        (tmp_path / "x.yaml").write_text(f"{head}train_sampling_strategy: {value}\n", "utf-8")
        found = translated(tmp_path / "x.yaml", config_class("sft"), "sft")
        assert found is not None
        assert {
            name: found.values()[name]
            for name in ("shuffle", "group_by_length")
            if name in found.values()
        } == meant


LEARNED = {
    "axolotl": (
        "base_model: m\ndatasets: [{path: d, type: chat_template}]\n",
        "sft",
        {"assistant_only_loss": True},
    ),
    "axolotl alpaca": (
        "base_model: m\ndatasets: [{path: d, type: alpaca}]\n",
        "sft",
        {"assistant_only_loss": None},
    ),
    "factory": ("finetuning_type: full\nstage: sft\n", "sft", {"assistant_only_loss": True}),
    "factory, prompts too": (
        "finetuning_type: full\nstage: sft\ntrain_on_prompt: true\n",
        "sft",
        {"assistant_only_loss": None, "completion_only_loss": False},
    ),
    "factory, plain text": (
        "finetuning_type: full\nstage: pt\n",
        "sft",
        {"assistant_only_loss": None},
    ),
    "factory, SimPO": (
        "finetuning_type: full\nstage: dpo\npref_loss: simpo\n",
        "cpo",
        {"loss_type": "simpo", "cpo_alpha": 0.0},
    ),
}
"""What is learned where a file does not say it: the answers of a chat, and SimPO without supervised
loss."""


@pytest.mark.parametrize(("text", "command", "meant"), LEARNED.values(), ids=LEARNED)
def test_what_is_learned_is_what_the_tool_learns(
    tmp_path: Path, text: str, command: str, meant: dict[str, Any]
) -> None:
    (tmp_path / "x.yaml").write_text(text, "utf-8")
    found = translated(tmp_path / "x.yaml", config_class(command), command)
    assert found is not None
    assert {name: found.values().get(name) for name in meant} == meant


@pytest.mark.parametrize("extra", ["roles_to_train: [assistant, user]", "train_on_eos: last"])
def test_other_parts_of_a_chat_than_the_answers_are_refused(
    run_chuk: RunChuk, tmp_path: Path, extra: str
) -> None:
    rows = f"datasets: [{{path: d, type: chat_template, {extra}}}]"
    (tmp_path / "x.yaml").write_text(f"base_model: m\n{rows}\n", "utf-8")
    done = run_chuk("train", "sft", "--config", "x.yaml")
    assert done.returncode == 2
    assert f"leave `{extra.partition(':')[0]}` out" in done.stderr


def test_a_file_for_another_command_is_refused(run_chuk: RunChuk, tmp_path: Path) -> None:
    brought("axolotl-dpo", tmp_path)
    done = run_chuk("train", "sft", "--config", "axolotl-dpo.yaml")
    assert done.returncode == 2
    assert "chuk train dpo --config axolotl-dpo.yaml" in done.stderr
    assert "41" not in run_chuk("config", "check", "axolotl-dpo.yaml").stderr


BAD = {
    "misspelt": (
        "fine_tune_type: lora\nlora_parameters: {rnak: 8}\n",
        ["`lora_parameters.rnak`", ":2"],
        "rank",
    ),
    "kind": (
        "fine_tune_type: prefix\nval_batches: 2\n",
        ["`fine_tune_type: prefix`", ":1"],
        "lora, dora or full",
    ),
    "schedule": (
        "fine_tune_type: lora\nlr_schedule: {name: step_decay, arguments: [1e-4, 0.9, 10]}\n",
        [":2"],
        "lr_scheduler_type",
    ),
    "length": (
        (
            "fine_tune_type: lora\niters: 100\nlr_schedule: {name: cosine_decay, arguments: [1e-4,"
            " 50]}\n"
        ),
        [":3"],
        "100",
    ),
    "no number": ("base_model: m\nlearning_rate: fast\n", ["learning_rate", ":2", "fast"], ""),
    "stage": ("stage: pretrain\ntemplate: x\ncutoff_len: 8\n", ["`stage: pretrain`", ":1"], "sft"),
}


@pytest.mark.parametrize(("text", "parts", "hint"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_told_with_file_and_line(
    run_chuk: RunChuk, tmp_path: Path, text: str, parts: list[str], hint: str
) -> None:
    (tmp_path / "x.yaml").write_text(text, "utf-8")
    done = run_chuk("train", "sft", "--config", "x.yaml")
    assert done.returncode == 2
    assert all(part in done.stderr for part in parts), done.stderr
    assert hint in done.stderr, done.stderr


def test_defaults_of_a_tool_give_way_to_whatever_is_given(
    run_chuk: RunChuk, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("max_length: 77\n", "utf-8")
    (tmp_path / "mlx.yaml").write_text(
        "fine_tune_type: lora\nlearning_rate: 3e-4\nval_batches: 1\n", "utf-8"
    )
    given = ["--config", "own.yaml", "--config", "mlx.yaml", "--batch-size", "3"]
    done = run_chuk("train", "sft", *given, "--model", "m", "--data", "d", "--dry-run", "--json")
    assert done.returncode != 0, "there is no such model"
    from chuk_cli.settings import resolve_settings

    found = resolve_settings(config_class("sft"), [tmp_path / "own.yaml", tmp_path / "mlx.yaml"])
    assert (found.value.max_length, found.value.batch_size, found.value.learning_rate) == (
        77,
        4,
        3e-4,
    )
    assert found.origins["batch_size"] == "mlx-lm's default"


def test_every_key_of_every_form_has_a_setting_or_a_reason() -> None:
    settings = {name for command in RECIPES for name in settings_of(config_class(command))}
    for form in FORMS:
        for name, keys in {**form.table, **form.others}.items():
            for key in keys:
                assert key.setting in settings if key.setting else key.reason, (form.name, name)


def test_shipped_files_have_chuk_s_own_form_or_the_old_one() -> None:
    from chuk_lib.config import files

    forms = {item.name: form_of(read_entries(item.path)) for item in files.shipped()}
    assert {name for name, form in forms.items() if form} == {
        n for n in forms if n.startswith("legacy/")
    }


def test_every_form_refuses_an_unknown_key(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    marks = {
        "mlx-lm": "fine_tune_type: lora",
        "axolotl": "base_model: m",
        "LLaMA-Factory": "finetuning_type: lora",
        "unsloth": "random_state: 1",
        "TRL": "bf16: true\noutput_dir: o\nsave_steps: 5\nlogging_steps: 5",
    }
    for form, text in marks.items():
        path.write_text(f"{text}\nno_such_key: 1\n", "utf-8")
        found = form_of(read_entries(path))
        assert found is not None
        assert found.name == form
        with pytest.raises(ConfigError, match="no_such_key"):
            translated(path, config_class("sft"), "sft")


@pytest.mark.parametrize("name", ["fine_tune_type", "train_type"])
def test_full_weights_take_nothing_of_adapters(
    name: str, run_chuk: RunChuk, tmp_path: Path
) -> None:
    """In mlx-lm and in mlx-lm-lora, each by its own word."""
    (tmp_path / "x.yaml").write_text(
        f"{name}: full\nval_batches: 1\nlora_parameters: {{rank: 4, scale: 5.0}}\n", "utf-8"
    )
    found = translated(tmp_path / "x.yaml", config_class("sft"), "sft")
    assert found is not None
    assert not [setting for setting in found.values() if setting.startswith("lora_")]
    assert found.values()["use_lora"] is False
    done = run_chuk("config", "check", "x.yaml")
    assert done.returncode == 0, done.stderr
