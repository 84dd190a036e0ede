"""The predecessor's modules and commands under their old names, each as its users wrote it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, chuk_environment

MAP = ROOT / "tests" / "fixtures" / "predecessor" / "modules.txt"
ROWS = [line.split() for line in MAP.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
GONE = ("parameter_server.", "chuk.distributed")
NO_MLX_BESIDE = ("core.models.mlx_adapter", "core.utils.model_adapter", "chuk.utils.model_adapter")
TAKE = """
import importlib, json, sys, warnings
import chuk
found = {}
for module, *names in json.load(sys.stdin):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            made = importlib.import_module(module)
            values = [getattr(made, name) for name in names]
            found[module] = [str(one.message) for one in told], [v.__module__ for v in values]
        except ImportError as error:
            found[module] = str(error), None
json.dump(found, sys.stdout)
"""


def python(*words: str, cwd: Path, input: str = "") -> subprocess.CompletedProcess[str]:
    """A Python of its own, as a user starts it."""
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        input=input,
        env=chuk_environment(),
        timeout=120,
        check=False,
    )


def test_every_module_of_the_plan_is_where_the_plan_puts_it(tmp_path: Path) -> None:
    asked: dict[str, list[str]] = {}
    for old, new, *names in ROWS:
        for module in {old, new} - {"-"}:
            asked[module] = sorted({*asked.get(module, ()), *names})
    rows = [[module, *names] for module, names in asked.items()]
    done = python("-c", TAKE, cwd=tmp_path, input=json.dumps(rows))
    assert done.returncode == 0, done.stderr
    for module, (told, homes) in json.loads(done.stdout).items():
        if module.startswith(GONE) or module in NO_MLX_BESIDE:
            assert homes is None, module
            assert "` has no successor: " in told, told
            continue
        assert homes is not None, told
        assert all(home.startswith("chuk_lib.") for home in homes)
        assert len(told) == len(asked[module]), (module, told)
        assert all(line.startswith(f"`{module}.") and "is now: from " in line for line in told)


def test_every_name_of_the_table_leads_somewhere() -> None:
    import importlib

    from chuk.moved import MOVED

    for old, moved in MOVED.items():
        targets = {moved.target(name) for name in moved.names} if moved.home else set()
        for home, _, name in (target.rpartition(":") for target in targets):
            assert hasattr(importlib.import_module(home), name), (old, home, name)
        assert not moved.home or importlib.import_module(moved.home)


def test_one_warning_shows_the_line_to_write_and_where_the_old_one_stands(tmp_path: Path) -> None:
    script = tmp_path / "old.py"
    script.write_text(
        "from core.utils.model_loader import load_model\n"
        "from training.trainer import Trainer\n"
        "print(load_model.__module__, Trainer.__name__)\n",
        encoding="utf-8",
    )
    done = python("-m", "chuk", "old.py", cwd=tmp_path)
    assert done.stdout == "chuk_lib.models.loader SFTTrainer\n"
    told = [line for line in done.stderr.splitlines() if "DeprecationWarning" in line]
    assert [line.partition("DeprecationWarning: ")[2] for line in told] == [
        "`core.utils.model_loader.load_model` is now: from chuk_lib.models import load_model",
        "`training.trainer.Trainer` is now: from chuk_lib.training import SFTTrainer",
    ]
    assert [line.partition(":")[2].partition(":")[0] for line in told] == ["1", "2"]


def test_a_package_of_ones_own_is_never_hidden(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "__init__.py").write_text("mine = 1\n", encoding="utf-8")
    code = "import chuk, core; print(core.mine); import core.utils.model_loader"
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout == "1\n"
    assert "ModuleNotFoundError: No module named 'core.utils'" in done.stderr


def test_names_that_are_gone_say_what_to_do(tmp_path: Path) -> None:
    done = python(
        "-c", "import chuk; from core.models.model_config import ModelConfig", cwd=tmp_path
    )
    assert "is gone: `chuk_lib.models.describe_model(FOLDER)`" in done.stderr
    done = python("-c", "import core.utils.model_loader", cwd=tmp_path)
    assert "No module named 'core'" in done.stderr  # nothing happens before `import chuk`


@pytest.mark.parametrize(
    ("old", "chuk"),
    [
        (["-m", "chuk.cli.train", "sft", "--help"], "chuk train sft"),
        (["-m", "chuk.cli.infer", "--help"], "chuk infer"),
        (["-m", "chuk.cli.data", "generate-math", "--help"], "chuk data generate-math"),
        (["-m", "chuk.cli.model", "info", "--help"], "chuk model info"),
        (["-m", "chuk.cli.batch", "build", "--help"], "chuk batch build"),
        (["-m", "chuk.cli.tokenizer", "encode", "--help"], "chuk tokenizer encode"),
    ],
)
def test_old_commands_are_chuks(old: list[str], chuk: str, tmp_path: Path) -> None:
    done = python(*old, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(f"is `{chuk}` now\n")
    assert f"Usage: {chuk}" in done.stdout


def test_the_plans_examples_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    made = python(
        *("-m", "chuk.cli.data", "generate-math", "--output", "data", "--samples", "40"),
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    old = f"""model: {{name: {tiny_model_dir}}}
optimizer: {{name: AdamW, initial_lr: 1e-3, lr_schedule: {{type: cosine_decay}}}}
checkpoint: {{output_dir: out}}
training: {{num_epochs: 1, total_iterations: 50}}
batch: {{output_dir: data}}
"""
    (tmp_path / "old.yaml").write_text(old, encoding="utf-8")
    trained = python(
        *("-m", "chuk", "train.py", "--config", "old.yaml", "--iterations", "2"), cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "out" / "config.yaml").is_file()
    answer = python(
        *("-m", "chuk", "infer.py", "--model", "out", "--prompt", "1 + 1 =", "--text"), cwd=tmp_path
    )
    assert answer.returncode == 0, answer.stderr
    assert "`infer.py` is `chuk infer` now" in answer.stderr
