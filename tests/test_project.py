"""What people rely on outside the code: the package's metadata, the Makefile, the licence, what git
ignores."""

from __future__ import annotations

import ast
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
PACKAGES = ("chuk", "chuk_cli", "chuk_lib")
needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_command_is_chuk() -> None:
    assert PROJECT["name"] == "chuk-mlx"
    assert PROJECT["scripts"] == {"chuk": "chuk_cli.__main__:main"}
    assert PROJECT["requires-python"] == ">=3.11,<3.15"


def test_each_machine_gets_the_mlx_it_can_use() -> None:
    mlx = [
        line
        for line in PROJECT["dependencies"]
        if line.startswith("mlx") and not line.startswith("mlx-lm")
    ]
    assert [line.split(";")[1].strip() for line in mlx] == [
        "sys_platform == 'darwin'",
        "sys_platform == 'linux'",
    ]
    assert mlx[1].startswith("mlx[cpu]")
    assert mlx[0].startswith("mlx>=0.32.4,<0.33;")
    versions = {re.search(r"<[^;]+", line)[0].strip() for line in mlx}  # type: ignore[index]
    for extra in ("cuda12", "cuda13"):
        (line,) = PROJECT["optional-dependencies"][extra]
        assert line.startswith(f"mlx[{extra}]")
        versions.add(re.search(r"<[^;]+", line)[0].strip())  # type: ignore[index]
    assert len(versions) == 1


def test_tests_need_only_the_dev_extra() -> None:
    dev = " ".join(PROJECT["optional-dependencies"]["dev"])
    assert all(tool in dev for tool in ("pytest", "pytest-xdist", "ruff", "mypy"))
    assert not [
        name for name in ("pytest", "ruff", "mypy") if name in " ".join(PROJECT["dependencies"])
    ]


def test_the_licence_is_mit() -> None:
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_make_has_the_targets_that_the_readme_names() -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    with_tools = ("setup", "test", "quick", "real", "lint")
    assert {"demo", *with_tools} <= targets
    for target, needs in {"demo": "ready", **dict.fromkeys(with_tools, "dev")}.items():
        assert re.search(rf"^{target}: .venv/{needs}$", MAKEFILE, re.MULTILINE), (
            f"`make {target}` on a fresh clone"
        )
    said = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert all(f"make {target} " in said for target in targets - {"help"})


def test_ci_does_what_a_developer_does() -> None:
    assert "run: bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text(
        encoding="utf-8"
    )
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make lint" in text
    assert "make test" in text
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


@needs_git
@pytest.mark.parametrize(
    "name", [".venv/x", "demo/run/config.yaml", "runs/a/config.yaml", "chuk_lib/__pycache__/x.pyc"]
)
def test_git_ignores_what_is_made(name: str) -> None:
    assert (
        subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False).returncode == 0
    )


def checkout(folder: Path) -> Path:
    """A copy of what belongs to the project: building in place would leave `build/` behind, and
    later pack it."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(
        listed, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if name.startswith("tests/") or not (ROOT / name).exists():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name, follow_symlinks=False)
    return folder


@pytest.mark.slow
@needs_git
def test_a_wheel_holds_all_that_is_needed(tmp_path: Path) -> None:
    source = checkout(tmp_path / "source")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("building needs setuptools from a package index")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("chuk_mlx-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = [
        path for package in PACKAGES for path in (source / package).rglob("*") if path.is_file()
    ]
    assert {path.relative_to(source).as_posix() for path in files} <= names
    shipped = {
        f"chuk_lib/config/shipped/{path.relative_to(source / 'training_config').as_posix()}"
        for path in (source / "training_config").rglob("*.yaml")
    }
    assert shipped | {"chuk_lib/py.typed", "chuk_cli/py.typed"} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        *PACKAGES,
        "chuk_mlx",
    }


INSTALLED_AS = {"yaml": "pyyaml", "mlx_lm": "mlx-lm", "mcp_types": "mcp-types"}


OPTIONAL = {"chuk_lib/serving/app.py", "chuk_lib/serving/server.py"}
"""Modules that only an extra's own command imports: they may need its packages at their top."""


def test_what_is_imported_is_declared() -> None:
    """Every package that the code imports stands in pyproject.toml itself: what another one brings
    can go with it."""
    needed = {re.split(r"[\[<>=; ]", line)[0] for line in PROJECT["dependencies"]}
    extras = {
        re.split(r"[\[<>=; ]", line)[0]
        for lines in PROJECT["optional-dependencies"].values()
        for line in lines
    }
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name, at_the_top in imports(path):
                optional = not at_the_top or path.relative_to(ROOT).as_posix() in OPTIONAL
                known = needed | extras if optional else needed
                assert INSTALLED_AS.get(name, name) in known, (
                    f"{path.relative_to(ROOT)} imports {name}"
                )


def imports(path: Path) -> list[tuple[str, bool]]:
    """The foreign packages that a module imports, and whether it does so when it is imported
    itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        found += [(name.partition(".")[0], node in tree.body) for name in names]
    own = {*PACKAGES, "__future__"}
    return [
        (name, top)
        for name, top in found
        if name not in own and name not in sys.stdlib_module_names
    ]
