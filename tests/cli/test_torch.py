"""torch beside chuk: no command loads it, and a user's own code gets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import RunChuk, chuk_environment

FAKE = """
import pathlib
pathlib.Path(__file__).with_name("loaded").touch()
__version__ = "2.13.0"
"""


def with_torch(folder: Path) -> dict[str, str]:
    """An environment in which a package of torch's name and version is installed, which notes that it was imported."""
    package = folder / "site" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE)
    info = folder / "site" / "torch-2.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
    inherited = os.environ.get("PYTHONPATH")
    root = Path(__file__).resolve().parent.parent.parent
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder / "site"), str(root), inherited]))}


def test_a_command_does_not_load_torch(run_chuk: RunChuk, tiny_model_dir: Path, tmp_path: Path) -> None:
    env = with_torch(tmp_path)
    done = run_chuk("infer", "--model", tiny_model_dir, "--prompt", "a", "--max-tokens", 2, env=env)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "site" / "torch" / "loaded").exists()


CODE = """
import sys
from chuk_lib.rewards.user_file import load_function
from chuk_lib.utils.torch_apart import hide_torch
hide_torch()
hide_torch()
import transformers
assert not transformers.is_torch_available()
load_function("mine.py", "score", {})
assert sys.modules["torch"].__version__ == "2.13.0"
assert "transformers" not in sys.modules
import transformers.utils.import_utils as fresh
assert fresh.is_torch_available()
"""


def test_a_reward_file_gets_torch_and_all_of_transformers(tmp_path: Path) -> None:
    env = chuk_environment(with_torch(tmp_path))
    (tmp_path / "mine.py").write_text("import torch\n\n\ndef score(completions):\n    return [1.0]\n")
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=env, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
