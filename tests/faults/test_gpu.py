"""A GPU that fails in the middle of a step: what is said, what is kept, and that going on is exact.

MLX raises such errors from whatever is computed then, so the texts are raised there, in a process
of its own that is otherwise the real command. They are Metal's and CUDA's own, as MLX passes them
on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.runtime.gpu_errors import GPU_ERRORS, gpu_error
from chuk_lib.training import resume
from chuk_lib.training.checkpoints import list_checkpoints
from tests.conftest import chuk_environment
from tests.faults.conftest import assert_like

METAL = "[METAL] Command buffer execution failed: "
TEXTS = {
    METAL
    + "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)": (
        "macOS stopped the GPU because the display had to wait"
    ),
    METAL + "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)": (
        "took too long"
    ),
    METAL + "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)": "the GPU hung",
    METAL + "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)": (
        "the memory that MLX computes in is full"
    ),
    METAL
    + "Ignored (for causing prior GPU errors) (00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)": (
        "no longer lets this process use the GPU"
    ),
    METAL + "Invalid Resource (00000009:kIOGPUCommandBufferCallbackErrorInvalidResource)": (
        "the GPU is gone"
    ),
    METAL
    + "Innocent Victim of GPU error/recovery (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)": (
        "no longer lets this process use the GPU"
    ),
    METAL + "Caused GPU Address Fault Error (0000000b:kIOGPUCommandBufferCallbackErrorPageFault)": (
        "where it may not"
    ),
    METAL + "something new": "the GPU's driver failed",
    "[malloc] Unable to allocate 9663676416 bytes.": "the memory that MLX computes in is full",
    "[metal::malloc] Attempting to allocate 19327352832 bytes which is greater than the maximum allowed buffer size of 9663676416 bytes.": (
        "one array is larger than the GPU takes"
    ),
    "[metal::malloc] Resource limit (499000) exceeded.": "as many arrays as it can",
    "cudaMallocAsync(&data, size, stream) failed: out of memory": (
        "the memory that MLX computes in is full"
    ),
    "cudaStreamSynchronize(stream) failed: the launch timed out and was terminated": (
        "took too long"
    ),
    "cudaGraphLaunch(graph, stream) failed: an illegal memory access was encountered": (
        "where it may not"
    ),
    "cudaGetDeviceCount(&count) failed: no CUDA-capable device is detected": "the GPU is gone",
}
KINDS = {words: text for text, words in reversed(TEXTS.items())}
"""One text of each kind."""
FAILING = """
import sys
from chuk_lib.training.updater import Updater
real, calls, text = Updater._accumulate, [0], sys.argv.pop(1)
def fail(self, update):
    calls[0] += 1
    if calls[0] > 25:
        raise RuntimeError(text)
    return real(self, update)
Updater._accumulate = fail
from chuk_cli.__main__ import main
main()
"""


def failing(text: str, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The command, whose 26th step meets the error."""
    return subprocess.run(
        [sys.executable, "-c", FAILING, text, *command[3:]],
        cwd=folder,
        env=chuk_environment(),
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("text", "words"), TEXTS.items(), ids=list(TEXTS.values()))
def test_each_error_has_words_and_a_way_on(text: str, words: str) -> None:
    found = gpu_error(RuntimeError(text))
    assert found is not None
    assert words in found.message
    assert text[:60] in found.message
    assert found.hint


def test_what_is_no_error_of_a_gpu_stays_what_it_is() -> None:
    assert gpu_error(RuntimeError("dictionary changed size during iteration")) is None
    assert gpu_error(ValueError("out of memory")) is None
    assert len({kind.message for kind in GPU_ERRORS}) == len(GPU_ERRORS) == len(KINDS)


@pytest.mark.parametrize("text", KINDS.values(), ids=KINDS)
def test_a_step_that_fails_is_told_and_the_run_goes_on_exactly(
    command: Any, tmp_path: Path, whole: Path, text: str
) -> None:
    done = failing(text, command(), tmp_path)
    assert done.returncode == 1, done.stderr
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert TEXTS[text] in error
    assert hint.startswith("hint: `chuk train resume ")
    assert "goes on after step 20;" in hint
    assert "chuk hit a bug" not in done.stderr
    last = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["data"]["reason"]) == ("finished", "failed")
    assert TEXTS[text] in last["data"]["error"]
    assert [folder.name for folder in list_checkpoints(tmp_path / "run")] == [
        "step_000010",
        "step_000020",
    ]
    assert resume(tmp_path / "run").reason == "done"
    assert_like(tmp_path / "run", whole)


def test_before_the_first_checkpoint_the_run_begins_again(
    command: Any, tmp_path: Path, whole: Path
) -> None:
    done = failing(next(iter(TEXTS)), command(checkpoint_interval=50), tmp_path)
    assert done.returncode == 1
    assert "begins again: no checkpoint was due yet" in done.stderr
    assert resume(tmp_path / "run").reason == "done"
    assert_like(tmp_path / "run", whole)


def test_with_checkpoints_by_time_little_is_lost(command: Any, tmp_path: Path, whole: Path) -> None:
    done = failing(
        next(iter(TEXTS)), command(checkpoint_interval=20, checkpoint_minutes=0.00001), tmp_path
    )
    assert "goes on after step 25;" in done.stderr
    assert [folder.name for folder in list_checkpoints(tmp_path / "run")] == [
        "step_000020",
        "step_000025",
    ]
    assert resume(tmp_path / "run", changes={"checkpoint_minutes": 0}).reason == "done"
    names = [folder.name for folder in list_checkpoints(tmp_path / "run")]
    assert names == ["step_000060", "step_000080", "step_000100"]
    assert_like(tmp_path / "run", whole)


def test_other_commands_say_it_too(chuk: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    script = (
        "import sys, mlx.core as mx\ntext = sys.argv.pop(1)\n"
        + "def fail(*args):\n    raise RuntimeError(text)\nmx.eval = mx.async_eval = fail\n"
        "from chuk_cli.__main__ import main\nmain()\n"
    )
    given = ["infer", "--model", str(tiny_model_dir), "--prompt", "1+1="]
    done = subprocess.run(
        [sys.executable, "-c", script, next(iter(TEXTS)), *given],
        cwd=tmp_path,
        env=chuk_environment(),
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "macOS stopped the GPU" in done.stderr
