"""Every example runs as it stands, offline and in seconds, and stays short."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, RunChuk, chuk_environment

EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*"))
SAYS = {
    "01_generate.py": "ended by length",
    "02_sft.py": "done after 20 steps",
    "03_custom_data.py": "learned: 'Tokyo.<|im_end|>In Japan.<|im_end|>'",
    "04_lora_fuse.py": "merged, saved and loaded it differs by",
    "05_watch_events.py": "stopped after",
    "06_custom_algorithm.py": "after 30 steps: ",
    "07_dpo.py": "100% after",
    "08_grpo_custom_reward.py": "after 60 steps",
    "09_pipeline.sh": "step 2, 4 completions",
    "10_sample_and_judge.sh": "pass@8",
    "11_gru_policy.py": "a pull, 0.367 by chance",
    "12_environment.sh": "reward 0.85",
}
LINES = {"11_gru_policy.py": 130}
"""The longest that an example may be, where it is not 80."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the command `chuk`."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "chuk").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m chuk_cli "$@"\n', encoding="utf-8"
    )
    (folder / "chuk").chmod(0o755)
    return folder


def run(
    name: str, folder: Path, *args: str, commands: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run an example as it stands; scripts of commands with two steps of training."""
    path = os.pathsep.join([str(commands), os.environ["PATH"]])
    environment = chuk_environment(
        {"PATH": path, "STEPS": "2", "SAMPLES": "200"} if commands else {}
    )
    return subprocess.run(
        ["bash" if commands else sys.executable, str(ROOT / "examples" / name), *args],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(path: Path, tmp_path: Path, commands: Path) -> None:
    is_script = path.suffix == ".sh"
    if is_script and shutil.which("bash") is None:
        pytest.skip("needs bash")
    done = run(path.name, tmp_path, commands=commands if is_script else None)
    assert done.returncode == 0, done.stderr
    assert SAYS[path.name] in done.stdout
    assert {entry.name for entry in tmp_path.iterdir()} <= {"runs"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES.get(path.name, 80)
    assert text.startswith(('"""', "#!/usr/bin/env bash\n# "))


def test_an_example_takes_a_model_of_one_s_own(tiny_model_dir: Path, tmp_path: Path) -> None:
    assert run("01_generate.py", tmp_path, str(tiny_model_dir)).returncode == 0
    assert run("04_lora_fuse.py", tmp_path, str(tiny_model_dir), "merged").returncode == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "merged-adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "steps", "cut_at"), [("06_custom_algorithm.py", 30, 20), ("11_gru_policy.py", 80, 60)]
)
def test_an_algorithm_of_one_s_own_goes_on_bit_for_bit(
    name: str, steps: int, cut_at: int, tmp_path: Path
) -> None:
    """Cut off after an earlier checkpoint, it ends as if it had not been."""
    assert run(name, tmp_path).returncode == 0
    (whole,) = (tmp_path / "runs").iterdir()
    cut, last = tmp_path / "cut", f"step_{steps:06d}"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / last)
    done = run(name, tmp_path, "cut")
    assert done.returncode == 0, done.stderr
    for file in ("model.safetensors", "optimizer.safetensors"):
        files = [folder / "checkpoints" / last / file for folder in (whole, cut)]
        assert files[0].read_bytes() == files[1].read_bytes()
    starts = [
        line for line in (cut / "events.jsonl").read_text().splitlines() if '"started"' in line
    ]
    assert len(starts) == 2
    assert f'"start_step":{cut_at}' in starts[1].replace(" ", "")


def test_a_policy_learns_to_remember_what_an_arm_paid(tmp_path: Path, run_chuk: RunChuk) -> None:
    """Without a memory 0.367 a pull is the best there is; `chuk runs show` draws the run as it does
    one of chuk's."""
    done = run("11_gru_policy.py", tmp_path)
    assert float(done.stdout.split()[1]) > 0.65
    (path,) = (tmp_path / "runs").iterdir()
    shown = run_chuk("runs", "show", path)
    assert "chuk train bandit" in shown.stdout
    assert "reward" in shown.stdout


def test_the_examples_are_numbered_without_gaps() -> None:
    assert [path.name[:2] for path in EXAMPLES] == [
        f"{number:02d}" for number in range(1, len(EXAMPLES) + 1)
    ]
    assert set(SAYS) == {path.name for path in EXAMPLES}
