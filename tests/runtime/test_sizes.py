"""What depends on the device holds on Macs of three sizes, and in a Python that knows no more than
a Mac's: the tests of types, limits, budgets and plans run again there, in processes of their own.

`make test-mac` runs all tests that way."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import BARE, ROOT

SOME = {
    "tests/training/test_planning.py": (
        "test_more_rows_need_more_and_adapters_less",
        "test_a_budget_keeps_the_rows_of_an_update",
        "test_auto_asks_the_machine",
    ),
    "tests/inference/test_rollouts.py": (
        "test_the_budget_bounds_the_rows",
        "test_the_default_budget_comes_from_the_model",
        "test_nothing_is_held_when_the_last_row_has_ended",
        "test_a_gpu_s_memory_decides_how_many_rows_decode_together",
        "test_a_long_prompt_runs_in_pieces",
        "test_numbers_members_and_seeds_choose_what_is_drawn",
    ),
}
TESTS = (
    "tests/runtime/test_device.py",
    "tests/runtime/test_threads.py",
    "tests/training/test_footprint.py",
    *(f"{file}::{name}" for file, names in SOME.items() for name in names),
)


@pytest.mark.parametrize(
    ("device", "bare"), [("cpu", True), ("8", True), ("16", False), ("64", True)]
)
def test_types_limits_budgets_and_plans(device: str, bare: bool) -> None:
    where = {"CHUK_DEVICE": "cpu", "CHUK_PRETEND_METAL": ""}
    if device != "cpu":
        where = {"CHUK_DEVICE": "gpu", "CHUK_PRETEND_METAL": f"{device}:float32"}
    path = [str(ROOT), *([str(BARE)] if bare else [])]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *TESTS],
        cwd=ROOT,
        env={**os.environ, **where, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
