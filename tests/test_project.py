"""What people rely on outside the code: the package's metadata, the Makefile, the licence, what git ignores."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PACKAGES = ("chuk_cli", "chuk_lib", "training_config")
needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_command_is_chuk() -> None:
    assert PROJECT["name"] == "chuk-mlx"
    assert PROJECT["scripts"] == {"chuk": "chuk_cli.__main__:main"}
    assert PROJECT["requires-python"] == ">=3.11"


def test_each_machine_gets_the_mlx_it_can_use() -> None:
    mlx = [line for line in PROJECT["dependencies"] if line.startswith("mlx") and not line.startswith("mlx-lm")]
    assert [line.split(";")[1].strip() for line in mlx] == ["sys_platform == 'darwin'", "sys_platform == 'linux'"]
    assert mlx[1].startswith("mlx[cpu]")
    versions = {re.search(r">=[^;]+", line)[0].strip() for line in mlx}  # type: ignore[index]
    for extra in ("cuda12", "cuda13"):
        (line,) = PROJECT["optional-dependencies"][extra]
        assert line.startswith(f"mlx[{extra}]")
        versions.add(re.search(r">=[^;]+", line)[0].strip())  # type: ignore[index]
    assert len(versions) == 1


def test_tests_need_only_the_dev_extra() -> None:
    dev = " ".join(PROJECT["optional-dependencies"]["dev"])
    assert all(tool in dev for tool in ("pytest", "pytest-xdist", "ruff", "mypy"))
    assert not [name for name in ("pytest", "ruff", "mypy") if name in " ".join(PROJECT["dependencies"])]


def test_the_licence_is_mit() -> None:
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_make_has_the_targets_that_the_readme_names() -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    assert {"setup", "demo", "test", "quick", "lint"} <= targets
    for target, needs in {"demo": "ready", "test": "dev", "quick": "dev", "lint": "dev", "setup": "dev"}.items():
        assert re.search(rf"^{target}: .venv/{needs}$", MAKEFILE, re.MULTILINE), f"`make {target}` on a fresh clone"
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target} " in said for target in targets - {"help"})


def test_ci_does_what_a_developer_does() -> None:
    assert "run: bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make lint" in text
    assert "make test" in text
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


@needs_git
@pytest.mark.parametrize(
    "name", [".venv/x", "demo/run/config.yaml", "runs/a/config.yaml", "chuk_lib/__pycache__/x.pyc"]
)
def test_git_ignores_what_is_made(name: str) -> None:
    assert subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False).returncode == 0


def checkout(folder: Path) -> Path:
    """A copy of what belongs to the project: building in place would leave `build/` behind, and later pack it."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.mark.slow
@needs_git
def test_a_wheel_holds_all_that_is_needed(tmp_path: Path) -> None:
    source = checkout(tmp_path / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("building needs setuptools from a package index")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("chuk_mlx-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = [path for package in PACKAGES for path in (source / package).rglob("*") if path.is_file()]
    assert {path.relative_to(source).as_posix() for path in files} <= names
    assert {"chuk_lib/py.typed", "chuk_cli/py.typed"} <= names
