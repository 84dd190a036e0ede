"""Runs in processes of their own, to be hurt, and one that nothing happens to, to compare with."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from chuk_cli.app import run
from chuk_lib.training import SFTConfig, train_sft
from tests.conftest import chuk_environment
from tests.training.conftest import assert_same_bits, toy_rows, weights_of, write_rows

STEPS = 100
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "batch_size": 4,
    "learning_rate": 3e-3,
    "log_interval": 1,
    "checkpoint_interval": 10,
    "keep_checkpoints": 3,
}
Start = Callable[..., "subprocess.Popen[str]"]
Chuk = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-seven rows, no multiple of any batch size. Copy it to change it."""
    return Path(write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", toy_rows(37)))


@pytest.fixture(scope="session")
def whole(tiny_model_dir: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an undisturbed run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    config = SFTConfig(
        model=str(tiny_model_dir), data=str(toy_file), output=str(output), **SETTINGS
    )
    return train_sft(config).run_dir


@pytest.fixture
def command(tiny_model_dir: Path, toy_file: Path) -> Callable[..., list[str]]:
    """The command line of the same run, with other settings if given."""

    def make(
        output: str = "run", *more: str, data: Path | str = toy_file, **changes: Any
    ) -> list[str]:
        settings = [f"--set={name}={value}" for name, value in (SETTINGS | changes).items()]
        named = ["--model", str(tiny_model_dir), "--data", str(data), "--output", output]
        return [sys.executable, "-m", "chuk_cli", "train", "sft", *named, *settings, *more]

    return make


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(command, env=…, **Popen's)`: a process in the test's folder, gone when the test
    ends."""
    processes: list[subprocess.Popen[str]] = []

    def launch(
        command: list[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        streams = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        } | options
        process = subprocess.Popen(
            command, text=True, env=chuk_environment(env), cwd=tmp_path, **streams
        )
        processes.append(process)
        return process

    yield launch
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def chuk(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chuk]:
    """`chuk("train", "resume", …)` in this process: exit code, stdout and stderr. Faster than
    `run_chuk`."""
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield lambda *args: (run([str(word) for word in args]), *capsys.readouterr())
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def unfinished(whole: Path, tmp_path: Path) -> Path:
    """The undisturbed run as it was at its last checkpoint but one."""
    copy = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(copy / "checkpoints" / f"step_{STEPS:06d}")
    return copy


def resume_command(*more: str, run: str = "run") -> list[str]:
    """The command line that goes on with a run."""
    return [sys.executable, "-m", "chuk_cli", "train", "resume", run, *more]


def wait_for(run: Path, checkpoint: int, process: subprocess.Popen[str]) -> None:
    """Wait until a checkpoint of at least that step is there."""
    deadline = time.monotonic() + 90
    while _latest(run) < checkpoint:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _latest(run: Path) -> int:
    try:
        return int((run / "latest").read_text().removeprefix("step_"))
    except FileNotFoundError:
        return 0


def assert_like(run: Path, whole: Path) -> None:
    """The run ended as the undisturbed one: the same bits in weights and moments."""
    last = f"checkpoints/step_{STEPS:06d}"
    assert (run / "latest").read_text() == f"step_{STEPS:06d}\n"
    assert (run / last / "optimizer.safetensors").read_bytes() == (
        whole / last / "optimizer.safetensors"
    ).read_bytes()
    assert_same_bits(weights_of(run / last), weights_of(whole / last))
