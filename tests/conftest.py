"""What all tests share: a tiny real model, and the real executable in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TYPER_USE_RICH", "0")  # typer reads it when imported
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, or CI: children would be deaf too
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
DROPPED = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TYPER_USE_RICH", "PYTHONWARNINGS")

RunChuk = Callable[..., "subprocess.CompletedProcess[str]"]


def chuk_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a `chuk` process: nothing of the developer's settings, no network, two threads."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CHUK_") and key not in DROPPED}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", **(extra or {})}


@pytest.fixture
def run_chuk(tmp_path: Path) -> RunChuk:
    """`run_chuk("model", "info", path, input=…, env=…, cwd=…)`: run `chuk` and return the finished process.

    Without `cwd` it runs in the test's own folder.
    """

    def run(
        *args: Any,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "chuk_cli", *map(str, args)], input=input, capture_output=True, text=True,
            env=chuk_environment(env), cwd=cwd or tmp_path, timeout=timeout, check=False,
            stdin=subprocess.DEVNULL if input is None else None,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama folder of about 30 thousand parameters with a character tokenizer. Read it, do not write to it;
    copies may be changed, for it has no checksums."""
    from chuk_lib.models.create import create_model

    folder = Path(create_model("nano", tmp_path_factory.mktemp("models") / "nano", seed=0))
    (folder / "checksums.json").unlink()
    return folder


STARTS = re.compile(
    r"\bsubprocess\b|\brun_chuk\b|\bpty\b|multiprocessing|\.train\(|\btrain_sft\b|\bfit\(|\bresume\(|mark\.(slow|real)\b"
)
"""What a test module names when it starts processes, trains, or is slow: `make quick` leaves it out."""
HELPERS = re.compile(r"^from tests\.([\w.]+) import", re.MULTILINE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `quick` what neither trains nor starts a process, by what its module and its helpers name."""
    known: dict[Path, bool] = {ROOT / "tests" / "conftest.py": False}
    for item in items:
        if not _starts(item.path, known):
            item.add_marker("quick")


def _starts(path: Path, known: dict[Path, bool]) -> bool:
    if path not in known:
        known[path] = False  # modules that import each other
        text = path.read_text(encoding="utf-8")
        helpers = [ROOT / "tests" / f"{name.replace('.', '/')}.py" for name in HELPERS.findall(text)]
        known[path] = bool(STARTS.search(text)) or any(_starts(one, known) for one in helpers if one.is_file())
    return known[path]


@pytest.fixture(scope="session", autouse=True)
def _uncompiled_process() -> None:
    """Tests call models themselves too, and on a CPU `mx.compile` costs seconds for each of them."""
    from chuk_lib.runtime import prepare

    prepare(compile=False)
