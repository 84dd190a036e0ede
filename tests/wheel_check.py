"""The wheel, installed where nothing of the source is: `python -m tests.wheel_check [PYTHON ...]`.

Builds it, and for each Python (this one, unless others are named) makes an empty environment, installs
it with all that it needs, and uses it there as a stranger would: settings by name, a model, a run, the
predecessor's modules and commands, and every parity check. Needs a package index."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT
from tests.test_project import PACKAGES, checkout

PARITY = str(ROOT / "tests" / "fixtures" / "parity")
IMPORTS = (
    "import chuk; from core.utils.model_loader import load_model; print(load_model.__module__)"
)
ROWS = '{"prompt": "red ", "completion": "blue"}\n' * 16
TRAINED = ("--model", "nano", "--data", "rows.jsonl", "--max-steps", "2")
STEPS: tuple[tuple[str, ...], ...] = (
    ("chuk", "--version"),
    ("chuk", "doctor"),
    ("chuk", "config", "ls"),
    ("chuk", "model", "create", "--preset", "nano", "-o", "nano"),
    ("chuk", "train", "sft", "--config", "tiny/sft.yaml", *TRAINED, "-o", "new"),
    ("python", "-m", "chuk.cli.train", "sft", *TRAINED, "--output", "old"),
    ("python", "-m", "chuk", "train.py", "--config", "old.yaml", "--iterations", "1"),
    ("python", "-m", "chuk", "infer.py", "--model", "new", "--prompt", "red "),
    ("python", "-c", IMPORTS),
    ("chuk", "doctor", "--parity", PARITY),
)


def run(*words: str, cwd: Path) -> str:
    """The output of a command. Raises SystemExit with all that it said when it fails."""
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def installed(wheel: Path, python: str, folder: Path) -> Path:
    """The commands of a new environment that has the wheel."""
    run(python, "-m", "venv", str(folder), cwd=folder.parent)
    pip = (str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", str(wheel), cwd=folder.parent)
    (packages,) = folder.glob("lib/python3*/site-packages")
    ours = packages.glob("chuk_mlx-*/top_level.txt")
    names = {name for path in ours for name in path.read_text("utf-8").split()}
    if names != set(PACKAGES):
        raise SystemExit(f"the wheel puts {', '.join(sorted(names))} into site-packages")
    return folder / "bin"


def check(wheel: Path, python: str, folder: Path) -> None:
    """Use an installed wheel, step after step."""
    commands = installed(wheel, python, folder / "env")
    place = folder / "elsewhere"
    place.mkdir()
    (place / "rows.jsonl").write_text(ROWS, "utf-8")
    (place / "old.yaml").write_text(
        "model:\n  name: nano\ntraining:\n  num_epochs: 1\nbatch:\n  output_dir: rows.jsonl\n",
        "utf-8",
    )
    for name, *rest in STEPS:
        out = run(str(commands / name), *rest, cwd=place)
        last = out.strip().splitlines()[-1:] or [""]
        sys.stdout.write(f"{python}: {name} {' '.join(rest)[:60]}: {last[0][:80]}\n")
        sys.stdout.flush()


def main() -> None:
    """Build once, check under each Python."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = checkout(folder / "source")
        build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", name, str(source))
        run(sys.executable, *build, cwd=folder)
        (wheel,) = folder.glob("chuk_mlx-*.whl")
        for number, python in enumerate(sys.argv[1:] or [sys.executable]):
            (folder / str(number)).mkdir()
            check(wheel, python, folder / str(number))


if __name__ == "__main__":
    main()
