"""Every example runs as it stands, offline and in seconds, and stays short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, chuk_environment

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "01_generate.py": "ended by length",
    "02_sft.py": "done after 20 steps",
    "03_custom_data.py": "learned: 'Tokyo.<|im_end|>In Japan.<|im_end|>'",
    "04_lora_fuse.py": "merged, saved and loaded it differs by",
    "05_watch_events.py": "stopped after",
    "06_custom_algorithm.py": "30 ",
}


def run(name: str, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / name), *args]
    return subprocess.run(
        command, cwd=folder, env=chuk_environment(), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    done = run(path.name, tmp_path)
    assert done.returncode == 0, done.stderr
    assert SAYS[path.name] in done.stdout
    assert {entry.name for entry in tmp_path.iterdir()} <= {"runs"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert text.startswith('"""')


def test_an_example_takes_a_model_of_one_s_own(tiny_model_dir: Path, tmp_path: Path) -> None:
    assert run("01_generate.py", tmp_path, str(tiny_model_dir)).returncode == 0
    assert run("04_lora_fuse.py", tmp_path, str(tiny_model_dir), "merged").returncode == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "merged-adapter" / "adapter_model.safetensors").is_file()


def test_the_examples_are_numbered_without_gaps() -> None:
    assert [path.name[:2] for path in EXAMPLES] == [f"{number:02d}" for number in range(1, len(EXAMPLES) + 1)]
    assert set(SAYS) == {path.name for path in EXAMPLES}
