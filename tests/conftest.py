"""What all tests share: a tiny real model, and the real executable in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TYPER_USE_RICH", "0")  # typer reads it when imported
# Tests hold to float32; `CHUK_DEVICE=gpu` runs them on the GPU all the same.
os.environ.setdefault("CHUK_DEVICE", "cpu")
# A shell's background job, or CI: children would be deaf too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
DROPPED = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TYPER_USE_RICH", "PYTHONWARNINGS")

DEVICE = ("CHUK_DEVICE", "CHUK_PRETEND_METAL")

RunChuk = Callable[..., "subprocess.CompletedProcess[str]"]


def chuk_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a `chuk` process: nothing of the developer's settings, no network, two
    threads."""
    mine = lambda key: (key.startswith("CHUK_") and key not in DEVICE) or key in DROPPED  # noqa: E731
    kept = {key: value for key, value in os.environ.items() if not mine(key)}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return {
        **kept,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        **(extra or {}),
    }


@pytest.fixture
def run_chuk(tmp_path: Path) -> RunChuk:
    """`run_chuk("model", "info", path, input=…, env=…, cwd=…)`: run `chuk` and return the finished
    process.

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
            [sys.executable, "-m", "chuk_cli", *map(str, args)],
            input=input,
            capture_output=True,
            text=True,
            env=chuk_environment(env),
            cwd=cwd or tmp_path,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL if input is None else None,
        )

    return run


@pytest.fixture
def pretend_mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, str]]]:
    """`pretend_mac("16")` or `("16:M2")`: this process computes as on such a Mac until the test is
    over; returns the variables that do the same for a `chuk` process."""
    import mlx.core as mx

    from chuk_lib.runtime import hardware, prepare
    from chuk_lib.runtime.limits import set_metal_limits

    limits = mx.get_memory_limit(), mx.set_cache_limit(1 << 30)

    def pretend(size: str) -> dict[str, str]:
        variables = {"CHUK_DEVICE": "gpu", "CHUK_PRETEND_METAL": size}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        prepare()
        set_metal_limits(hardware.device().working_set)  # where the suite runs on this very Mac
        return variables

    yield pretend
    monkeypatch.undo()
    mx.set_memory_limit(limits[0])
    mx.set_cache_limit(limits[1])
    mx.set_wired_limit(0)
    prepare(compile=False)


@pytest.fixture
def cpu() -> Iterator[None]:
    """For tests of what chuk does on a CPU, and of what it does in float32: this process and its
    `chuk` processes compute there, whatever the suite runs on."""
    from chuk_lib.runtime import prepare

    with pytest.MonkeyPatch.context() as own:  # a test may undo what it patched itself
        own.setenv("CHUK_DEVICE", "cpu")
        own.delenv("CHUK_PRETEND_METAL", raising=False)
        prepare(compile=False)
        yield
    prepare(compile=False)


BARE = ROOT / "tests" / "fixtures" / "bare"


@pytest.fixture
def bare_python() -> dict[str, str]:
    """Variables that make a Python without /proc, /sys and processor affinity, as a Mac's is."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(BARE)])}


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama folder of about 30 thousand parameters with a character tokenizer. Read it, do not
    write to it; copies may be changed, for it has no checksums."""
    from chuk_lib.models.create import create_model

    folder = Path(create_model("nano", tmp_path_factory.mktemp("models") / "nano", seed=0))
    (folder / "checksums.json").unlink()
    return folder


STARTS = re.compile(
    r"\bsubprocess\b|\brun_chuk\b|\bpty\b|multiprocessing|\.train\(|\btrain_sft\b|\bfit\(|\bresume\(|mark\.(slow|real)\b"
)
"""What a test module names when it starts processes, trains, or is slow: `make quick` leaves it
out."""
HELPERS = re.compile(r"^from tests\.([\w.]+) import", re.MULTILINE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `quick` what neither trains nor starts a process, by what its module and its helpers
    name."""
    known: dict[Path, bool] = {ROOT / "tests" / "conftest.py": False}
    for item in items:
        if not _starts(item.path, known):
            item.add_marker("quick")


def _starts(path: Path, known: dict[Path, bool]) -> bool:
    if path not in known:
        known[path] = False  # modules that import each other
        text = path.read_text(encoding="utf-8")
        helpers = [
            ROOT / "tests" / f"{name.replace('.', '/')}.py" for name in HELPERS.findall(text)
        ]
        known[path] = bool(STARTS.search(text)) or any(
            _starts(one, known) for one in helpers if one.is_file()
        )
    return known[path]


@pytest.fixture(scope="session", autouse=True)
def _uncompiled_process() -> None:
    """Tests call models themselves too, and on a CPU `mx.compile` costs seconds for each of
    them."""
    from chuk_lib.runtime import prepare

    prepare(compile=False)
