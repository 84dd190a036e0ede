"""torch beside chuk: no command loads it, and a user's own code gets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import RunChuk, chuk_environment

FAKE = """
import pathlib
pathlib.Path(__file__).with_name("loaded").touch()
__version__ = "2.13.0"
"""


def with_torch(folder: Path) -> dict[str, str]:
    """An environment in which a package of torch's name and version is installed, which notes that
    it was imported."""
    package = folder / "site" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE)
    info = folder / "site" / "torch-2.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
    inherited = os.environ.get("PYTHONPATH")
    root = Path(__file__).resolve().parent.parent.parent
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder / "site"), str(root), inherited]))
    }


def test_a_command_does_not_load_torch(
    run_chuk: RunChuk, tiny_model_dir: Path, tmp_path: Path
) -> None:
    env = with_torch(tmp_path)
    done = run_chuk("infer", "--model", tiny_model_dir, "--prompt", "a", "--max-tokens", 2, env=env)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "site" / "torch" / "loaded").exists()


MINE = """
def plain(completions):
    return [1.0 for _ in completions]

def late(completions):
    import torch, transformers
    assert transformers.is_torch_available()
    return [1.0 for _ in completions]
"""

CODE = """
import sys
from chuk_lib.rewards import load_rewards
from chuk_lib.rewards.types import Completions
from chuk_lib.utils.torch_apart import hide_torch
hide_torch()
hide_torch()
import transformers
assert not transformers.is_torch_available()
rewards = load_rewards(["mine.py:NAME"])
rewards.score(Completions(["a"], ["b"], [[1]], {}))
"""
GETS = """
assert sys.modules["torch"].__version__ == "2.13.0"
import transformers as fresh
assert fresh.is_torch_available()
"""
NOTHING = """
assert sys.modules["torch"] is None
assert sys.modules["transformers"] is transformers
"""


@pytest.mark.parametrize(
    ("name", "start", "then"),
    [("plain", "import torch", GETS), ("late", "", GETS), ("plain", "", NOTHING)],
)
def test_a_reward_file_gets_torch_and_all_of_transformers(
    name: str, start: str, then: str, tmp_path: Path
) -> None:
    """At its top or when it is called; and chuk does without them where it imports neither."""
    env = chuk_environment(with_torch(tmp_path))
    (tmp_path / "mine.py").write_text(f"{start}\n{MINE}")
    done = subprocess.run(
        [sys.executable, "-c", CODE.replace("NAME", name) + then],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "torch" / "loaded").exists() == (then == GETS)
